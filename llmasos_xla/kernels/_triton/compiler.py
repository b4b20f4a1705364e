"""Triton kernels compiled ahead of time, with `triton.compile` alone: no GPU and no driver is asked."""

import functools
import importlib.util
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

TYPES = {
    np.dtype(dtype): name
    for dtype, name in {
        np.float32: "fp32", np.float64: "fp64", np.float16: "fp16", ml_dtypes.bfloat16: "bf16", np.int32: "i32",
        np.int64: "i64", np.int16: "i16", np.int8: "i8", np.uint8: "u8", np.uint32: "u32", np.bool_: "i1",
    }.items()
}  # fmt: skip

LOCK = threading.RLock()
"""Held while Triton compiles: its language module is global, and an interpreter of kernels changes it meanwhile."""

# jaxlib before 0.11.1 assembles the PTX with CUDA's own assembler, and that of CUDA 13.0 knows versions up to 9.0; the
# oldest that has all instructions of an architecture is asked for.
_PTX_VERSION = 87
_LATER_PTX = {103: 88, 121: 88}


class Target(NamedTuple):
    """What to compile for: Triton's backend, its architecture and threads of a warp."""

    backend: str
    arch: int | str
    warp: int = 32


class Options(NamedTuple):
    """How to compile: warps of a program, stages of its loops' pipelines, whether `tl.device_assert` is compiled in."""

    warps: int = 4
    stages: int = 1
    asserts: bool = False
    registers: int | None = None
    """Of a thread, at most. The assembler spills a few to have room for more programs, which a persistent kernel has
    not; 255 tells it not to."""


class Compiled(NamedTuple):
    """A kernel for one GPU."""

    name: str
    text: str
    """PTX; AMD's assembly."""
    binary: bytes
    shared_memory: int
    scratch_bytes: int
    scratch_alignment: int


def problem() -> str | None:
    """Why no Triton kernel can be compiled here, or None."""
    if importlib.util.find_spec("triton") is None:
        return 'Triton is not installed: pip install "llmasos_xla[gpu]", or implementation="xla"'
    return None


def compile_kernel(
    kernel: Any, pointers: Mapping[str, np.dtype], constants: Mapping[str, Any], target: Target, options: Options
) -> Compiled:
    """The kernel for those types of its pointers and those constants; the same request is compiled once.

    Raises:
        RuntimeError: if Triton refuses; it says what was compiled.
    """
    return _compiled(
        kernel, tuple((n, TYPES[np.dtype(d)]) for n, d in pointers.items()), tuple(constants.items()), target, options
    )


@functools.cache
def _compiled(kernel: Any, pointers: tuple, constants: tuple, target: Target, o: Options) -> Compiled:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, values = dict(pointers), dict(constants)
    names = [p.name for p in kernel.jit.params]
    if set(names) != types.keys() | values.keys():
        raise ValueError(f"{kernel}: has parameters {names}, came {[*types, *values]}")
    signature = {n: "constexpr" if n in values else "*" + types[n] for n in names}
    # Buffers of XLA start at multiples of 16 bytes at least.
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in types}
    asked = {"num_warps": o.warps, "num_stages": o.stages, "enable_fp_fusion": True}
    if target.backend == "cuda":
        asked["ptx_version"] = _LATER_PTX.get(int(target.arch), _PTX_VERSION)
        if o.registers is not None:
            asked["maxnreg"] = o.registers
    if o.asserts:
        asked |= {"debug": True, "sanitize_overflow": False}
    try:
        with LOCK, knobs.compilation.scope():
            # Lines of the source are a third of the text, which XLA hashes at each launch.
            knobs.compilation.disable_line_info = True
            source = ASTSource(kernel.jit, signature, values, attributes)
            made = triton.compile(source, target=GPUTarget(*target), options=asked)
    except Exception as error:
        raise RuntimeError(f"{kernel}: Triton cannot compile {signature} with {values}, {o} for {target}") from error
    m = made.metadata
    text, binary = ("ptx", "cubin") if target.backend == "cuda" else ("amdgcn", "hsaco")
    scratch = getattr(m, "global_scratch_size", 0) or 0, getattr(m, "global_scratch_align", 1) or 1
    return Compiled(m.name, made.asm[text], made.asm[binary], m.shared, *scratch)
