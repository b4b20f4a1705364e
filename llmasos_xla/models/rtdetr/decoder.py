"""The decoder: queries attend to each other and to points of the maps, and each layer refines their boxes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla.models.rtdetr.deformable import deformable_attention
from llmasos_xla.models.rtdetr.parts import Attention, FeedForward, Linear, Perceptron, layer_norm

if TYPE_CHECKING:
    from llmasos_xla.models.rtdetr.config import RTDETRConfig

_EPSILON = 1e-5


class Decoder(nnx.Module):
    """Queries with their first boxes -> logits and boxes after each layer.

    Arrays: layers/<i>/..., positions (a perceptron from boxes), classes/<i>, boxes/<i> (a perceptron).
    """

    def __init__(self, spec: "RTDETRConfig", rngs: nnx.Rngs):
        width = spec.width
        self.layers = nnx.List([DecoderLayer(spec, rngs) for _ in range(spec.depth)])
        self.positions = Perceptron((4, 2 * width, width))
        self.classes = nnx.List([Linear((width, spec.classes), bias=prior(spec)) for _ in range(spec.depth)])
        # The first boxes are those of the encoder: a head that begins at zero changes nothing.
        self.boxes = nnx.List([Perceptron((width, width, width, 4), zero=True) for _ in range(spec.depth)])

    def __call__(
        self,
        x: jax.Array,
        boxes: jax.Array,
        memory: jax.Array,
        sizes: Sequence[tuple[int, int]],
        seen: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """x [batch, queries, width], boxes [batch, queries, 4] float32 in 0..1 -> [batch, layers, queries, ...]."""
        all_logits, all_boxes = [], []
        for layer, classify, refine in zip(self.layers, self.classes, self.boxes, strict=True):
            # Each layer answers for its own step: no gradient goes back through the boxes before it.
            boxes = jax.lax.stop_gradient(boxes)
            x = layer(x, self.positions(boxes.astype(x.dtype)), boxes, memory, sizes, seen)
            boxes = jax.nn.sigmoid(refine(x).astype(jnp.float32) + inverse_sigmoid(boxes))
            all_logits.append(classify(x))
            all_boxes.append(boxes.astype(x.dtype))
        return jnp.stack(all_logits, axis=1), jnp.stack(all_boxes, axis=1)


class DecoderLayer(nnx.Module):
    """Attention among queries, deformable attention to the maps, a feed-forward network; normalized after each."""

    def __init__(self, spec: "RTDETRConfig", rngs: nnx.Rngs):
        width = spec.width
        self.attention = Attention(width, spec.heads)
        self.attention_norm = layer_norm(width, spec.norm_epsilon, rngs)
        self.cross_attention = DeformableAttention(width, spec.heads, spec.maps, spec.points)
        self.cross_attention_norm = layer_norm(width, spec.norm_epsilon, rngs)
        self.mlp = FeedForward(width, spec.hidden, spec.decoder_activation)
        self.mlp_norm = layer_norm(width, spec.norm_epsilon, rngs)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        boxes: jax.Array,
        memory: jax.Array,
        sizes: Sequence[tuple[int, int]],
        seen: jax.Array | None,
    ) -> jax.Array:
        """[batch, queries, width]."""
        x = self.attention_norm(x + self.attention(x, positions, seen), train=False)  # pyright: ignore[reportCallIssue]
        looked = self.cross_attention(x + positions, boxes, memory, sizes)
        x = self.cross_attention_norm(x + looked, train=False)  # pyright: ignore[reportCallIssue]
        return self.mlp_norm(x + self.mlp(x), train=False)  # pyright: ignore[reportCallIssue]


class DeformableAttention(nnx.Module):
    """Each head of a query reads a few points of each map, at offsets in half sizes of the query's box.

    Arrays: value/kernel [width, heads, dim], output/kernel [heads, dim, width], offsets/kernel
    [width, heads x maps x points x 2], weights/kernel [width, heads x maps x points], and their biases.
    """

    def __init__(self, width: int, heads: int, maps: int, points: int):
        self.shape = (heads, maps, points)
        self.value = Linear((width, heads, width // heads))
        self.output = Linear((heads, width // heads, width), inputs=2)
        self.offsets = Linear((width, heads * maps * points * 2), zero=True)
        self.offsets.bias[...] = jnp.asarray(rays(heads, maps, points))
        self.weights = Linear((width, heads * maps * points), zero=True)

    def __call__(
        self, x: jax.Array, boxes: jax.Array, memory: jax.Array, sizes: Sequence[tuple[int, int]]
    ) -> jax.Array:
        """x [batch, queries, width], boxes [batch, queries, 4], memory [batch, positions, width] -> x's shape."""
        heads, maps, points = self.shape
        batch, queries = x.shape[:2]
        # fp32 here: bf16 cannot tell a pixel of a map of 80 from half of the next.
        offsets = self.offsets(x).astype(jnp.float32).reshape(batch, queries, heads, maps, points, 2)
        centers, extents = (part[:, :, None, None, None] for part in (boxes[..., :2], boxes[..., 2:]))
        at = centers + offsets / points * extents * 0.5
        weights = self.weights(x).astype(jnp.float32).reshape(batch, queries, heads, maps * points)
        weights = jax.nn.softmax(weights, axis=-1).reshape(batch, queries, heads, maps, points)
        return self.output(deformable_attention(self.value(memory), sizes, at, weights))


def rays(heads: int, maps: int, points: int) -> np.ndarray:
    """First offsets, [heads x maps x points x 2]: each head looks along a ray of its own, each point a step further.

    >>> rays(4, 1, 2).reshape(4, 2, 2).round().tolist()[0]
    [[1.0, 0.0], [2.0, 0.0]]
    """
    angles = np.arange(heads) * (2.0 * math.pi / heads)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    directions /= np.abs(directions).max(axis=-1, keepdims=True)
    steps = np.arange(1, points + 1)
    offsets = directions[:, None, None, :] * steps[None, None, :, None]
    return np.broadcast_to(offsets, (heads, maps, points, 2)).reshape(-1).astype(np.float32)


def prior(spec: "RTDETRConfig") -> float:
    """The first bias of class logits: every class as rare as one of all and nothing, so that few queries cry out."""
    return -math.log(spec.classes)


def inverse_sigmoid(x: jax.Array) -> jax.Array:
    """log(x / (1 - x)), both cut at 1e-5."""
    x = jnp.clip(x, 0.0, 1.0)
    return jnp.log(jnp.maximum(x, _EPSILON) / jnp.maximum(1.0 - x, _EPSILON))
