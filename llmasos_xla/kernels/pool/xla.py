"""Pooling in plain JAX over `[batch, *spatial, channels]`: one function a formulation, all of the same value.

The gradient of a maximum goes to the first of equal elements, in row-major order of the window, as XLA's
select-and-scatter has it. That operation is half of a small convolutional network's step on CPU. Here the gradient is
one comparison for each window position instead, which was measured to cost no more than splitting it among equals.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_xla.kernels.conv.geometry import at_least_float32

Ints = tuple[int, ...]

# Largest windows, in elements, for which a formulation was measured to pay.
MAX_BLOCKS, MAX_SLICES, SUM_SLICES = 16, 64, 32


class Window(NamedTuple):
    """A pooling window; hashable."""

    size: Ints
    window: Ints
    stride: Ints
    pads: tuple[tuple[int, int], ...]

    @property
    def out_size(self) -> Ints:
        """The spatial size of the result."""
        axes = zip(self.size, self.pads, self.window, self.stride)
        return tuple((n + low + high - k) // s + 1 for n, (low, high), k, s in axes)

    @property
    def positions(self) -> int:
        """The number of elements in a window."""
        return math.prod(self.window)


def max_reduce_window(x: jax.Array, g: Window) -> jax.Array:
    """`lax.reduce_window`: the oracle."""
    return lax.reduce_window(x, _lowest(x.dtype), lax.max, (1, *g.window, 1), (1, *g.stride, 1), _pads(g))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_slices(x: jax.Array, g: Window) -> jax.Array:
    """The maximum of the strided slices of the input, one for each window position."""
    return _maximum(list(_slices(x, _lowest(x.dtype), g)))


@max_slices.defjvp
def _max_slices_jvp(g: Window, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    y = max_slices(primals[0], g)
    return y, pick_slices(tangents[0], place(primals[0], y, g), g)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_blocks(x: jax.Array, g: Window) -> jax.Array:
    """`max_slices` for windows that do not overlap: its gradient is one select over the input split into blocks."""
    return _maximum(list(_slices(x, _lowest(x.dtype), g)))


@max_blocks.defjvp
def _max_blocks_jvp(g: Window, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    y = max_blocks(primals[0], g)
    return y, pick_blocks(tangents[0], place(primals[0], y, g), g)


def place(x: jax.Array, y: jax.Array, g: Window) -> jax.Array:
    """Which window position, an int32, holds the maximum y: the first, or the last one where it is NaN."""
    slices = list(_slices(x, _lowest(x.dtype), g))
    winner = jnp.full_like(y, len(slices) - 1, dtype=jnp.int32)
    for position in reversed(range(len(slices) - 1)):
        winner = jnp.where(slices[position] == y, jnp.int32(position), winner)
    return winner


def pick_slices(x: jax.Array, at: jax.Array, g: Window) -> jax.Array:
    """The element at position `at` of each window, zero beyond the border: linear in x."""
    y = zero = jnp.zeros_like(at, dtype=x.dtype)
    for position, part in enumerate(_slices(x, np.zeros((), x.dtype), g)):
        y += jnp.where(at == position, part, zero)
    return y


def pick_blocks(x: jax.Array, at: jax.Array, g: Window) -> jax.Array:
    """`pick_slices` for windows that do not overlap."""
    axes = tuple(2 * axis + 2 for axis in range(len(g.window)))
    x = _blocks(x, g)
    ones = [1] * x.ndim
    for axis, k in zip(axes, g.window):
        ones[axis] = k
    position = np.arange(g.positions, dtype=at.dtype).reshape(ones)
    chosen = jnp.broadcast_to(lax.expand_dims(at, axes), x.shape) == jnp.broadcast_to(position, x.shape)
    return jnp.where(chosen, x, jnp.zeros_like(x)).sum(axes)


def sum_reduce_window(x: jax.Array, g: Window) -> jax.Array:
    """`lax.reduce_window` with addition: the oracle."""
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (1, *g.window, 1), (1, *g.stride, 1), _pads(g))


def sum_slices(x: jax.Array, g: Window) -> jax.Array:
    """The sum of the strided slices of the input, one for each window position."""
    slices = list(_slices(x, np.zeros((), x.dtype), g))
    return sum(slices[1:], slices[0])


def sum_blocks(x: jax.Array, g: Window) -> jax.Array:
    """The sum over the input split into blocks, for windows that do not overlap."""
    return _blocks(x, g).sum(tuple(2 * axis + 2 for axis in range(len(g.window))))


def mean(
    total: Callable[[jax.Array, Window], jax.Array], x: jax.Array, g: Window, count_include_pad: bool
) -> jax.Array:
    """The mean over each window from one of the sums above."""

    def divided(x: jax.Array) -> jax.Array:
        sums = total(x, g)
        return sums / jnp.broadcast_to(counts(g, count_include_pad).astype(sums.dtype), sums.shape)

    return wide(divided, x)


def wide(function: Callable[..., jax.Array], x: jax.Array, *rest: Any) -> jax.Array:
    """`function` in float32 at least: on CPU XLA takes ten times as long over the same in 16 bits."""
    return function(x.astype(at_least_float32(x.dtype)), *rest).astype(x.dtype)


def counts(g: Window, count_include_pad: bool) -> np.ndarray:
    """How many elements each window averages, `[1, *out, 1]`."""
    product = np.ones((), np.int64)
    for n, (low, high), k, s, out in zip(g.size, g.pads, g.window, g.stride, g.out_size):
        start = np.arange(out) * s - low
        first, last = (-low, n + high) if count_include_pad else (0, n)
        product = product[..., None] * (np.minimum(start + k, last) - np.maximum(start, first))
    return product[None, ..., None]


def _maximum(slices: list[jax.Array]) -> jax.Array:
    y = slices[0]
    for part in slices[1:]:
        y = jnp.maximum(y, part)
    return y


def _slices(x: jax.Array, fill: np.ndarray, g: Window) -> Iterator[jax.Array]:
    """The part of the padded input that stands at each window position, `[batch, *out, channels]`, row-major."""
    if any(pair != (0, 0) for pair in g.pads):
        x = lax.pad(x, fill, ((0, 0, 0), *((low, high, 0) for low, high in g.pads), (0, 0, 0)))
    for start in itertools.product(*map(range, g.window)):
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, g.out_size, g.stride)]
        yield lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *g.stride, 1))


def _blocks(x: jax.Array, g: Window) -> jax.Array:
    """`[batch, out, window, ..., channels]` of zero-padded x, for windows that do not overlap."""
    fit = [(low, out * k - n - low, 0) for n, (low, _), k, out in zip(g.size, g.pads, g.window, g.out_size)]
    x = lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), *fit, (0, 0, 0)))
    split = [length for pair in zip(g.out_size, g.window) for length in pair]
    return x.reshape(x.shape[0], *split, x.shape[-1])


def _pads(g: Window) -> tuple[tuple[int, int], ...]:
    return ((0, 0), *g.pads, (0, 0))


def _lowest(dtype: jnp.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, jnp.floating):
        return np.array(-np.inf, dtype)
    return np.array(jnp.iinfo(dtype).min, dtype)
