"""Triton as an engine: an operation's `build` is `(spec, *arrays) -> results`, JAX code with launches in it."""

from typing import Any

from jax.interpreters import mlir

from llmasos_xla.kernels._operation import Arrays, Engine, Operation, Spec
from llmasos_xla.kernels._triton.compiler import problem
from llmasos_xla.kernels._triton.devices import current


def refusal() -> str | None:
    """Why no kernel can run on the GPU at hand, or None."""
    device = current()
    return problem() or (device if isinstance(device, str) else None)


def _built(*arrays: Any, op: str, spec: Spec, named: bool) -> Arrays:
    build = ENGINE.operations[op].build
    assert build is not None
    return build(spec, *arrays)


_lower_built = mlir.lower_fun(_built, multiple_results=True)


def lower(ctx: Any, operands: Arrays, op: Operation, spec: Spec, named: bool) -> Any:
    """The operation as its launches and the JAX code around them, or why it cannot be."""
    return problem() or _lower_built(ctx, *operands, op=op.name, spec=spec, named=named)


ENGINE = Engine("triton", "cuda", lower)
