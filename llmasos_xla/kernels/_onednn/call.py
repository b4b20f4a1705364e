"""A oneDNN computation as a JAX primitive.

An `Operation` is what one file beside an op (`conv/onednn.py`) says of a computation: its results, how oneDNN's plan
for it is made, the same in plain JAX, and its transposes if it is linear in each array. `call` binds it. On CPU the
program holds one foreign call, which names its plan by the spec as text, so that a program from JAX's persistent cache
finds or makes its plan in any process. The plain JAX version stands in the program instead

- on every other platform;
- in what `jax.export` writes, which is to run where this package is not installed;
- where an array is empty: there is nothing to compute;
- where XLA partitions one program over several devices: it could only gather what a foreign call reads. Inside
  `jax.shard_map` each device calls oneDNN on its own part.

An implementation asked for by name stays the foreign call in an export and in a partitioned program.
"""

import ctypes
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import core
from jax.extend import core as extend_core
from jax.interpreters import ad, batching, mlir

from llmasos_xla.compiling import FLOPS
from llmasos_xla.kernels._onednn.descriptors import Builder, Refused
from llmasos_xla.kernels._onednn.library import TARGET, problem
from llmasos_xla.kernels._onednn.prototypes import MAKER

Spec = Any  # a NamedTuple of ints, strings, booleans and tuples of them
Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One computation that oneDNN does.

    Attributes:
        name: unique, as it stands in programs and errors.
        spec: the NamedTuple class of its static description.
        results: shapes and dtypes of the results.
        build: adds its regions and steps to a `Builder`; None for one that is plain JAX wherever it runs, and is there
            for its transpose.
        xla: the same in plain JAX, arrays to a tuple of arrays.
        batch: under vmap, `(spec, axis size, arrays, batch axes, named) -> (results, their batch axes)`, None for an
            array that is not mapped; None for the plain JAX version under vmap.
        jvp: `(spec, primals, tangents, named) -> (results, their tangents)`, a tangent None where it is zero; None for
            the plain JAX version's.
        transpose: of an operation that is linear in some of its arrays, `(spec, arrays, cotangents, named) ->
            cotangents of the arrays`, with None in `arrays` where a cotangent is sought.
        guard: `(spec, *arrays) -> boolean scalar`, False for values that oneDNN treats unlike XLA: the plain JAX
            version then runs; None where there are no such values.
        flops: floating point operations of one call; None where they do not count.
    """

    name: str
    spec: type
    results: Callable[[Spec], Sequence[jax.ShapeDtypeStruct]]
    build: Callable[[Builder, Spec], None] | None
    xla: Callable[..., Arrays]
    batch: Callable[..., tuple[Arrays, Sequence[int]]] | None = None
    jvp: Callable[..., tuple[Arrays, Arrays]] | None = None
    transpose: Callable[..., Sequence[Any]] | None = None
    guard: Callable[..., Any] | None = None
    flops: Callable[[Spec], float] | None = None


OPERATIONS: dict[str, Operation] = {}


def operation(*args: Any, **kwargs: Any) -> Operation:
    """Makes an operation and enters it in `OPERATIONS`."""
    new = Operation(*args, **kwargs)
    OPERATIONS[new.name] = new
    return new


class Prepared(NamedTuple):
    """What a program must know of a plan."""

    text: str
    scratch_bytes: int
    argument_bytes: tuple[int, ...]
    """How much the plan reads of each argument."""
    result_bytes: tuple[int, ...]
    implementations: tuple[str, ...]
    """oneDNN's names of what its steps run, "brgconv:avx512_core"."""


def call(op: Operation, spec: Spec, *arrays: Any, named: bool = False) -> tuple[jax.Array, ...]:
    """Computes the operation of the arrays. `named`: asked for by name, so never replaced by the plain JAX version."""
    return tuple(_call_p.bind(*_same_manual_axes(arrays), op=op.name, spec=spec, named=named))


