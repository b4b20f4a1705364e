"""Relative positions as T5 has them: a number for each head and range of distances, added to attention's scores."""

import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np


def buckets(count: int, farthest: int, *, both_ways: bool) -> np.ndarray:
    """The bucket of each distance key - query from -farthest to farthest, int32 [2 * farthest + 1].

    Half of the buckets (of either side, if both ways count) hold one distance each; the others grow with the logarithm,
    up to `farthest`, whose bucket holds all that is farther.

    >>> buckets(8, 8, both_ways=False)[:9].tolist()
    [7, 7, 6, 5, 4, 3, 2, 1, 0]
    """
    distances = np.arange(-farthest, farthest + 1)
    first = np.zeros_like(distances)
    if both_ways:
        count //= 2
        first = np.where(distances > 0, count, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = count // 2
    # float32 in this order: on the border of two buckets weights were trained with what its rounding says.
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    grown = exact + (ratio / np.float32(math.log(farthest / exact)) * np.float32(count - exact)).astype(np.int64)
    return (first + np.where(distances < exact, distances, np.minimum(grown, count - 1))).astype(np.int32)


def bias_within(table: jax.Array, numbers: np.ndarray, time: int) -> jax.Array:
    """What is added to the scores of a row with itself, [1, heads, time, time].

    Args:
        table: [buckets, heads].
        numbers: as `buckets` gives them.
        time: steps of the row; a symbol where a program for any length is exported.
    """
    if jax.export.is_symbolic_dim(time):
        # Only run, never differentiated: a gather will do.
        places = jnp.arange(time, dtype=jnp.int32)
        return bias_from(table, numbers, places, places)
    farthest = len(numbers) // 2
    distances = np.clip(np.arange(1 - time, time + 1), -farthest, farthest) + farthest
    values = jnp.take(table, numbers[distances], axis=0).T
    # Row i is the one above moved by one place. Copies and slices, whose derivative is a sum of slices: of a gather of
    # time x time places it would be that many additions one after the other.
    flat = jnp.broadcast_to(values[:, None], (values.shape[0], time, 2 * time)).reshape(values.shape[0], -1)
    moved = flat[:, : time * (2 * time - 1)].reshape(-1, time, 2 * time - 1)
    return moved[None, :, :, time - 1 :]


def bias_from(table: jax.Array, numbers: np.ndarray, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """What is added to the scores of queries at those places [time] with keys at those [length], [1, heads, ...]."""
    farthest = len(numbers) // 2
    distances = jnp.clip(keys[None, :] - queries[:, None], -farthest, farthest) + farthest
    return jnp.take(table, jnp.asarray(numbers)[distances], axis=0).transpose(2, 0, 1)[None]
