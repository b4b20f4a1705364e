"""Modules that several models of the shelf are made of: tables of vectors, products, attention, normalizations."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._attend import attend
from llmasos_xla.models.layers._modules import random_key
from llmasos_xla.models.layers.dense import affine
from llmasos_xla.models.layers.embedding import look_up
from llmasos_xla.models.layers.normalization import LayerNormalization
from llmasos_xla.models.layers.regularization import drop

Dropped = Callable[[jax.Array], jax.Array]
"""Dropout in training, the identity otherwise."""


class Table(nnx.Module):
    """A vector for each number from 0: ids [...] -> [..., width]; NaN for an id that is none.

    Arrays: embeddings [rows, width].
    """

    def __init__(self, who: str, rows: int, width: int, deviation: float, rngs: nnx.Rngs):
        self.who = who
        self.embeddings = normal(rngs, (rows, width), deviation)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The vectors of those ids."""
        return look_up(self.embeddings[...], ids, self.who)

    def logits(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """The table as an output layer: the product of x with every vector, [..., rows]."""
        table = self.embeddings[...]
        dtype = jnp.result_type(x, table)
        bias = None if bias is None else bias.astype(dtype)
        return kernels.dense(x.astype(dtype), table.astype(dtype), bias, transpose_kernel=True)


class Projection(nnx.Module):
    """activation(x @ kernel + bias), summed over the first `summed` axes of the kernel and the last ones of x.

    Arrays: kernel of that shape, bias of its other axes.
    """

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs, *, summed: int = 1, bias: bool = True, deviation: float):
        self.summed = summed
        self.kernel = normal(rngs, shape, deviation)
        self.bias = nnx.Param(jnp.zeros(shape[summed:], jnp.float32)) if bias else None

    def __call__(self, x: jax.Array, activation: str | None = None) -> jax.Array:
        """The product."""
        kernel = self.kernel[...]
        outputs = kernel.shape[self.summed :]
        x = x.reshape(*x.shape[: x.ndim - self.summed], math.prod(kernel.shape[: self.summed]))
        bias = None if self.bias is None else self.bias[...].reshape(-1)
        y = affine(x, kernel.reshape(x.shape[-1], -1), bias, activation)
        return y.reshape(*x.shape[:-1], *outputs)


class SelfAttention(nnx.Module):
    """What each step of x sees of all others, by several heads.

    Arrays: query, key, value/kernel [width, heads, dim], output/kernel [heads, dim, width], and their biases; with
    `bias=False` query, key and value have none.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, *, bias: bool = True, deviation: float):
        axes = (heads, width // heads)
        self.query, self.key, self.value = (
            Projection((width, *axes), rngs, bias=bias, deviation=deviation) for _ in range(3)
        )
        self.output = Projection((*axes, width), rngs, summed=2, deviation=deviation)

    def __call__(self, x: jax.Array, mask: jax.Array | None, dropped: Dropped | None) -> jax.Array:
        """[batch, time, width], mask [batch, time] is False where nobody looks; `dropped` is of attention weights."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        return self.output(attend(query, key, value, mask, causal=False, dropped=dropped))


class FeedForward(nnx.Module):
    """down(activation(up(x))).

    Arrays: up/kernel [width, hidden], down/kernel [hidden, width], and their biases. `deviation_last` is that of `down`
    where it differs.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        rngs: nnx.Rngs,
        *,
        bias: bool = True,
        deviation: float,
        deviation_last: float | None = None,
    ):
        self.activation, last = activation, deviation if deviation_last is None else deviation_last
        self.up = Projection((width, hidden), rngs, bias=bias, deviation=deviation)
        self.down = Projection((hidden, width), rngs, bias=bias, deviation=last)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., width]."""
        return self.down(self.up(x, self.activation))


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs, *, bias: bool = True) -> Any:
    """Layer normalization of the last axis, called as module(x, train=...)."""
    return LayerNormalization(epsilon=epsilon, center=bias).build((None, width), rngs)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    """A trained float32 array with normal initial values."""
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))


def dropping(who: str, rate: float, train: bool, rngs: nnx.Rngs | None) -> Dropped | None:
    """Dropout of that rate; None where it would be the identity."""
    if not train or rate == 0:
        return None
    return lambda x: drop(x, random_key(rngs, who), rate, x.shape)


def or_same(dropped: Dropped | None) -> Dropped:
    """Dropout, or the identity for None."""
    return dropped or (lambda x: x)
