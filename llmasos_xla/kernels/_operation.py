"""A computation as a JAX primitive that has an implementation of its own on one platform and plain JAX on all others.

An `Engine` is such a platform's way to run things: oneDNN on cpu, Triton on cuda. An `Operation` is what one file
beside an op (`conv/onednn.py`) says of a computation: its results, how the engine computes it, the same in plain JAX,
its derivative, and its transposes if it is linear in each array. `Engine.call` binds it. The plain JAX version stands
in the program instead of the engine's own

- on every other platform;
- in what `jax.export` writes, which is to run where this package is not installed;
- where an array is empty: there is nothing to compute;
- where XLA partitions one program over several devices: it could only gather what a foreign call reads. Inside
  `jax.shard_map` each device runs the engine on its own part.

An implementation asked for by name stays the engine's own in an export and in a partitioned program.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import core
from jax.extend import core as extend_core
from jax.interpreters import ad, batching, mlir

from llmasos_xla.compiling import FLOPS

Spec = Any  # a NamedTuple of ints, strings, booleans and tuples of them
Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One computation that an engine does.

    Attributes:
        name: unique in its engine, as it stands in programs and errors.
        spec: the NamedTuple class of its static description.
        results: shapes and dtypes of the results.
        build: how the engine computes it, in the engine's own terms; None for one that is plain JAX wherever it runs,
            and is there for its transpose.
        xla: the same in plain JAX, `(spec, *arrays)` to a tuple of arrays.
        batch: under vmap, `(spec, axis size, arrays, batch axes, named) -> (results, their batch axes)`, None for an
            array that is not mapped; None for the plain JAX version under vmap.
        jvp: `(spec, primals, tangents, named) -> (results, their tangents)`, a tangent None where it is zero; None for
            the plain JAX version's.
        transpose: of an operation that is linear in some of its arrays, `(spec, arrays, cotangents, named) ->
            cotangents of the arrays`, with None in `arrays` where a cotangent is sought.
        guard: `(spec, *arrays) -> boolean scalar`, False for values that the engine treats unlike XLA: the plain JAX
            version then runs; None where there are no such values.
        flops: floating point operations of one call; None where they do not count.
    """

    name: str
    spec: type
    results: Callable[[Spec], Sequence[jax.ShapeDtypeStruct]]
    build: Callable[..., Any] | None
    xla: Callable[..., Arrays]
    batch: Callable[..., tuple[Arrays, Sequence[int]]] | None = None
    jvp: Callable[..., tuple[Arrays, Arrays]] | None = None
    transpose: Callable[..., Sequence[Any]] | None = None
    guard: Callable[..., Any] | None = None
    flops: Callable[[Spec], float] | None = None


_ENGINES: "list[Engine]" = []

Lower = Callable[[Any, Arrays, Operation, Spec, bool], Any]


