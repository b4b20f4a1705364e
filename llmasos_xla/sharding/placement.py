"""Placement: a mesh, and where each array of a model lies on it.

Model code never names a device. While a step is traced for a mesh, `using(placement)` is in force, and the few layers
that care (ring attention, a scan over layers) ask `current()`; everything else is XLA's to partition.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmasos_xla.sharding.mesh import BATCH_AXES, MeshSpec
from llmasos_xla.sharding.rules import Layout, layout

_CURRENT: contextvars.ContextVar["Placement | None"] = contextvars.ContextVar("placement traced for", default=None)


@final
class Placement:
    """Where the arrays of a model, its optimizer and its batches lie on a mesh.

    Args:
        spec: the parts of each strategy, resolved for the devices.
        mesh: the mesh, by default `spec.mesh()` on all devices.
        stacked: beginnings of the names of arrays whose first axis counts layers.
    """

    def __init__(self, spec: MeshSpec, mesh: Mesh | None = None, stacked: Sequence[str] = ()):
        if mesh is None:
            spec = spec.over(jax.device_count())
            mesh = spec.mesh()
        self.spec, self.mesh, self.stacked = spec, mesh, tuple(stacked)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes over which rows are split."""
        return tuple(axis for axis in BATCH_AXES if getattr(self.spec, axis) > 1)

    @property
    def divides_rows_only(self) -> bool:
        """Whether every device holds whole samples, so that an operation on rows needs no other device."""
        return self.spec.devices == self.spec.batch_parts

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return self._named(PartitionSpec())

    def layout(self, name: str, shape: Sequence[int]) -> Layout:
        """Where the array of that name lies, and why."""
        return layout(name, shape, self.spec, stacked=name.startswith(self.stacked) if self.stacked else False)

    def shardings(self, tree: Any, arrays: Mapping[str, Any]) -> Any:
        """NamedShardings for a tree of arrays, or of `jax.ShapeDtypeStruct`.

        What stands under the name of one of `arrays` (parameters and state by name) and has its shape lies as that
        does: so does an optimizer's state. All else is whole on every device.
        """
        layouts: dict[tuple[str, tuple[int, ...]], NamedSharding] = {}

        def of(path: tuple, leaf: Any) -> NamedSharding:
            names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
            name = next((n for n in reversed(names) if n in arrays), None)
            if name is None or not np.ndim(leaf) or np.shape(leaf) != np.shape(arrays[name]):
                return self.replicated
            key = (name, tuple(np.shape(leaf)))
            if key not in layouts:
                layouts[key] = self._named(self.layout(*key).stored)
            return layouts[key]

        return jax.tree_util.tree_map_with_path(of, tree)

    def rows(self, shape: Sequence[int], axis: int = 0, time: int | None = None) -> NamedSharding:
        """For an array of a batch whose rows lie along `axis`; an axis of `time` steps behind it is split over seq.

        Raises ValueError if the steps do not divide.
        """
        parts: list[Any] = [None] * axis + [self.batch_axes or None]
        seq = self.spec.seq
        if seq > 1 and time is not None and len(shape) > axis + 1 and shape[axis + 1] == time:
            if time % seq:
                raise ValueError(
                    f"shard: axis 1 of a batch, its time of {time} steps, does not divide into seq={seq} parts; pad "
                    f"the rows to {-(-time // seq) * seq} steps, or choose another size"
                )
            parts.append("seq")
        return self._named(PartitionSpec(*parts))

    def batch(self, batch: Mapping[str, Any], axis: int = 0) -> dict[str, Any]:
        """NamedShardings of a batch, `{"x": ..., "y": ..., "weight": ..., "count": ...}`: rows lie along `axis`.

        With seq, axis 1 of x is its time (the longest one, of several inputs), and of all that has as many steps.
        """
        shapes = [np.shape(a) for a in jax.tree.leaves(batch["x"])]
        time = max((shape[axis + 1] for shape in shapes if len(shape) > axis + 1), default=None)

        def of(a: Any) -> NamedSharding:
            return self.replicated if len(np.shape(a)) <= axis else self.rows(np.shape(a), axis, time)

        return {name: jax.tree.map(of, part) for name, part in batch.items()}

    def gathers(self, arrays: Mapping[str, Any]) -> bool:
        """Whether any of these arrays by name is stored otherwise than it is used, and is to be gathered again.

        Not of a model with a stack of layers, which gathers layer by layer: a policy of what to keep that is wrapped
        around it would hold for its layers too, in the place of their own.
        """
        return not self.stacked and any(
            found.stored != found.used for found in (self.layout(n, np.shape(a)) for n, a in arrays.items())
        )

    def gathered(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays as the step uses them: what fsdp and pipe split is put together, stacks of layers excepted.

        The cotangent goes back to where the array is stored: the sum over devices is scattered, not copied.
        """
        return {
            name: a if self.is_stacked(name) else self._gathered(a, self.layout(name, a.shape))
            for name, a in arrays.items()
        }

    def gathered_layer(self, prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """As `gathered`, for the arrays of one layer out of a stack: `{"attention/query/kernel": ...}` of the stack
        named `prefix`, inside of a scan over layers."""
        out = {}
        for name, a in arrays.items():
            whole = self.layout(f"{prefix}/{name}", (self.spec.pipe, *a.shape))
            out[name] = self._gathered(a, Layout(PartitionSpec(*whole.stored[1:]), PartitionSpec(*whole.used[1:])))
        return out

    def whole_features(self, x: jax.Array) -> jax.Array:
        """An activation [batch, time, features] with rows and time where a batch has them, and features whole.

        For what many products read and are added to. XLA might keep it in parts, and gather it for each of them.
        """
        mesh = self._mesh_here()
        lies = PartitionSpec(self.batch_axes or None, "seq" if self.spec.seq > 1 else None)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, lies))

    def whole_steps(self, x: jax.Array) -> jax.Array:
        """An activation [batch, time, ...] with all steps on each device of seq; rows and features lie as XLA has them.

        For what XLA's partitioner divides wrongly: convolutions.
        """
        if self.spec.seq == 1:
            return x
        free = PartitionSpec.UNCONSTRAINED
        lies = PartitionSpec(free, None, *[free] * (x.ndim - 2))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh_here(), lies))

    def is_stacked(self, name: str) -> bool:
        """Whether the first axis of that array counts layers."""
        return bool(self.stacked) and name.startswith(self.stacked)

    def table(self, arrays: Mapping[str, Any]) -> str:
        """A line for each array: shape, where it lies, and what stands against its rule."""
        rows = []
        for name, a in arrays.items():
            found = self.layout(name, np.shape(a))
            axes = ", ".join(str(entry) for entry in found.stored) or "whole"
            rows.append((name, str(tuple(np.shape(a))), axes, found.note))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows
        )

    def _named(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _gathered(self, a: jax.Array, found: Layout) -> jax.Array:
        if found.stored == found.used:
            return a
        mesh = self._mesh_here()
        return _gather(a, NamedSharding(mesh, found.used), NamedSharding(mesh, found.stored))

    def _mesh_here(self) -> Any:
        # Inside of a shard_map over some axes, a pipeline's, the mesh is that of the others.
        outer = jax.sharding.get_abstract_mesh()
        return self.mesh if outer.empty else outer

    def __repr__(self) -> str:
        return f"Placement({self.spec!r} on {self.mesh.devices.size} {self.mesh.devices.flat[0].platform} devices)"


def current() -> Placement | None:
    """The placement that is traced for, or None on one device."""
    return _CURRENT.get()


@contextlib.contextmanager
def using(placement: Placement | None) -> Iterator[None]:
    """Traces what is inside for that placement."""
    token = _CURRENT.set(placement)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def like(tree: Any, shardings: Any) -> Any:
    """The tree's shapes and dtypes, lying as a tree of shardings says; one sharding may stand for a whole branch."""

    def one(sharding: Any, branch: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), branch)

    return jax.tree.map(one, shardings, tree)


def gathered_again(function: Callable) -> Callable:
    """The function such that its derivative gathers weights anew rather than keeping them whole since the forward pass.

    All other intermediate values are kept: nothing else is computed twice.
    """
    return jax.checkpoint(function, policy=_all_but_gathered)  # pyright: ignore[reportPrivateImportUsage]


# What only lays values out anew is not kept either: of a gathered weight it would be the whole weight once more.
_NOT_KEPT = {"sharding_constraint", "reshape", "transpose", "squeeze"}


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    if primitive.name == "custom_vjp_call":
        # Within a scan `_gather` is seen as the call that it is; other such calls are worth keeping.
        return any(equation.primitive.name != "sharding_constraint" for equation in params["call_jaxpr"].jaxpr.eqns)
    return primitive.name not in _NOT_KEPT


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(a: jax.Array, used: NamedSharding, stored: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(a, used)


def _gather_forward(a: jax.Array, used: NamedSharding, stored: NamedSharding) -> tuple[jax.Array, None]:
    return _gather(a, used, stored), None


def _gather_backward(used: NamedSharding, stored: NamedSharding, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(cotangent, stored),)


_gather.defvjp(_gather_forward, _gather_backward)
