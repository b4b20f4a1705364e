"""Conformer blocks (Gulati et al. 2020): attention and convolution between two half feed-forward networks.

A block looks at the whole sound, or, causal, at itself and `left` steps before; then its state, the keys and values of
those steps and the convolution's last inputs, is carried from chunk to chunk.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._modules import parameter, random_key
from llmasos_xla.models.layers._windows import over_whole_steps
from llmasos_xla.models.layers.conv import DIMENSIONS
from llmasos_xla.models.layers.dense import Dense, affine
from llmasos_xla.models.layers.normalization import BatchNormalization, LayerNormalization
from llmasos_xla.models.layers.regularization import drop
from llmasos_xla.models.pretrained.names import (
    SAME,
    Layout,
    Name,
    batch_norm,
    dense,
    heads_bias,
    heads_in,
    heads_out,
    layer_norm,
)

State = dict[str, jax.Array]

_POINT = Layout("point", lambda a: a[:, :, 0].T, lambda a: a.T[:, :, None])
"""[cout, cin, 1], torch's convolution of width 1, as [cin, cout]."""
_DEPTHWISE = Layout("depthwise", lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0))
"""[channels, 1, width] as [width, 1, channels]."""


class Sizes(NamedTuple):
    """What a block is made by."""

    width: int
    num_heads: int
    hidden_dim: int
    """Features inside of the feed-forward networks."""
    window: int
    """Steps of the depthwise convolution."""
    left: int | None
    """Steps before itself that attention sees, nothing being seen after it; None: all, before and after."""
    dropout: float


class Block(nnx.Module):
    """One block: [batch, time, width] -> the same.

    Arrays: feed_forward1 and feed_forward2 with up and down; attention with query, key, value, output, the projection
    relative/kernel [width, heads, dim] of distances, content_bias and position_bias [heads, dim] (Dai et al. 2019);
    convolution with expand [width, 2 width], depthwise_conv/kernel [window, 1, width], batch_norm and contract; a
    normalization ahead of each, and output_norm.
    """

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        width = sizes.width
        self.sizes = sizes
        norms: list[Any] = [LayerNormalization(epsilon=1e-5).build((None, width), rngs) for _ in range(5)]
        self.feed_forward1_norm, self.attention_norm, self.convolution_norm, *norms = norms
        self.feed_forward2_norm, self.output_norm = norms
        self.feed_forward1, self.feed_forward2 = _FeedForward(sizes, rngs), _FeedForward(sizes, rngs)
        self.attention = _Attention(sizes, rngs)
        self.convolution = _Convolution(sizes, rngs)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, state: State | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, State]:
        """The output of the steps and, causal, the state after them; {} otherwise."""

        def dropped(y: jax.Array) -> jax.Array:
            rate = self.sizes.dropout
            return drop(y, random_key(rngs, "Conformer"), rate, y.shape) if train and rate else y

        x = x + 0.5 * dropped(self.feed_forward1(self.feed_forward1_norm(x, train=train)))
        y, seen = self.attention(self.attention_norm(x, train=train), mask, state)
        x = x + dropped(y)
        y, read = self.convolution(self.convolution_norm(x, train=train), mask, state, train=train)
        x = x + dropped(y)
        x = x + 0.5 * dropped(self.feed_forward2(self.feed_forward2_norm(x, train=train)))
        return self.output_norm(x, train=train), {**seen, **read}


class _FeedForward(nnx.Module):
    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        self.up = Dense(sizes.hidden_dim, activation="silu").build((None, sizes.width), rngs)
        self.down = Dense(sizes.width).build((None, sizes.hidden_dim), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.up(x, train=False), train=False)


class _Heads(nnx.Module):
    """A dense layer to or from heads."""

    def __init__(self, shape: tuple[int, ...], summed: int, rngs: nnx.Rngs, use_bias: bool = True):
        self.summed = summed
        # Drawn as the matrix that it is: an initializer would read three axes as a convolution's.
        matrix = (math.prod(shape[:summed]), math.prod(shape[summed:]))
        self.kernel = nnx.Param(parameter(rngs, "glorot_uniform", matrix)[...].reshape(shape))
        self.bias = parameter(rngs, "zeros", shape[summed:]) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        x = x.reshape(*x.shape[: x.ndim - self.summed], -1)
        bias = None if self.bias is None else self.bias[...].reshape(-1)
        y = affine(x, kernel.reshape(x.shape[-1], -1), bias)
        return y.reshape(*x.shape[:-1], *kernel.shape[self.summed :])


