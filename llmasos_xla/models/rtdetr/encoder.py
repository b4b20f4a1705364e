"""The hybrid encoder: attention within the coarsest map (AIFI), then convolutions down and up across maps (CCFM)."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.rtdetr.parts import Attention, ConvNorm, FeedForward, layer_norm

if TYPE_CHECKING:
    from llmasos_xla.models.rtdetr.config import RTDETRConfig

FUSIONS = 3
"""RepVGG blocks of a fusion."""


class Encoder(nnx.Module):
    """Maps of `encoder_width` features, finest first -> such maps, each having seen all others.

    Arrays: layers/<map>/<layer>/..., laterals/<i>, fpn/<i>, downs/<i>, pan/<i>.
    """

    def __init__(self, spec: "RTDETRConfig", rngs: nnx.Rngs):
        self.spec = spec
        width, epsilon = spec.encoder_width, spec.epsilon
        self.layers = nnx.List(
            [nnx.List([EncoderLayer(spec, rngs) for _ in range(spec.encoder_depth)]) for _ in spec.attended]
        )
        steps = range(spec.maps - 1)
        self.laterals = nnx.List([ConvNorm(width, width, 1, rngs, epsilon=epsilon) for _ in steps])
        self.fpn = nnx.List([Fusion(spec, rngs) for _ in steps])
        self.downs = nnx.List([ConvNorm(width, width, 3, rngs, strides=2, epsilon=epsilon) for _ in steps])
        self.pan = nnx.List([Fusion(spec, rngs) for _ in steps])

    def __call__(self, maps: list[jax.Array], *, train: bool) -> list[jax.Array]:
        """Maps of the same sizes."""
        maps = list(maps)
        for layers, at in zip(self.layers, self.spec.attended, strict=True):
            batch, height, width, channels = maps[at].shape
            x = maps[at].reshape(batch, height * width, channels)
            positions = jnp.asarray(sine_positions(height, width, channels, self.spec.temperature))[None]
            for layer in layers:
                x = layer(x, positions)
            maps[at] = x.reshape(batch, height, width, channels)
        activation = self.spec.activation
        coarse = maps[-1]
        down = []
        for lateral, fuse, fine in zip(self.laterals, self.fpn, reversed(maps[:-1]), strict=True):
            coarse = lateral(coarse, train=train, activation=activation)
            down.append(coarse)
            coarse = fuse(jnp.concatenate([doubled(coarse, fine.shape[1], fine.shape[2]), fine], axis=-1), train=train)
        up = [coarse]
        for shrink, fuse, coarser in zip(self.downs, self.pan, reversed(down), strict=True):
            shrunk = shrink(up[-1], train=train, activation=activation)
            up.append(fuse(jnp.concatenate([shrunk, coarser], axis=-1), train=train))
        return up


class EncoderLayer(nnx.Module):
    """Attention and a feed-forward network, each added to its input and normalized."""

    def __init__(self, spec: "RTDETRConfig", rngs: nnx.Rngs):
        width = spec.encoder_width
        self.attention = Attention(width, spec.encoder_heads)
        self.attention_norm = layer_norm(width, spec.norm_epsilon, rngs)
        self.mlp = FeedForward(width, spec.encoder_hidden, spec.encoder_activation)
        self.mlp_norm = layer_norm(width, spec.norm_epsilon, rngs)

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """[batch, steps, width]."""
        x = self.attention_norm(x + self.attention(x, positions), train=False)  # pyright: ignore[reportCallIssue]
        return self.mlp_norm(x + self.mlp(x), train=False)  # pyright: ignore[reportCallIssue]


class Fusion(nnx.Module):
    """Two maps as one: a cross-stage partial layer whose one half passes RepVGG blocks.

    Arrays: left, right, blocks/<i>/wide (3 x 3), blocks/<i>/narrow (1 x 1), and output unless expansion is 1.
    """

    def __init__(self, spec: "RTDETRConfig", rngs: nnx.Rngs):
        self.activation = spec.activation
        width, inner, epsilon = spec.encoder_width, spec.fusion_width, spec.epsilon
        self.left = ConvNorm(2 * width, inner, 1, rngs, epsilon=epsilon)
        self.right = ConvNorm(2 * width, inner, 1, rngs, epsilon=epsilon)
        self.blocks = nnx.List([RepVGG(inner, epsilon, spec.activation, rngs) for _ in range(FUSIONS)])
        self.expands = inner != width
        if self.expands:
            self.output = ConvNorm(inner, width, 1, rngs, epsilon=epsilon)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, 2 x features] -> [batch, height, width, features]."""
        left = self.left(x, train=train, activation=self.activation)
        for block in self.blocks:
            left = block(left, train=train)
        y = left + self.right(x, train=train, activation=self.activation)
        return self.output(y, train=train, activation=self.activation) if self.expands else y


class RepVGG(nnx.Module):
    """activation(norm(conv 3 x 3) + norm(conv 1 x 1)) (Ding et al. 2021); outside of training one convolution."""

    def __init__(self, width: int, epsilon: float, activation: str, rngs: nnx.Rngs):
        self.activation = activation
        self.wide = ConvNorm(width, width, 3, rngs, epsilon=epsilon)
        self.narrow = ConvNorm(width, width, 1, rngs, epsilon=epsilon)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The input's shape."""
        if train:
            return kernels.activation(self.activation)(self.wide(x, train=True) + self.narrow(x, train=True))
        (wide, bias), (narrow, more) = self.wide.folded(), self.narrow.folded()
        kernel = wide + jnp.pad(narrow, ((1, 1), (1, 1), (0, 0), (0, 0)))
        return self.wide.convolved(x, kernel, bias + more, self.activation)


def doubled(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Each pixel as 2 x 2, cut to `rows` x `columns`: a map of an odd size was halved by rounding up."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)[:, :rows, :columns]


def sine_positions(height: int, width: int, features: int, temperature: float) -> np.ndarray:
    """sin and cos of the row, sin and cos of the column, at features / 4 wavelengths: [height x width, features].

    >>> sine_positions(2, 3, 8, 10000.0).shape
    (6, 8)
    """
    frequencies = 1.0 / temperature ** (np.arange(features // 4) / (features // 4))
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (row, column)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)
