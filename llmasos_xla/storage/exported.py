"""Programs as `jax.export` serializes them: what a bundle may hold, and how one becomes a function again."""

import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# What JAX promises to keep, and what comes with the call; neither a callback nor code of the bundle's own.
_CALLS = re.compile(
    r"(lapack|cusolver|cublas|hipsolver|hipblas|rocsolver)_\w+|(cu|hip)_threefry2x32(_ffi)?|Sharding|SPMD\w+|shape_assertion"
    r"|annotate_device_placement|Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|ApproxTopK|AllocateBuffer"
    r"|stablehlo\.dynamic_\w+|__cudnn\$\w+"
)
_CHANNELS = re.compile(r"stablehlo\.(send|recv|infeed|outfeed)\b")


class UnreadableProgramError(ValueError):
    """A program that this version of JAX does not take: its window of compatibility has passed, or it is damaged."""


# What parsers of the formats inside raise on bytes that somebody made up.
BAD = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    EOFError,
    OSError,
    RuntimeError,
    AssertionError,
    StopIteration,
    UnicodeError,
    struct.error,
    zipfile.BadZipFile,
)


def function(content: bytes, platforms: Sequence[str], platform: str | None, made_by: str) -> Callable:
    """The function in `content`, that of `jax.export.export`; it can be called, traced and compiled.

    Args:
        platforms: those it was exported for.
        platform: the one that it is to run on; the default backend's if None.
        made_by: the version of JAX that exported it, for the error.

    Raises UnreadableProgramError, and ValueError for another platform, or a program that reaches out of itself.
    """
    import jax
    import jax.export

    platform = platform or {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in platforms and platform in PLATFORMS:
        raise ValueError(f"bundle: it was exported for {', '.join(platforms)}, not for {platform}")
    try:
        found = jax.export.deserialize(bytearray(content))
        module = found.mlir_module()
    except BAD as error:
        raise UnreadableProgramError(
            f"bundle: JAX {jax.__version__} cannot read this program, which JAX {made_by} exported: {error}"
        ) from error
    check_calls(module)
    return found.call


def check_calls(module: str) -> None:
    """Refuses a program, as MLIR's text, that calls back into the process or out of it: it may come from anywhere.

    >>> check_calls("stablehlo.custom_call @xla_python_cpu_callback(%0)")
    Traceback (most recent call last):
    ValueError: bundle: a program calls xla_python_cpu_callback, which no bundle may
    """
    called = {name.strip('"') for name in re.findall(r"custom_call\s*@(\"[^\"]*\"|[\w$.]+)", module)}
    # MLIR writes an operation in its own form, but for one that it finds at fault.
    called |= {"by another form of custom_call"} if '"stablehlo.custom_call"' in module else set()
    wrong = sorted(name for name in called if not _CALLS.fullmatch(name))
    wrong += sorted({found.group() for found in _CHANNELS.finditer(module)})
    if wrong:
        raise ValueError(f"bundle: a program calls {', '.join(wrong)[:200]}, which no bundle may")


def shapes(tensors: Sequence[tuple[str, str, Sequence[int | str]]], constraints: Sequence[str] = ()) -> dict[str, Any]:
    """Tensors (name, dtype, shape) as `jax.ShapeDtypeStruct`, with a symbol for each text in a shape.

    `constraints` on the symbols are of the form "length <= 512".

    >>> shapes([("x", "float32", ("rows", 3))])
    {'x': ShapeDtypeStruct(shape=(rows, 3), dtype=float32)}
    """
    import jax
    import jax.export

    names = sorted({n for _, _, shape in tensors for n in shape if isinstance(n, str)})
    symbols = (
        dict(zip(names, jax.export.symbolic_shape(", ".join(names), constraints=constraints), strict=True))
        if names
        else {}
    )
    return {
        name: jax.ShapeDtypeStruct(tuple(symbols[n] if isinstance(n, str) else n for n in shape), dtype)
        for name, dtype, shape in tensors
    }