def unfit(*operands: Any) -> str | None:
    """Why no foreign call can take these operands (arrays or `jax.ShapeDtypeStruct`), or None."""
    for a in operands:
        if not all(isinstance(n, int) for n in a.shape):
            return "a size is symbolic"
        if 0 in a.shape:
            return "an array is empty"
        sharding = getattr(jax.typeof(a), "sharding", None) if isinstance(a, jax.Array) else None
        if any(axis is not None for axis in getattr(sharding, "spec", None) or ()):
            return "operands are sharded over an explicit mesh; XLA can partition its own operations only"
    return None


def refusal(op: Operation, spec: Spec) -> str | None:
    """Why oneDNN cannot do this here, or None. Makes the plan, which the call then finds."""
    why = problem()
    if why is not None:
        return why
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
        if name not in OPERATIONS:
            raise Refused(f"there is no operation {name!r} in this process: import llmasos_xla.kernels before")
        op = OPERATIONS[name]
        _build(op, op.spec(*map(_hashable, values)))
    except Exception as error:
        reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        ctypes.memmove(why, reason.encode()[: size - 1] + b"\0", min(len(reason.encode()), size - 1) + 1)
        return 1
    return 0


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


# The JAX primitive.

_call_p = extend_core.Primitive("onednn")
_call_p.multiple_results = True


def _flops(*, op: str, spec: Spec, named: bool) -> float:
    count = OPERATIONS[op].flops
    return 0.0 if count is None else count(spec)


FLOPS[_call_p.name] = _flops


@functools.partial(jax.jit, static_argnames=("op", "spec", "named"))
def _eager(*arrays: Any, op: str, spec: Spec, named: bool) -> Any:
    return _call_p.bind(*arrays, op=op, spec=spec, named=named)


@_call_p.def_impl
def _impl(*arrays: Any, **static: Any) -> Any:
    with jax.disable_jit(False):  # there is no other way to run it
        return _eager(*arrays, **static)


@_call_p.def_abstract_eval
def _abstract(*avals: Any, op: str, spec: Spec, named: bool) -> list[Any]:
    like = avals[0]
    out = []
    for r in OPERATIONS[op].results(spec):
        sharding = jax.sharding.NamedSharding(like.sharding.mesh, jax.sharding.PartitionSpec(*[None] * len(r.shape)))
        out.append(core.ShapedArray(r.shape, r.dtype, sharding=sharding, manual_axis_type=like.manual_axis_type))
    return out


def _same_manual_axes(arrays: Arrays) -> list[Any]:
    """Inside `jax.shard_map` all operands must vary over the same mesh axes."""
    varying = [getattr(jax.typeof(a), "mat", None) for a in arrays]
    axes = frozenset().union(*(v.varying for v in varying if v is not None))
    if not axes:
        return list(arrays)
    return [
        jax.lax.pcast(a, tuple(axes - v.varying), to="varying") if v is not None and axes - v.varying else a
        for a, v in zip(arrays, varying)
    ]


def _plain(*arrays: Any, op: str, spec: Spec, named: bool) -> Arrays:
    return OPERATIONS[op].xla(spec, *arrays)


_lower_plain = mlir.lower_fun(_plain, multiple_results=True)


def _lower_elsewhere(ctx: Any, *operands: Any, op: str, spec: Spec, named: bool) -> Any:
    if named and not ctx.module_context.lowering_parameters.for_export:
        raise NotImplementedError(
            f"implementation='onednn' cannot run: {op} was asked for by name, and the program is compiled for "
            f"{', '.join(ctx.module_context.platforms)}; oneDNN runs on cpu. Use implementation=None"
        )
    return _lower_plain(ctx, *operands, op=op, spec=spec, named=named)


def _lower_cpu(ctx: Any, *operands: Any, op: str, spec: Spec, named: bool) -> Any:
    if OPERATIONS[op].build is None:
        return _lower_plain(ctx, *operands, op=op, spec=spec, named=named)
    context = ctx.module_context
    plain = functools.partial(_lower_plain, ctx, *operands, op=op, spec=spec, named=named)
    if any(aval.size == 0 for aval in (*ctx.avals_in, *ctx.avals_out)):
        return plain()
    if not named and (context.lowering_parameters.for_export or _partitioned(context.axis_context)):
        return plain()
    prepared = problem() or prepare(OPERATIONS[op], spec)
    if isinstance(prepared, str):
        if named:
            raise NotImplementedError(f"implementation='onednn' cannot run: {op}: {prepared}")
        return plain()
    _check_sizes(op, spec, "argument", ctx.avals_in, prepared.argument_bytes)
    _check_sizes(op, spec, "result", ctx.avals_out, prepared.result_bytes)
    lower = _lower_foreign if OPERATIONS[op].guard is None else _lower_guarded
    return lower(ctx, *operands, op=op, spec=spec, named=named)


