"""What RT-DETR's parts share: normalized convolutions, dense layers by axes, perceptrons, attention, normalization."""

import math
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._windows import over_whole_steps
from llmasos_xla.models.layers.dense import affine
from llmasos_xla.models.layers.normalization import BatchNormalization, LayerNormalization

_NHWC = ("NHWC", "HWIO", "NHWC")
_MOMENTUM = 0.9


def draw(module: nnx.Module, key: jax.Array) -> None:
    """Gives every kernel its first values, uniform in [-spread, spread): He's for convolutions, Glorot's for products.

    One draw for all: XLA compiles it in a moment, and a draw for each of hundreds of kernels in a minute.
    """
    drawn = [m for _, m in nnx.iter_modules(module) if isinstance(m, ConvNorm | Linear) and m.spread]
    sizes = [math.prod(m.kernel.shape) for m in drawn]
    pool, at = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0), 0
    for part, size in zip(drawn, sizes, strict=True):
        part.kernel[...] = pool[at : at + size].reshape(part.kernel.shape) * part.spread
        at += size


class FrozenNorm(nnx.Module):
    """Batch normalization whose four arrays are constants, as detectors keep a backbone's (torchvision's FrozenBN)."""

    def __init__(self, channels: int):
        zeros, ones = (jnp.zeros((channels,), jnp.float32), jnp.ones((channels,), jnp.float32))
        self.scale, self.bias = nnx.BatchStat(ones), nnx.BatchStat(zeros)
        self.mean, self.var = nnx.BatchStat(zeros), nnx.BatchStat(ones)


class ConvNorm(nnx.Module):
    """activation(norm(conv(x)) + residual), padded alike at both ends.

    With moving statistics the normalization is a scale of the kernel and a bias, so it costs no pass over the image.

    Arrays: kernel [window, window, cin, cout], norm/scale, norm/bias; state: norm/mean, norm/var.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        window: int,
        rngs: nnx.Rngs,
        *,
        strides: int = 1,
        epsilon: float = 1e-5,
        frozen: bool = False,
    ):
        self.window, self.strides, self.epsilon, self.frozen = window, strides, epsilon, frozen
        self.kernel = nnx.Param(jnp.zeros((window, window, cin, cout), jnp.float32))
        self.spread = math.sqrt(6.0 / (window * window * cin))
        norm = BatchNormalization(epsilon=epsilon, momentum=_MOMENTUM)
        self.norm = FrozenNorm(cout) if frozen else norm.build((None, None, cout), rngs)

    def __call__(
        self, x: jax.Array, *, train: bool, activation: str | None = None, residual: jax.Array | None = None
    ) -> jax.Array:
        """[batch, height, width, cin] -> [batch, height', width', cout]."""
        if train and not self.frozen:
            y = self.convolved(x, self.kernel[...], None, None)
            norm: nnx.Module = self.norm
            return norm.masked(  # pyright: ignore[reportAttributeAccessIssue]
                y, None, train=True, rngs=None, residual=residual, activation=activation
            )[0]
        kernel, bias = self.folded()
        if residual is None:
            return self.convolved(x, kernel, bias, activation)
        return kernels.activation(activation)(self.convolved(x, kernel, bias, None) + residual)

    def folded(self) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias of the one convolution that this is with moving statistics; float32 arithmetic."""
        scale, bias, mean, var = (
            getattr(self.norm, name)[...].astype(jnp.float32) for name in ("scale", "bias", "mean", "var")
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        kernel = self.kernel[...]
        scaled = kernel.astype(jnp.float32) * jnp.expand_dims(factor, (0, 1, 2))
        return scaled.astype(kernel.dtype), bias - mean * factor

    def convolved(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, activation: str | None) -> jax.Array:
        """The convolution alone, with the given kernel and bias."""
        dtype = jnp.result_type(x, kernel)
        pads = ((kernel.shape[0] // 2,) * 2, (kernel.shape[1] // 2,) * 2)

        def run(x: jax.Array) -> jax.Array:
            return kernels.conv(
                x.astype(dtype),
                kernel.astype(dtype),
                self.strides,
                pads,
                dimension_numbers=_NHWC,
                bias=None if bias is None else bias.astype(dtype),
                activation=activation,
            )

        return over_whole_steps(run, x)


class Linear(nnx.Module):
    """x @ kernel + bias, between axes: the first `inputs` axes of the kernel meet the last ones of x.

    Arrays: kernel [*shape], bias [*shape without its first `inputs`].
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        inputs: int = 1,
        zero: bool = False,
        bias: float = 0.0,
    ):
        self.inputs = inputs
        shape = tuple(shape)
        self.kernel = nnx.Param(jnp.zeros(shape, jnp.float32))
        ends = math.prod(shape[:inputs]) + math.prod(shape[inputs:])
        self.spread = 0.0 if zero else math.sqrt(6.0 / ends)
        self.bias = nnx.Param(jnp.full(shape[inputs:], bias, jnp.float32))

    def __call__(self, x: jax.Array, activation: str | None = None) -> jax.Array:
        """[..., *shape[:inputs]] -> [..., *shape[inputs:]]."""
        kernel, bias = self.kernel[...], self.bias[...]
        ahead, behind = kernel.shape[: self.inputs], kernel.shape[self.inputs :]
        x = x.reshape(*x.shape[: x.ndim - self.inputs], math.prod(ahead))
        y = affine(x, kernel.reshape(x.shape[-1], -1), bias.reshape(-1), activation)
        return y.reshape(*x.shape[:-1], *behind)


class Perceptron(nnx.Module):
    """Dense layers with ReLU between them. Arrays: layers/0/kernel, layers/0/bias, ..."""

    def __init__(self, sizes: Sequence[int], *, zero: bool = False):
        pairs = list(pairwise(sizes))
        self.layers = nnx.List([Linear(pair) for pair in pairs[:-1]] + [Linear(pairs[-1], zero=zero)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., sizes[0]] -> [..., sizes[-1]]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x, "relu")
        return last(x)


class Attention(nnx.Module):
    """Attention of x to itself, with positions added where it is compared, not where it is read.

    Arrays: query, key, value/kernel [width, heads, dim], output/kernel [heads, dim, width], and their biases.
    """

    def __init__(self, width: int, heads: int):
        dim = width // heads
        self.query = Linear((width, heads, dim))
        self.key = Linear((width, heads, dim))
        self.value = Linear((width, heads, dim))
        self.output = Linear((heads, dim, width), inputs=2)

    def __call__(self, x: jax.Array, positions: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """[batch, steps, width]; `seen` [queries, keys] says who may look at whom."""
        placed = x + positions.astype(x.dtype)
        mask = None if seen is None else seen[None, None]
        query, key, value = self.query(placed), self.key(placed), self.value(x)
        # Its own arithmetic mixes bfloat16 and float32, which a user's strict mode would refuse.
        with jax.numpy_dtype_promotion("standard"):
            y = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return self.output(y)


class FeedForward(nnx.Module):
    """down(activation(up(x))). Arrays: up/kernel, up/bias, down/kernel, down/bias."""

    def __init__(self, width: int, hidden: int, activation: str):
        self.activation = activation
        self.up = Linear((width, hidden))
        self.down = Linear((hidden, width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., width]."""
        return self.down(self.up(x, self.activation))


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.Module:
    """The package's normalization over the last axis."""
    return LayerNormalization(epsilon=epsilon).build((None, width), rngs)