class _Attention(nnx.Module):
    """Self-attention by content and by distance (Dai et al. 2019, "Transformer-XL")."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        heads, dim = sizes.num_heads, sizes.width // sizes.num_heads
        self.left = sizes.left
        self.query, self.key, self.value = (_Heads((sizes.width, heads, dim), 1, rngs) for _ in range(3))
        self.relative = _Heads((sizes.width, heads, dim), 1, rngs, use_bias=False)
        self.output = _Heads((heads, dim, sizes.width), 2, rngs)
        self.content_bias, self.position_bias = (parameter(rngs, "zeros", (heads, dim)) for _ in range(2))

    def __call__(self, x: jax.Array, mask: jax.Array | None, state: State | None) -> tuple[jax.Array, State]:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.left is None:
            last = x.shape[1] - 1
            seen = None if mask is None else mask[:, None]
            return self.output(self._attend(query, key, value, seen, last, last)), {}
        assert state is not None
        left, time = self.left, x.shape[1]
        key, value = (
            jnp.concatenate([state[name].astype(a.dtype), a], axis=1) for name, a in (("key", key), ("value", value))
        )
        known = jnp.arange(left)[None] >= left - state["known"][:, None]
        known = jnp.concatenate([known, jnp.ones((x.shape[0], time), bool)], axis=1)
        after = {"key": key[:, time:], "value": value[:, time:], "known": jnp.minimum(state["known"] + time, left)}
        y = self._in_blocks(query, key, value, known)
        return self.output(y), {name: a.astype(state[name].dtype) for name, a in after.items()}

    def _in_blocks(self, query: jax.Array, key: jax.Array, value: jax.Array, known: jax.Array) -> jax.Array:
        """Queries [batch, time, ...] over keys [batch, left + time, ...], in blocks of `left` where time is long."""
        left, (batch, time) = self.left, query.shape[:2]
        assert left is not None
        size = time if time <= 2 * left else left
        blocks = -(-time // size)

        def padded(a: jax.Array) -> jax.Array:
            return jnp.pad(a, ((0, 0), (0, blocks * size - time), *((0, 0),) * (a.ndim - 2)))

        def parts(a: jax.Array) -> jax.Array:
            cut = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(padded(a), start, left + size, 1), out_axes=1)
            return cut(jnp.arange(blocks, dtype=jnp.int32) * size).reshape(batch * blocks, left + size, *a.shape[2:])

        steps = np.arange(left + size)[None] - np.arange(size)[:, None]
        band = jnp.asarray((steps >= 0) & (steps <= left))[None]
        query = padded(query).reshape(batch * blocks, size, *query.shape[2:])
        y = self._attend(query, parts(key), parts(value), band & parts(known)[:, None], left, 0)
        return y.reshape(batch, blocks * size, *y.shape[2:])[:, :time]

    def _attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array | None, left: int, right: int
    ) -> jax.Array:
        """Queries over keys, of which the first stands `left` steps before the first query (0 if `right`)."""
        dtype, dim = query.dtype, query.shape[-1]
        distances = _sinusoids(np.arange(left, -right - 1, -1), self.relative.kernel[...].shape[0])
        relative = self.relative(jnp.asarray(distances, dtype))
        by_position = query + self.position_bias[...].astype(dtype)[None, None]
        bias = _shifted(jnp.einsum("bqhd,mhd->bhqm", by_position, relative, preferred_element_type=jnp.float32))
        first = left if right else 0
        bias = bias[..., first : first + key.shape[1]] / math.sqrt(dim)
        by_content = query + self.content_bias[...].astype(dtype)[None, None]
        # Its own arithmetic mixes bfloat16 and float32, which a user's strict mode would refuse.
        with jax.numpy_dtype_promotion("standard"):
            mask = None if seen is None else jnp.broadcast_to(seen[:, None], bias.shape)
            return jax.nn.dot_product_attention(by_content, key, value, bias=bias, mask=mask)


def _sinusoids(distances: np.ndarray, width: int) -> np.ndarray:
    """Sines and cosines of distances in turns, [distances, width]."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = distances[:, None] * frequencies[None]
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(distances), -1)[:, :width]


def _shifted(scores: jax.Array) -> jax.Array:
    """Row i moved right by i: [..., time, n] -> [..., time, n + time - 1], what comes in means nothing.

    >>> _shifted(jnp.array([[1.0, 2.0], [3.0, 4.0]]))[1, 1:].tolist()
    [3.0, 4.0]
    """
    *batch, time, n = scores.shape
    padded = jnp.pad(scores, (*((0, 0),) * (scores.ndim - 1), (0, time)))
    return padded.reshape(*batch, time * (n + time))[..., : time * (n + time - 1)].reshape(*batch, time, n + time - 1)


