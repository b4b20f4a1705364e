"""oneDNN as an engine: plans of its primitives, made when a program is compiled and run by one foreign call.

The call names its plan by the spec as text, so that a program from JAX's persistent cache finds or makes its plan in
any process. An operation's `build` is `(Builder, spec)` and adds the plan's regions and steps.
"""

import ctypes
import functools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from jax import core
from jax.extend import core as extend_core
from jax.interpreters import mlir

from llmasos_xla.kernels._onednn.descriptors import Builder, Refused
from llmasos_xla.kernels._onednn.library import TARGET, problem
from llmasos_xla.kernels._onednn.prototypes import MAKER
from llmasos_xla.kernels._operation import Arrays, Engine, Operation, Spec


class Prepared(NamedTuple):
    """What a program must know of a plan."""

    text: str
    scratch_bytes: int
    argument_bytes: tuple[int, ...]
    """How much the plan reads of each argument."""
    result_bytes: tuple[int, ...]
    implementations: tuple[str, ...]
    """oneDNN's names of what its steps run, "brgconv:avx512_core"."""


def refusal(op: Operation, spec: Spec) -> str | None:
    """Why oneDNN cannot do this here, or None. Makes the plan, which the call then finds."""
    why = problem()
    if why is not None:
        return why
    if any(map(jax.export.is_symbolic_dim, jax.tree.leaves(spec))):
        return "a size is symbolic"
    prepared = prepare(op, spec)
    return prepared if isinstance(prepared, str) else None


@functools.lru_cache(maxsize=4096)
def prepare(op: Operation, spec: Spec) -> Prepared | str:
    """The plan of a call, made if need be, or why it cannot be made.

    The handler keeps the 1,024 plans that were used last, each about 65 KiB, and asks for one that was crowded out by
    its text. Making one takes one or two milliseconds.
    """
    try:
        return _build(op, spec)
    except Refused as why:
        return str(why)


def _build(op: Operation, spec: Spec) -> Prepared:
    if op.build is None:
        raise Refused(f"{op.name} is plain JAX")
    text = json.dumps([op.name, *spec])
    builder = Builder()
    try:
        op.build(builder, spec)
        reach = builder.reach("arguments"), builder.reach("results")
        builder.put(text, len(op.results(spec)))
    finally:
        builder.close()
    return Prepared(text, builder.scratch_bytes, *reach, tuple(builder.implementations))


@MAKER
def make(text: bytes, why: int, size: int) -> int:
    """Makes the plan that a call needs, in the thread of the call; the reason goes to `why` if it cannot."""
    try:
        name, *values = json.loads(text)
        if name not in ENGINE.operations:
            raise Refused(f"there is no operation {name!r} in this process: import llmasos_xla.kernels before")
        op = ENGINE.operations[name]
        _build(op, op.spec(*map(_hashable, values)))
    except Exception as error:
        reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        ctypes.memmove(why, reason.encode()[: size - 1] + b"\0", min(len(reason.encode()), size - 1) + 1)
        return 1
    return 0


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _lower(ctx: Any, operands: Arrays, op: Operation, spec: Spec, named: bool) -> Any:
    prepared = problem() or prepare(op, spec)
    if isinstance(prepared, str):
        return prepared
    _check_sizes(op.name, spec, "argument", ctx.avals_in, prepared.argument_bytes)
    _check_sizes(op.name, spec, "result", ctx.avals_out, prepared.result_bytes)
    lower = _lower_foreign if op.guard is None else _lower_guarded
    return lower(ctx, *operands, op=op.name, spec=spec, named=named)


def _lower_foreign(ctx: Any, *operands: Any, op: str, spec: Spec, named: bool) -> Any:
    prepared = prepare(ENGINE.operations[op], spec)
    assert isinstance(prepared, Prepared)
    scratch = core.ShapedArray((prepared.scratch_bytes,), np.dtype(np.uint8))
    rule = jax.ffi.ffi_lowering(TARGET)
    return rule(ctx.replace(avals_out=[*ctx.avals_out, scratch]), *operands, spec=prepared.text)[:-1]


def _check_sizes(op: str, spec: Spec, side: str, avals: Sequence[Any], touched: Sequence[int]) -> None:
    """The plan trusts its addresses, so an operation and its call must agree on every array here."""
    for i, least in enumerate(touched):
        has = math.prod(avals[i].shape) * avals[i].dtype.itemsize if i < len(avals) else 0
        if has < least:
            came = avals[i].str_short() if i < len(avals) else "missing"
            raise ValueError(f"{op}: {side} {i} is {came}, {has} bytes; the plan for {spec} takes {least} bytes there")


def _guarded(*arrays: Any, op: str, spec: Spec, named: bool) -> Any:
    operation = ENGINE.operations[op]
    assert operation.guard is not None
    return jax.lax.cond(
        operation.guard(spec, *arrays),
        lambda *a: tuple(_foreign_p.bind(*a, op=op, spec=spec, named=named)),
        lambda *a: tuple(operation.xla(spec, *a)),
        *arrays,
    )


_lower_guarded = mlir.lower_fun(_guarded, multiple_results=True)

ENGINE = Engine("onednn", "cpu", _lower)

# What is left of the primitive behind a guard: the foreign call alone.
_foreign_p = extend_core.Primitive("onednn_foreign")
_foreign_p.multiple_results = True
_foreign_p.def_abstract_eval(ENGINE.abstract)
mlir.register_lowering(_foreign_p, _lower_foreign, platform="cpu")
