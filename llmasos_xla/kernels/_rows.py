"""Ops on a mesh: each device runs its own implementation on the rows that it holds.

XLA's partitioner cannot look into a foreign call, so that in a program over several devices an op would be plain XLA.
But samples have nothing to do with each other in a convolution or a recurrence. Inside of `dividing_rows` an op that
chooses a foreign call stands in a `jax.shard_map` over the rows: each device runs it on its own, and the transpose sums
the gradients of weights. What XLA is to divide otherwise must not be laid out for a foreign call first: a product whose
steps lie on several devices would gather them to stand as one matrix. There, inside of `dividing_by_xla`, an op that is
free to choose is plain XLA.
"""

import contextlib
import contextvars
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

_DIVISION: contextvars.ContextVar[tuple[Mesh, tuple[str, ...]] | None] = contextvars.ContextVar(
    "division", default=None
)
_BY_XLA: contextvars.ContextVar[bool] = contextvars.ContextVar("divided by XLA", default=False)


def _first_axes(arguments: Mapping[str, Any]) -> tuple[int, int]:
    return 0, 0


class Rows(NamedTuple):
    """Which arguments of an op hold a row for each sample."""

    names: tuple[str, ...]
    """Names of arguments, or of entries of arguments that are mappings; the first one tells the number of samples, and
    others that have as many rows go with it."""
    axes: Callable[[Mapping[str, Any]], tuple[int, int] | None] = _first_axes
    """The bound arguments -> along which axis the rows lie in arguments, and in results; None where they mix rows."""


@contextlib.contextmanager
def dividing_rows(mesh: Mesh, axes: tuple[str, ...]) -> Iterator[None]:
    """Runs the ops traced inside on each device's own rows, which lie over the mesh's `axes`.

    For programs in which every device holds whole samples; an op whose rows do not divide is left to XLA.
    """
    token = _DIVISION.set((mesh, axes) if axes else None)
    try:
        yield
    finally:
        _DIVISION.reset(token)


@contextlib.contextmanager
def dividing_by_xla(divided: bool = True) -> Iterator[None]:
    """Leaves the ops traced inside to XLA's partitioner; with False, those inside run on one device's own part."""
    token = _BY_XLA.set(divided)
    try:
        yield
    finally:
        _BY_XLA.reset(token)


def divided_by_xla() -> bool:
    """Whether ops are traced for XLA's partitioner to divide."""
    return _BY_XLA.get()


def by_rows(function: Callable, rows: Rows, implementation: Callable[..., str]) -> Callable:
    """The op such that inside of `dividing_rows` it runs by rows.

    `implementation(*args, **kwargs)` tells which one runs for such arguments. Where that is "xla" there is nothing that
    XLA could not divide by itself.
    """
    signature = inspect.signature(function)

    def undivided(*args: Any, **kwargs: Any) -> Any:
        with dividing_by_xla():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        division = _DIVISION.get()
        if division is None:
            return function(*args, **kwargs)
        implementation(*args, **kwargs)  # What the op refuses, it refuses with the shapes that were given.
        bound = signature.bind(*args, **kwargs)
        along = rows.axes(bound.arguments)
        if along is None:
            return undivided(*args, **kwargs)
        before, after = along
        paths, tree = jax.tree_util.tree_flatten_with_path(bound.arguments)
        (mesh, axes), found = division, [(_name(path, rows.names), leaf) for path, leaf in paths]
        size = next(leaf.shape[before] for name, leaf in found if name == rows.names[0])
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            return undivided(*args, **kwargs)
        places = [i for i, (_, leaf) in enumerate(found) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
        whole, split = PartitionSpec(), PartitionSpec(*[None] * before, axes)

        def goes_along(name: str | None, leaf: Any) -> bool:
            return name is not None and leaf.ndim > before and leaf.shape[before] == size

        def rebuilt(arrays: Sequence[Any]) -> inspect.BoundArguments:
            leaves = [leaf for _, leaf in found]
            for place, array in zip(places, arrays, strict=True):
                leaves[place] = array
            return inspect.BoundArguments(signature, jax.tree.unflatten(tree, leaves))  # pyright: ignore[reportArgumentType]

        def here(name: str | None, leaf: Any) -> jax.ShapeDtypeStruct:
            shape = list(leaf.shape)
            if goes_along(name, leaf):
                shape[before] //= parts
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

        mine = rebuilt([here(*found[place]) for place in places])
        if implementation(*mine.args, **mine.kwargs) == "xla":
            return function(*args, **kwargs)

        def local(*arrays: jax.Array) -> Any:
            mine, token = rebuilt(arrays), _DIVISION.set(None)
            try:
                return function(*mine.args, **mine.kwargs)
            finally:
                _DIVISION.reset(token)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=tuple(split if goes_along(*found[place]) else whole for place in places),
            out_specs=PartitionSpec(*[None] * after, axes),
        )(*(found[place][1] for place in places))

    return call


def _name(path: tuple, names: tuple[str, ...]) -> str | None:
    """The row argument that a leaf is, or is an entry of."""
    keys = [getattr(key, "key", None) for key in path]
    return next((key for key in reversed(keys) if key in names), None)