class Engine:
    """The operations of one platform's own implementation, and the JAX primitive that they are.

    Args:
        name: the public name of the implementation, "onednn".
        platform: where it runs, as JAX's lowering rules name it: "cpu", "cuda".
        lower: `(lowering context, operands, operation, spec, named) -> results` for that platform, or a string that
            says why this operation cannot run here.
    """

    def __init__(self, name: str, platform: str, lower: Lower):
        self.name, self.platform, self._lower_own = name, platform, lower
        self.operations: dict[str, Operation] = {}
        _ENGINES.append(self)
        self.elsewhere: Lower | None = None
        """As `lower`, on every other platform: for tests that run the engine's own version interpreted."""
        self.primitive = p = extend_core.Primitive(name)
        p.multiple_results = True
        self._eager = jax.jit(p.bind, static_argnames=("op", "spec", "named"))
        p.def_impl(self._impl)
        p.def_abstract_eval(self.abstract)
        self.lower_plain = mlir.lower_fun(self._plain, multiple_results=True)
        mlir.register_lowering(p, self._lower_elsewhere)
        mlir.register_lowering(p, self._lower, platform=platform)
        batching.primitive_batchers[p] = self._batch
        ad.primitive_jvps[p] = self._jvp
        ad.primitive_transposes[p] = self._transpose
        FLOPS[p.name] = self._flops

    def operation(self, *args: Any, **kwargs: Any) -> Operation:
        """Makes an operation of this engine."""
        new = Operation(*args, **kwargs)
        self.operations[new.name] = new
        return new

    def call(self, op: Operation, spec: Spec, *arrays: Any, named: bool = False) -> tuple[jax.Array, ...]:
        """Computes the operation of the arrays.

        `named`: asked for by name, so never replaced by the plain JAX version.
        """
        return tuple(self.primitive.bind(*_same_manual_axes(arrays), op=op.name, spec=spec, named=named))

    def bilinear_jvp(
        self, op: Operation, spec: Spec, primals: Arrays, tangents: Arrays, named: bool
    ) -> tuple[Arrays, Arrays]:
        """The derivative of an operation that is linear in each of its arrays alone."""
        parts = [
            self.call(op, spec, *primals[:i], t, *primals[i + 1 :], named=named)
            for i, t in enumerate(tangents)
            if t is not None
        ]
        out = self.call(op, spec, *primals, named=named)
        return out, [functools.reduce(jax.numpy.add, terms) for terms in zip(*parts)]

    def abstract(self, *avals: Any, op: str, spec: Spec, named: bool) -> list[Any]:
        """The results' types, varying over the mesh axes that the operands vary over."""
        return [typed_like(avals[0], r) for r in self.operations[op].results(spec)]

    def _impl(self, *arrays: Any, **static: Any) -> Any:
        with jax.disable_jit(False):  # there is no other way to run it
            return self._eager(*arrays, **static)

    def _flops(self, *, op: str, spec: Spec, named: bool) -> float:
        count = self.operations[op].flops
        return 0.0 if count is None else count(spec)

    def _plain(self, *arrays: Any, op: str, spec: Spec, named: bool) -> Arrays:
        return self.operations[op].xla(spec, *arrays)

    def _lower_elsewhere(self, ctx: Any, *operands: Any, op: str, spec: Spec, named: bool) -> Any:
        if self.elsewhere is not None and self.operations[op].build is not None:
            return self.elsewhere(ctx, operands, self.operations[op], spec, named)
        if named and not ctx.module_context.lowering_parameters.for_export:
            platforms = ", ".join(ctx.module_context.platforms)
            raise NotImplementedError(
                f"implementation={self.name!r} cannot run: {op} was asked for by name, and the program is compiled for "
                f"{platforms}; {self.name} runs on {self.platform}. Use implementation=None"
            )
        return self.lower_plain(ctx, *operands, op=op, spec=spec, named=named)

    def _lower(self, ctx: Any, *operands: Any, op: str, spec: Spec, named: bool) -> Any:
        operation, context = self.operations[op], ctx.module_context
        plain = functools.partial(self.lower_plain, ctx, *operands, op=op, spec=spec, named=named)
        if operation.build is None or any(aval.size == 0 for aval in (*ctx.avals_in, *ctx.avals_out)):
            return plain()
        if not named and (context.lowering_parameters.for_export or _partitioned(context.axis_context)):
            return plain()
        lowered = self._lower_own(ctx, operands, operation, spec, named)
        if not isinstance(lowered, str):
            return lowered
        if named:
            raise NotImplementedError(f"implementation={self.name!r} cannot run: {op}: {lowered}")
        return plain()

    def _batch(self, arrays: Arrays, dims: Sequence[Any], *, op: str, spec: Spec, named: bool) -> tuple[Arrays, Any]:
        operation = self.operations[op]
        if operation.batch is not None:
            size = next(a.shape[d] for a, d in zip(arrays, dims) if d is not None)
            return operation.batch(spec, size, arrays, dims, named)
        results = jax.vmap(lambda *a: tuple(operation.xla(spec, *a)), dims)(*arrays)
        return results, [0] * len(results)

    def _jvp(self, primals: Arrays, tangents: Arrays, *, op: str, spec: Spec, named: bool) -> tuple[Arrays, Arrays]:
        operation = self.operations[op]
        if operation.jvp is not None:
            given = [None if isinstance(t, ad.Zero) else t for t in tangents]
            results, out = operation.jvp(spec, list(primals), given, named)
            return results, [ad.Zero(jax.typeof(r).to_tangent_aval()) if t is None else t for r, t in zip(results, out)]
        filled = tuple(ad.instantiate_zeros(t) for t in tangents)
        return jax.jvp(lambda *a: tuple(operation.xla(spec, *a)), tuple(primals), filled)

    def _transpose(self, cotangents: Arrays, *arrays: Any, op: str, spec: Spec, named: bool) -> Sequence[Any]:
        operation = self.operations[op]
        if operation.transpose is None:
            raise NotImplementedError(f"{op}: is not linear")
        if all(isinstance(ct, ad.Zero) for ct in cotangents):
            return [None] * len(arrays)
        known = [None if ad.is_undefined_primal(a) else a for a in arrays]
        return operation.transpose(spec, known, [ad.instantiate_zeros(ct) for ct in cotangents], named)


def plain_version(primitive: Any, params: Mapping[str, Any]) -> Callable[..., Arrays] | None:
    """What an equation of a traced program computes, as plain JAX; None where it is no engine's operation.

    For readers of programs that know JAX's own primitives alone: nothing but a lowering replaces an operation by
    itself. It holds for an implementation that was asked for by name, too.
    """
    for engine in _ENGINES:
        if primitive is engine.primitive:
            return functools.partial(engine.operations[params["op"]].xla, params["spec"])
    return None


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


def mapped(x: Any, axis: int | None, size: int) -> jax.Array:
    """The array with its axis that vmap maps in front, or repeated there: for rules of `batch`."""
    return jax.numpy.broadcast_to(x, (size, *x.shape)) if axis is None else jax.numpy.moveaxis(x, axis, 0)


def in_batch(x: Any, axis: int | None, size: int) -> jax.Array:
    """The array with that axis as part of its first, which is the batch."""
    front = mapped(x, axis, size)
    return front.reshape(-1, *front.shape[2:])


def typed_like(like: Any, result: jax.ShapeDtypeStruct) -> Any:
    """The type of a result that varies over the mesh axes of an operand."""
    sharding = jax.sharding.NamedSharding(like.sharding.mesh, jax.sharding.PartitionSpec(*[None] * len(result.shape)))
    return core.ShapedArray(result.shape, result.dtype, sharding=sharding, manual_axis_type=like.manual_axis_type)


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


def _partitioned(axis_context: Any) -> bool:
    """Whether XLA will split the program over devices by itself, at least along one axis of its mesh."""
    mesh = getattr(axis_context, "mesh", None)
    if mesh is None:
        return getattr(axis_context, "num_devices", 1) > 1
    return any(size > 1 for axis, size in mesh.shape.items() if axis not in axis_context.manual_axes)