class _Convolution(nnx.Module):
    """A gate, a depthwise convolution over time, batch normalization and a product."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        self.window, self.causal = sizes.window, sizes.left is not None
        self.expand = Dense(2 * sizes.width).build((None, sizes.width), rngs)
        self.depthwise_conv = _Depthwise(sizes.width, sizes.window, rngs)
        self.batch_norm: Any = BatchNormalization(momentum=0.9, epsilon=1e-5).build((None, sizes.width), rngs)
        self.contract = Dense(sizes.width).build((None, sizes.width), rngs)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, state: State | None, *, train: bool
    ) -> tuple[jax.Array, State]:
        x, gate = jnp.split(self.expand(x, train=train), 2, axis=-1)
        x = x * jax.nn.sigmoid(gate)
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0.0)
        after = {}
        if self.causal:
            assert state is not None
            x = jnp.concatenate([state["convolved"].astype(x.dtype), x], axis=1)
            after = {"convolved": x[:, x.shape[1] - self.window + 1 :].astype(state["convolved"].dtype)}
            x = self.depthwise_conv(x, (0, 0))
        else:
            x = self.depthwise_conv(x, ((self.window - 1) // 2, self.window // 2))
        x, _ = self.batch_norm.masked(x, mask, train=train, rngs=None, activation="silu")
        return self.contract(x, train=train), after


class _Depthwise(nnx.Module):
    def __init__(self, channels: int, window: int, rngs: nnx.Rngs):
        self.kernel = parameter(rngs, "lecun_uniform", (window, 1, channels))
        self.bias = parameter(rngs, "zeros", (channels,))

    def __call__(self, x: jax.Array, padding: tuple[int, int]) -> jax.Array:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        options = {"dimension_numbers": DIMENSIONS[1], "feature_group_count": x.shape[-1], "bias": bias}
        return over_whole_steps(lambda x: kernels.conv(x, kernel, (1,), [padding], **options), x)


def stream_state(sizes: Sizes, batch: int) -> State:
    """What a causal block carries before the first step: keys and values that are not there, and zeros."""
    assert sizes.left is not None
    heads, dim = sizes.num_heads, sizes.width // sizes.num_heads
    return {
        "key": jnp.zeros((batch, sizes.left, heads, dim)),
        "value": jnp.zeros((batch, sizes.left, heads, dim)),
        "known": jnp.zeros((batch,), jnp.int32),
        "convolved": jnp.zeros((batch, sizes.window - 1, sizes.width)),
    }


def names(ours: str, theirs: str, heads: int) -> Iterator[Name]:
    """The arrays of a block as Hugging Face's Parakeet calls them."""
    for number in (1, 2):
        yield from layer_norm(f"{ours}/feed_forward{number}_norm", f"{theirs}.norm_feed_forward{number}")
        yield from dense(f"{ours}/feed_forward{number}/up", f"{theirs}.feed_forward{number}.linear1")
        yield from dense(f"{ours}/feed_forward{number}/down", f"{theirs}.feed_forward{number}.linear2")
    here, there = f"{ours}/attention", f"{theirs}.self_attn"
    yield from layer_norm(f"{ours}/attention_norm", f"{theirs}.norm_self_att")
    for name in ("query", "key", "value"):
        yield Name(f"{here}/{name}/kernel", f"{there}.{name[0]}_proj.weight", heads_in(heads))
        yield Name(f"{here}/{name}/bias", f"{there}.{name[0]}_proj.bias", heads_bias(heads))
    yield Name(f"{here}/output/kernel", f"{there}.o_proj.weight", heads_out(heads))
    yield Name(f"{here}/output/bias", f"{there}.o_proj.bias", SAME)
    yield Name(f"{here}/relative/kernel", f"{there}.relative_k_proj.weight", heads_in(heads))
    yield Name(f"{here}/content_bias", f"{there}.bias_u", SAME)
    yield Name(f"{here}/position_bias", f"{there}.bias_v", SAME)
    here, there = f"{ours}/convolution", f"{theirs}.conv"
    yield from layer_norm(f"{ours}/convolution_norm", f"{theirs}.norm_conv")
    for name, other, layout in (
        ("expand", "pointwise_conv1", _POINT),
        ("depthwise_conv", "depthwise_conv", _DEPTHWISE),
        ("contract", "pointwise_conv2", _POINT),
    ):
        yield Name(f"{here}/{name}/kernel", f"{there}.{other}.weight", layout)
        yield Name(f"{here}/{name}/bias", f"{there}.{other}.bias", SAME)
    yield from batch_norm(f"{here}/batch_norm", f"{there}.norm")
    yield from layer_norm(f"{ours}/output_norm", f"{theirs}.norm_out")
