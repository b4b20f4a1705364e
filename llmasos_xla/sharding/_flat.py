"""The arrays of a pipeline's stages as flat buffers.

The devices of a pipeline run one program, in which an array has one shape. The arrays that a stage owns are therefore
laid out one after the other in a flat buffer, padded to the longest stage's.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Arrays = Mapping[str, jax.Array]

Buffers = dict[str, jax.Array]
"""A flat buffer for each dtype, by its name."""


class Rows(NamedTuple):
    """The rows start .. stop - 1 of the array `name`, as a part that a stage owns."""

    name: str
    start: int
    stop: int


Part = str | Rows
"""A whole array by its name, or rows of it."""


def name_of(part: Part) -> str:
    """The name of the array that a part is of."""
    return part if isinstance(part, str) else part.name


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of one stage lie in its buffers: one after the other, in the order given.

    Attributes:
        parts: the parts of arrays.
        shapes: their shapes.
        dtypes: their dtypes, by name.
    """

    parts: tuple[Part, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[Part], arrays: Mapping[str, Any]) -> "Layout":
        """The layout of those parts whose arrays are among `arrays`."""
        parts = tuple(part for part in parts if name_of(part) in arrays)
        taken = [(arrays[name_of(part)], part) for part in parts]
        shapes = tuple(a.shape if isinstance(p, str) else (p.stop - p.start, *a.shape[1:]) for a, p in taken)
        return cls(parts, shapes, tuple(jnp.dtype(a.dtype).name for a, _ in taken))

    def lengths(self) -> dict[str, int]:
        """Elements of each dtype."""
        total: dict[str, int] = {}
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            total[dtype] = total.get(dtype, 0) + math.prod(shape)
        return total

    def take(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """This stage's parts of a model's arrays, by name."""
        return {
            name_of(part): arrays[part] if isinstance(part, str) else arrays[part.name][part.start : part.stop]
            for part in self.parts
        }

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parts' shapes and dtypes, by name."""
        return {
            name_of(part): jax.ShapeDtypeStruct(shape, dtype)
            for part, shape, dtype in zip(self.parts, self.shapes, self.dtypes, strict=True)
        }

    def pack(self, taken: Mapping[str, jax.Array], lengths: Mapping[str, int], wide: bool = False) -> Buffers:
        """The parts in buffers of those lengths; `wide`: each dtype's buffer holds at least float32."""
        rows: dict[str, list[jax.Array]] = {dtype: [] for dtype in lengths}
        for part, dtype in zip(self.parts, self.dtypes, strict=True):
            rows[dtype].append(taken[name_of(part)].astype(accumulator(dtype) if wide else dtype).reshape(-1))
        return {
            dtype: padded(parts, lengths[dtype], accumulator(dtype) if wide else dtype) for dtype, parts in rows.items()
        }

    def unpack(self, buffers: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The inverse of `pack`."""
        at = dict.fromkeys(buffers, 0)
        taken = {}
        for part, shape, dtype in zip(self.parts, self.shapes, self.dtypes, strict=True):
            size = math.prod(shape)
            taken[name_of(part)] = buffers[dtype][at[dtype] : at[dtype] + size].reshape(shape)
            at[dtype] += size
        return taken


def accumulator(dtype: Any) -> Any:
    """The dtype in which gradients of arrays of `dtype` are summed: float32 at least."""
    return jnp.float64 if jnp.dtype(dtype).itemsize == 8 else jnp.float32


class Held(NamedTuple):
    """Arrays as the devices of a pipeline hold them; on one stage's devices without the leading axis of `own`."""

    own: Buffers
    """What the stages own, packed, [stages, length] for each dtype."""
    stacked: dict[str, jax.Array]
    """The stacked arrays by name."""


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a model's parameters, or its state, lie on the stages.

    Attributes:
        layouts: what each stage owns.
        stacked: shapes and dtypes of the stacked arrays, whole.
        specs: how arrays lie over the mesh axes that are left to XLA, while a stage computes.
        stored: how the buffers do.
        multiple: the buffers' lengths are multiples of it.
    """

    layouts: tuple[Layout, ...]
    stacked: dict[str, jax.ShapeDtypeStruct]
    specs: Mapping[str, P]
    stored: P
    multiple: int

    @functools.cached_property
    def lengths(self) -> dict[str, int]:
        """The length of each dtype's buffer: the longest stage's."""
        longest: dict[str, int] = {}
        for layout in self.layouts:
            for dtype, length in layout.lengths().items():
                longest[dtype] = max(-(-length // self.multiple) * self.multiple, longest.get(dtype, 0))
        return longest

    def hold(self, arrays: Arrays) -> Held:
        """The arrays as the stages hold them."""
        packed = [layout.pack(layout.take(arrays), self.lengths) for layout in self.layouts]
        own = {dtype: jnp.stack([buffers[dtype] for buffers in packed]) for dtype in self.lengths}
        return Held(own, {name: arrays[name] for name in self.stacked})

    def give(self, held: Held) -> dict[str, jax.Array]:
        """The inverse of `hold`; arrays that several stages own are added up."""
        found: dict[str, list[tuple[Part, jax.Array]]] = {}
        for number, layout in enumerate(self.layouts):
            taken = layout.unpack({dtype: buffer[number] for dtype, buffer in held.own.items()})
            for part in layout.parts:
                found.setdefault(name_of(part), []).append((part, taken[name_of(part)]))
        return dict(held.stacked) | {name: _whole(parts) for name, parts in found.items()}

    def store(self, held: Held) -> Held:
        """A stage's arrays between its computations."""
        own = {dtype: constrained(buffer, self.stored) for dtype, buffer in held.own.items()}
        return Held(own, {name: self._as_specified(name, a) for name, a in held.stacked.items()})

    def abstract(self, stage: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a stage's arrays."""
        count = len(self.layouts)
        rows = {n: jax.ShapeDtypeStruct((a.shape[0] // count, *a.shape[1:]), a.dtype) for n, a in self.stacked.items()}
        return {**self.layouts[stage].abstract(), **rows}

    def arrays(self, stage: int, held: Held) -> dict[str, jax.Array]:
        """A stage's arrays by name, for it to compute with.

        The buffers, and what is sliced from them, are whole on each device: slices of an axis that lies over several
        devices make XLA exchange borders by collective permutes, which wait for the devices of all stages and so must
        not stand in a branch.
        """
        own = self.layouts[stage].unpack({dtype: constrained(buffer, P()) for dtype, buffer in held.own.items()})
        return {**{name: self._as_specified(name, constrained(a, P())) for name, a in own.items()}, **held.stacked}

    def held(self, stage: int, arrays: Arrays, wide: bool = False) -> Held:
        """The inverse of `arrays`; `wide` as in `Layout.pack`."""
        own = {name: constrained(arrays[name], P()) for name in self.layouts[stage].abstract()}
        dtypes = {n: accumulator(a.dtype) if wide else a.dtype for n, a in self.stacked.items()}
        stacked = {name: arrays[name].astype(dtype) for name, dtype in dtypes.items()}
        return self.store(Held(self.layouts[stage].pack(own, self.lengths, wide), stacked))

    def zeros(self) -> Held:
        """Gradients of zero on one stage."""
        own = {dtype: jnp.zeros(length, accumulator(dtype)) for dtype, length in self.lengths.items()}
        shapes = {name: a for name, a in self.abstract(0).items() if name in self.stacked}
        return self.store(Held(own, {name: jnp.zeros(a.shape, accumulator(a.dtype)) for name, a in shapes.items()}))

    def _as_specified(self, name: str, a: jax.Array) -> jax.Array:
        return constrained(a, self.specs[name]) if name in self.specs else a


def constrained(a: jax.Array, spec: P) -> jax.Array:
    """The array, lying over the mesh axes that are left to XLA as `spec` says."""
    return jax.lax.with_sharding_constraint(a, spec)


def without(spec: P, axes: Sequence[str]) -> P:
    """A spec that leaves some mesh axes out.

    >>> without(P("pipe", ("fsdp", "tensor"), None), ["pipe", "fsdp"]) == P(None, "tensor", None)
    True
    """
    kept = [
        tuple(axis for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis and axis not in axes)
        for entry in spec
    ]
    return P(*(entry or None for entry in kept))


def padded(parts: Sequence[jax.Array], length: int, dtype: Any, rows: int | None = None) -> jax.Array:
    """The parts one after the other along the last axis, then zeros."""
    head = () if rows is None else (rows,)
    missing = length - sum(part.shape[-1] for part in parts)
    return jnp.concatenate([*parts, jnp.zeros((*head, missing), dtype)], axis=-1)


def _whole(parts: list[tuple[Part, jax.Array]]) -> jax.Array:
    rows = sorted((part.start, number) for number, (part, _) in enumerate(parts) if isinstance(part, Rows))
    if rows:
        return jnp.concatenate([parts[number][1] for _, number in rows])
    return functools.reduce(jnp.add, [array for _, array in parts])
