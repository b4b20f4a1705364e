"""One launch of a Triton kernel as a JAX primitive.

Compiled for cuda, the program holds jaxlib's own `triton_kernel_call_ffi` with the kernel in it. A launch has no other
version: an `Operation` of `engine.py` keeps it out of programs for other platforms, and gives it its derivative.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core as extend_core
from jax.interpreters import ad, batching, mlir

from llmasos_xla.kernels._operation import typed_like
from llmasos_xla.kernels._triton import encode
from llmasos_xla.kernels._triton.compiler import Options, Target, compile_kernel
from llmasos_xla.kernels._triton.devices import Device

_TARGET = "triton_kernel_call_ffi"

Interpreter = Callable[..., list[np.ndarray]]

INTERPRETER: Interpreter | None = None
"""Runs a launch on arrays of the host, for tests: `(kernel, grid, arrays, results, zeroed, constants) -> results`."""


class Kernel:
    """A `triton.jit` function that can be a parameter of a primitive: equal to itself alone.

    Triton's own hash of a function parses its source.
    """

    _known: dict[int, "Kernel"] = {}

    def __init__(self, jit: Any):
        self.jit = jit

    @classmethod
    def of(cls, jit: Any) -> "Kernel":
        """The one kernel of that function."""
        return cls._known.setdefault(id(jit), cls(jit))

    def __repr__(self) -> str:
        return f"{self.jit.fn.__module__.rpartition('.')[2]}.{self.jit.fn.__name__}"


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arrays: Mapping[str, Any],
    results: Mapping[str, jax.ShapeDtypeStruct],
    constants: Mapping[str, Any],
    *,
    device: Device,
    options: Options,
    zeroed: tuple[str, ...] = (),
) -> tuple[jax.Array, ...]:
    """Runs `kernel` on a grid of programs and returns the results in their order.

    Args:
        kernel: a `triton.jit` function. Its parameters are the arrays, then the results, then the constants, by name.
        grid: programs along each axis, at most three.
        arrays: what it reads.
        results: what it writes, every element of it, unless it is `zeroed`.
        constants: values known when it is compiled, None for a pointer that it does without.
        device: the GPU to compile for.
        options: how to compile.
        zeroed: results that are zero when the kernel starts.
    """
    names = [p.name for p in kernel.params if p.name not in constants]
    if names != [*arrays, *results]:
        raise ValueError(f"{kernel.fn.__name__}: takes {names} in this order, came {[*arrays, *results]}")
    out = _launch_p.bind(
        *arrays.values(),
        kernel=Kernel.of(kernel),
        grid=(*grid, *(1,) * (3 - len(grid))),
        names=tuple(names),
        results=tuple((tuple(r.shape), np.dtype(r.dtype)) for r in results.values()),
        constants=tuple(constants.items()),
        device=device,
        options=options,
        zeroed=tuple(name in zeroed for name in results),
    )
    return tuple(out)


_launch_p = extend_core.Primitive("triton")
_launch_p.multiple_results = True


@_launch_p.def_abstract_eval
def _abstract(*avals: Any, results: tuple, **_: Any) -> list[Any]:
    return [typed_like(avals[0], jax.ShapeDtypeStruct(shape, dtype)) for shape, dtype in results]


def _lower_cuda(
    ctx: Any,
    *operands: Any,
    kernel: Kernel,
    grid: tuple[int, int, int],
    names: tuple[str, ...],
    constants: tuple,
    device: Device,
    options: Options,
    zeroed: tuple[bool, ...],
    results: tuple,
) -> Any:
    avals = [*ctx.avals_in, *ctx.avals_out]
    pointers = {n: np.dtype(a.dtype) for n, a in zip(names, avals)}
    target = Target("cuda", device.arch)
    compiled = compile_kernel(kernel, pointers, dict(constants), target, options)
    if compiled.shared_memory > device.shared_memory:
        raise ValueError(
            f"{kernel}: needs {compiled.shared_memory} bytes of shared memory, {device.name} has "
            f'{device.shared_memory}; use implementation="xla" and report the shapes'
        )
    _register()
    bytes_zeroed = [0] * len(ctx.avals_in)
    bytes_zeroed += [math.prod(a.shape) * a.dtype.itemsize if z else 0 for a, z in zip(ctx.avals_out, zeroed)]
    call = encode.kernel_call(compiled, device.arch, options.warps, grid, bytes_zeroed, repr(kernel))
    return jax.ffi.ffi_lowering(_TARGET, api_version=4)(ctx, *operands, opaque=call)


def _register() -> None:
    """Where the GPU plugin is, importing this file of jaxlib's registers the foreign call."""
    try:
        importlib.import_module("jaxlib.gpu_triton")
    except ImportError:  # compiling on a machine without it
        return


def _interpreted(
    *arrays: Any,
    kernel: Kernel,
    grid: tuple,
    names: tuple,
    constants: tuple,
    device: Device,
    options: Options,
    zeroed: tuple,
    results: tuple,
) -> Any:
    if INTERPRETER is None:
        raise NotImplementedError(f"{kernel}: a Triton kernel runs on cuda alone")
    interpreter = INTERPRETER

    def run(*host: Any) -> list[np.ndarray]:
        given = [np.ascontiguousarray(a) for a in host]
        return interpreter(kernel.jit, grid, names, given, results, zeroed, dict(constants))

    structs = [jax.ShapeDtypeStruct(*r) for r in results]
    return jax.pure_callback(run, structs, *arrays)


mlir.register_lowering(_launch_p, _lower_cuda, platform="cuda")
mlir.register_lowering(_launch_p, mlir.lower_fun(_interpreted, multiple_results=True))


def _no_derivative(*_: Any, **static: Any) -> Any:
    raise NotImplementedError(
        f"{static['kernel']}: a launch has no derivative of its own; differentiate the operation it belongs to"
    )


def _no_batch(*_: Any, **static: Any) -> Any:
    raise NotImplementedError(f"{static['kernel']}: a launch cannot be mapped; map the operation it belongs to")


ad.primitive_jvps[_launch_p] = _no_derivative
batching.primitive_batchers[_launch_p] = _no_batch
