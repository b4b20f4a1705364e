"""Between this process's memory and arrays that lie over a mesh, in one process or in many."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


def put(tree: Any, shardings: Any) -> Any:
    """The arrays, which are the same in every process, laid out as `shardings` say; always new arrays.

    What lies over several devices already moves without passing through the host.
    """
    return jax.tree.map(_put, tree, shardings)


def put_rows(tree: Any, shardings: Any, mine: np.ndarray, rows: int, axis: int) -> Any:
    """A batch of `rows` rows along `axis`, of which the given arrays hold those at `mine` (`rows_here`).

    Arrays without that axis are the same in every process.
    """

    def one(a: Any, sharding: NamedSharding) -> jax.Array:
        a = np.asarray(a)
        if a.ndim <= axis:
            return _put(a, sharding)
        shape = (*a.shape[:axis], rows, *a.shape[axis + 1 :])

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[axis].indices(rows)
            here = int(np.searchsorted(mine, first))
            return a[(*index[:axis], slice(here, here + last - first), *index[axis + 1 :])]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(one, tree, shardings)


def rows_here(sharding: NamedSharding, rows: int) -> np.ndarray:
    """Which of `rows` rows, split over devices by the sharding of a one-axis array, this process's devices hold.

    >>> import jax
    >>> from llmasos_xla.sharding import MeshSpec, Placement
    >>> rows_here(Placement(MeshSpec(data=2)).rows((4,)), 4)
    array([0, 1, 2, 3])
    """
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    wanted = np.zeros(rows, bool)
    for index in parts:
        wanted[index] = True
    return np.flatnonzero(wanted)


def fetch(tree: Any) -> Any:
    """The arrays as NumPy, whole, in every process: all processes have to ask for the same at the same time."""
    return jax.tree.map(_fetch, tree)


def _put(a: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(a), sharding), impl=jax.random.key_impl(a))
    if isinstance(a, jax.Array) and (not a.is_fully_addressable or sharding.is_fully_addressable):
        # A step will donate what it is given: the caller's array must not be the same memory.
        moved = jax.device_put(a, sharding, may_alias=False)
        return moved if moved is not a else a.copy()
    host = np.asarray(a)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _fetch(a: Any) -> np.ndarray:
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
        return np.asarray(a)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(a, tiled=True)
