"""Pooling in plain JAX: one function a formulation, all of the same value."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Ints = tuple[int, ...]


class Window(NamedTuple):
    """A pooling window over `[batch, *spatial, channels]`; hashable."""

    size: Ints
    window: Ints
    stride: Ints
    pads: tuple[tuple[int, int], ...]

    @property
    def out_size(self) -> Ints:
        """The spatial size of the result."""
        return tuple(
            (n + low + high - k) // s + 1 for n, (low, high), k, s in zip(self.size, self.pads, self.window, self.stride)
        )


def max_reduce_window(x: jax.Array, g: Window) -> jax.Array:
    """`lax.reduce_window` with maximum; its gradient is select-and-scatter."""
    return lax.reduce_window(x, _lowest(x.dtype), lax.max, (1, *g.window, 1), (1, *g.stride, 1), _pads(g))


def max_slices(x: jax.Array, g: Window) -> jax.Array:
    """The maximum over the strided slices of the input, one for each window position."""
    total = None
    for part in _slices(x, _lowest(x.dtype), g):
        total = part if total is None else jnp.maximum(total, part)
    return total  # pyright: ignore[reportReturnType]


def sum_reduce_window(x: jax.Array, g: Window) -> jax.Array:
    """`lax.reduce_window` with addition."""
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(x, zero, lax.add, (1, *g.window, 1), (1, *g.stride, 1), _pads(g))


def sum_slices(x: jax.Array, g: Window) -> jax.Array:
    """The sum of the strided slices of the input, one for each window position."""
    total = None
    for part in _slices(x, 0, g):
        total = part if total is None else total + part
    return total  # pyright: ignore[reportReturnType]


def average(x: jax.Array, g: Window, total, count_include_pad: bool) -> jax.Array:
    """The sum over each window, in float32 at least, over the number of elements in it."""
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return (total(x.astype(wide), g) / jnp.asarray(counts(g, count_include_pad), wide)).astype(x.dtype)


def counts(g: Window, count_include_pad: bool) -> np.ndarray:
    """How many elements each window averages, `[1, *out, 1]`."""
    if count_include_pad:
        return np.full((1,) * (len(g.size) + 2), math.prod(g.window))
    each = []
    for n, (low, _), k, s, out in zip(g.size, g.pads, g.window, g.stride, g.out_size):
        start = np.arange(out) * s - low
        each.append(np.minimum(start + k, n) - np.maximum(start, 0))
    product = each[0]
    for more in each[1:]:
        product = product[..., None] * more
    return product[None, ..., None]


def _slices(x: jax.Array, fill: object, g: Window) -> Iterator[jax.Array]:
    if any(pair != (0, 0) for pair in g.pads):
        x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in g.pads), (0, 0, 0)))
    for start in itertools.product(*map(range, g.window)):
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, g.out_size, g.stride)]
        yield lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *g.stride, 1))


def _pads(g: Window) -> tuple[tuple[int, int], ...]:
    return ((0, 0), *g.pads, (0, 0))


def _lowest(dtype: jnp.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, jnp.floating):
        return np.array(-np.inf, dtype)
    return np.array(jnp.iinfo(dtype).min, dtype)