def _lower_foreign(ctx: Any, *operands: Any, op: str, spec: Spec, named: bool) -> Any:
    prepared = prepare(OPERATIONS[op], spec)
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
    operation = OPERATIONS[op]
    assert operation.guard is not None
    return jax.lax.cond(
        operation.guard(spec, *arrays),
        lambda *a: tuple(_foreign_p.bind(*a, op=op, spec=spec, named=named)),
        lambda *a: tuple(operation.xla(spec, *a)),
        *arrays,
    )


_lower_guarded = mlir.lower_fun(_guarded, multiple_results=True)


def _partitioned(axis_context: Any) -> bool:
    """Whether XLA will split the program over devices by itself, at least along one axis of its mesh."""
    mesh = getattr(axis_context, "mesh", None)
    if mesh is None:
        return getattr(axis_context, "num_devices", 1) > 1
    return any(size > 1 for axis, size in mesh.shape.items() if axis not in axis_context.manual_axes)


mlir.register_lowering(_call_p, _lower_elsewhere)
mlir.register_lowering(_call_p, _lower_cpu, platform="cpu")

# What is left of the primitive behind a guard: the foreign call alone.
_foreign_p = extend_core.Primitive("onednn_foreign")
_foreign_p.multiple_results = True
_foreign_p.def_abstract_eval(_abstract)
mlir.register_lowering(_foreign_p, _lower_foreign, platform="cpu")


def _batch(arrays: Arrays, dims: Sequence[Any], *, op: str, spec: Spec, named: bool) -> tuple[Arrays, Any]:
    operation = OPERATIONS[op]
    if operation.batch is not None:
        size = next(a.shape[d] for a, d in zip(arrays, dims) if d is not None)
        return operation.batch(spec, size, arrays, dims, named)
    results = jax.vmap(lambda *a: tuple(operation.xla(spec, *a)), dims)(*arrays)
    return results, [0] * len(results)


batching.primitive_batchers[_call_p] = _batch


def _jvp(primals: Arrays, tangents: Arrays, *, op: str, spec: Spec, named: bool) -> tuple[Arrays, Arrays]:
    operation = OPERATIONS[op]
    if operation.jvp is not None:
        given = [None if isinstance(t, ad.Zero) else t for t in tangents]
        results, out = operation.jvp(spec, list(primals), given, named)
        return results, [ad.Zero(jax.typeof(r).to_tangent_aval()) if t is None else t for r, t in zip(results, out)]
    filled = tuple(ad.instantiate_zeros(t) for t in tangents)
    return jax.jvp(lambda *a: tuple(operation.xla(spec, *a)), tuple(primals), filled)


def bilinear_jvp(op: Operation, spec: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    """The derivative of an operation that is linear in each of its arrays alone."""
    parts = [
        call(op, spec, *primals[:i], t, *primals[i + 1 :], named=named) for i, t in enumerate(tangents) if t is not None
    ]
    out = call(op, spec, *primals, named=named)
    return out, [functools.reduce(jax.numpy.add, terms) for terms in zip(*parts)]


def _transpose(cotangents: Arrays, *arrays: Any, op: str, spec: Spec, named: bool) -> Sequence[Any]:
    operation = OPERATIONS[op]
    if operation.transpose is None:
        raise NotImplementedError(f"{op}: is not linear")
    if all(isinstance(ct, ad.Zero) for ct in cotangents):
        return [None] * len(arrays)
    known = [None if ad.is_undefined_primal(a) else a for a in arrays]
    return operation.transpose(spec, known, [ad.instantiate_zeros(ct) for ct in cotangents], named)


ad.primitive_jvps[_call_p] = _jvp
ad.primitive_transposes[_call_p] = _transpose
