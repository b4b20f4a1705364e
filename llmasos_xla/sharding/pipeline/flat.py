"""The arrays of a pipeline's stages as flat buffers.

The devices of a pipeline run one program, in which an array has one shape. The arrays that a stage owns are therefore
laid out one after the other in a flat buffer, padded to the longest stage's.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

AXIS = "pipe"
"""The mesh axis over which stages lie."""

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
    """Where the arrays of one stage lie in its buffers, [pieces, length] for each dtype.

    Each array is cut into as many pieces as there are stages, the pieces that the devices hold between steps, and has
    the same columns in every row. So packing is an all-to-all: each device sends its piece to the array's stage.

    Attributes:
        parts: the parts of arrays, one after the other.
        shapes: their shapes.
        dtypes: their dtypes, by name.
        axes: the axis along which an array is cut; None if it is cut flat, being whole on all devices between steps.
        pieces: the number of stages.
    """

    parts: tuple[Part, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    axes: tuple[int | None, ...]
    pieces: int

    def columns(self) -> list[int]:
        """Elements of a piece of each part."""
        return [-(-math.prod(shape) // self.pieces) for shape in self.shapes]

    def lengths(self) -> dict[str, int]:
        """Columns of each dtype."""
        total: dict[str, int] = {}
        for size, dtype in zip(self.columns(), self.dtypes, strict=True):
            total[dtype] = total.get(dtype, 0) + size
        return total

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parts' shapes and dtypes, by name."""
        return {
            name_of(part): jax.ShapeDtypeStruct(shape, dtype)
            for part, shape, dtype in zip(self.parts, self.shapes, self.dtypes, strict=True)
        }

    def piece(self, arrays: Arrays, number: jax.Array, lengths: Mapping[str, int]) -> Buffers:
        """The device's own piece of the stage's arrays, [length], from what it holds between steps."""
        rows: dict[str, list[jax.Array]] = {dtype: [] for dtype in lengths}
        for part, dtype, axis in zip(self.parts, self.dtypes, self.axes, strict=True):
            a = arrays[name_of(part)]
            a = a if isinstance(part, str) else a[part.start : part.stop]
            mine = (
                a.reshape(-1)
                if axis is not None
                else jax.lax.dynamic_index_in_dim(self._cut(a, None), number, 0, False)
            )
            rows[dtype].append(mine)
        return {dtype: padded(row, lengths[dtype], dtype) for dtype, row in rows.items()}

    def whole(self, piece: Buffers) -> dict[str, jax.Array]:
        """The inverse of `piece`: what the device holds of the stage's arrays between steps."""
        held = {}
        for part, shape, axis, columns in self._columns(piece):
            if axis is None:
                held[name_of(part)] = self._join(jax.lax.all_gather(columns, AXIS), shape, None)
            else:
                held[name_of(part)] = columns.reshape(_replaced(shape, axis, shape[axis] // self.pieces))
        return held

    def pack(self, arrays: Arrays, lengths: Mapping[str, int], wide: bool = False) -> Buffers:
        """The stage's arrays in buffers of those lengths; `wide`: each dtype's buffer holds at least float32."""
        rows: dict[str, list[jax.Array]] = {dtype: [] for dtype in lengths}
        for part, dtype, axis in zip(self.parts, self.dtypes, self.axes, strict=True):
            rows[dtype].append(self._cut(arrays[name_of(part)].astype(accumulator(dtype) if wide else dtype), axis))
        return {
            dtype: padded(row, lengths[dtype], accumulator(dtype) if wide else dtype, self.pieces)
            for dtype, row in rows.items()
        }

    def unpack(self, buffers: Buffers) -> dict[str, jax.Array]:
        """The inverse of `pack`."""
        return {name_of(part): self._join(a, shape, axis) for part, shape, axis, a in self._columns(buffers)}

    def _columns(self, buffers: Buffers) -> Iterator[tuple[Part, tuple[int, ...], int | None, jax.Array]]:
        at = dict.fromkeys(buffers, 0)
        for part, shape, dtype, axis, size in zip(
            self.parts, self.shapes, self.dtypes, self.axes, self.columns(), strict=True
        ):
            yield part, shape, axis, buffers[dtype][..., at[dtype] : at[dtype] + size]
            at[dtype] += size

    def _cut(self, a: jax.Array, axis: int | None) -> jax.Array:
        """The pieces of an array, flat, [pieces, columns]."""
        if axis is None:
            return padded([a.reshape(-1)], -(-a.size // self.pieces) * self.pieces, a.dtype).reshape(self.pieces, -1)
        cut = a.reshape(*a.shape[:axis], self.pieces, a.shape[axis] // self.pieces, *a.shape[axis + 1 :])
        return jnp.moveaxis(cut, axis, 0).reshape(self.pieces, -1)

    def _join(self, pieces: jax.Array, shape: tuple[int, ...], axis: int | None) -> jax.Array:
        """The inverse of `_cut`."""
        if axis is None:
            return pieces.reshape(-1)[: math.prod(shape)].reshape(shape)
        cut = pieces.reshape(self.pieces, *_replaced(shape, axis, shape[axis] // self.pieces))
        return jnp.moveaxis(cut, 0, axis).reshape(shape)


def accumulator(dtype: Any) -> Any:
    """The dtype in which gradients of arrays of `dtype` are summed: float32 at least."""
    return jnp.float64 if jnp.dtype(dtype).itemsize == 8 else jnp.float32


class Held(NamedTuple):
    """Arrays as the devices of a stage hold them while a pipeline runs."""

    own: Buffers
    """What the stage owns, packed, [pieces, length] for each dtype."""
    stacked: dict[str, jax.Array]
    """The stage's rows of stacked arrays, by name."""


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a model's parameters, or its state, lie on the stages.

    Attributes:
        layouts: what each stage owns.
        stacked: shapes and dtypes of the stacked arrays, whole.
        at_rest: how all arrays lie over the mesh axis of stages between steps.
        specs: how they lie over the mesh axes that are left to XLA, while a stage computes.
        stored: how the buffers do.
        multiple: the buffers' lengths are multiples of it.
    """

    layouts: tuple[Layout, ...]
    stacked: dict[str, jax.ShapeDtypeStruct]
    at_rest: dict[str, P]
    specs: Mapping[str, P]
    stored: P
    multiple: int

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, Any],
        owned: Sequence[Sequence[Part]],
        stacked: Sequence[str],
        specs: Mapping[str, P],
        stored: Sequence[str],
        multiple: int,
    ) -> "Arrangement":
        """The arrangement of `arrays`, of which others among `owned` and `stacked` are none."""
        count = len(owned)
        axes = {name: _cut_axis(specs.get(name, P()), a.shape, count) for name, a in arrays.items()}
        for part in (part for parts in owned for part in parts if isinstance(part, Rows)):
            # Rows of a cut axis would not be where their piece is.
            axes[part.name] = axes.get(part.name) or None
        layouts = []
        for parts in owned:
            own = tuple(part for part in parts if name_of(part) in arrays)
            taken = [(arrays[name_of(part)], part) for part in own]
            shapes = [a.shape if isinstance(p, str) else (p.stop - p.start, *a.shape[1:]) for a, p in taken]
            dtypes = tuple(jnp.dtype(a.dtype).name for a, _ in taken)
            layouts.append(Layout(own, tuple(shapes), dtypes, tuple(axes[name_of(part)] for part in own), count))
        return cls(
            tuple(layouts),
            {n: jax.ShapeDtypeStruct(arrays[n].shape, arrays[n].dtype) for n in stacked if n in arrays},
            {name: P(AXIS) if name in stacked else _along(axes[name]) for name in arrays},
            {n: without(spec, [AXIS, *(() if n in stacked else stored)]) for n, spec in specs.items()},
            P(None, tuple(stored) or None),
            multiple,
        )

    @functools.cached_property
    def lengths(self) -> dict[str, int]:
        """The length of each dtype's buffer: the longest stage's."""
        longest: dict[str, int] = {}
        for layout in self.layouts:
            for dtype, length in layout.lengths().items():
                longest[dtype] = max(-(-length // self.multiple) * self.multiple, longest.get(dtype, 0))
        return longest

    def hold(self, arrays: Arrays, number: jax.Array) -> Held:
        """The arrays as stage `number` holds them, from what its devices hold between steps."""
        pieces = [layout.piece(arrays, number, self.lengths) for layout in self.layouts]
        own = {dtype: self._exchange(jnp.stack([piece[dtype] for piece in pieces])) for dtype in self.lengths}
        return self.store(Held(own, {name: arrays[name] for name in self.stacked}))

    def give(self, held: Held) -> dict[str, jax.Array]:
        """The inverse of `hold`; arrays that several stages own are added up."""
        found: dict[str, list[tuple[Part, jax.Array]]] = {}
        pieces = {dtype: self._exchange(buffer) for dtype, buffer in held.own.items()}
        for number, layout in enumerate(self.layouts):
            taken = layout.whole({dtype: buffer[number] for dtype, buffer in pieces.items()})
            for part in layout.parts:
                found.setdefault(name_of(part), []).append((part, taken[name_of(part)]))
        return dict(held.stacked) | {name: _whole(parts) for name, parts in found.items()}

    def store(self, held: Held) -> Held:
        """A stage's arrays between its computations."""
        own = {dtype: constrained(buffer, self.stored) for dtype, buffer in held.own.items()}
        return Held(own, {name: self._as_specified(name, a) for name, a in held.stacked.items()})

    def _exchange(self, rows: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(rows, AXIS, 0, 0)

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
        pieces = len(self.layouts)
        own = {dtype: jnp.zeros((pieces, length), accumulator(dtype)) for dtype, length in self.lengths.items()}
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


def _cut_axis(spec: P, shape: tuple[int, ...], pieces: int) -> int | None:
    """The axis that lies over the stages between steps, if any does."""
    for axis, entry in enumerate(spec):
        if AXIS in (entry if isinstance(entry, tuple) else (entry,)) and shape[axis] % pieces == 0:
            return axis
    return None


def _along(axis: int | None) -> P:
    return P() if axis is None else P(*[None] * axis, AXIS)


def _replaced(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


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
