"""Ops on a mesh: each device runs its own implementation on the rows that it holds.

XLA's partitioner cannot look into a foreign call, so that in a program over several devices an op would be plain XLA.
But samples have nothing to do with each other in a convolution or a recurrence. Inside of `dividing_rows` such an op
stands in a `jax.shard_map` over the rows: the devices' own kernels run, and XLA sees to the sum of weight gradients.
"""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

_DIVISION: contextvars.ContextVar[tuple[Mesh, tuple[str, ...]] | None] = contextvars.ContextVar(
    "division", default=None
)


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


def by_rows(function: Callable, rows: Rows, check: Callable) -> Callable:
    """The op such that inside of `dividing_rows` it runs by rows; `check` refuses what it cannot take, as a whole."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        division = _DIVISION.get()
        if division is None:
            return function(*args, **kwargs)
        check(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        along = rows.axes(bound.arguments)
        if along is None:
            return function(*args, **kwargs)
        before, after = along
        paths, tree = jax.tree_util.tree_flatten_with_path(bound.arguments)
        (mesh, axes), found = division, [(_name(path, rows.names), leaf) for path, leaf in paths]
        size = next(leaf.shape[before] for name, leaf in found if name == rows.names[0])
        if size % _parts(mesh, axes):
            return function(*args, **kwargs)
        places = [i for i, (_, leaf) in enumerate(found) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
        whole, split = PartitionSpec(), PartitionSpec(*[None] * before, axes)

        def goes_along(name: str | None, leaf: Any) -> bool:
            return name is not None and leaf.ndim > before and leaf.shape[before] == size

        def local(*arrays: jax.Array) -> Any:
            leaves = [leaf for _, leaf in found]
            for place, array in zip(places, arrays, strict=True):
                leaves[place] = array
            mine = inspect.BoundArguments(signature, jax.tree.unflatten(tree, leaves))  # pyright: ignore[reportArgumentType]
            token = _DIVISION.set(None)
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


def _parts(mesh: Mesh, axes: tuple[str, ...]) -> int:
    parts = 1
    for axis in axes:
        parts *= mesh.shape[axis]
    return parts
