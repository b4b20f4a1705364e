"""The dense layer."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels
from llmasos_xla.models.layers._modules import parameter
from llmasos_xla.sharding import placement


@dataclasses.dataclass(frozen=True)
class Dense(Layer):
    """y = activation(x @ kernel + bias) over the last axis.

    Arrays: kernel [cin, units], bias [units].

    >>> Dense(10).output_shape((28, 128))
    (28, 10)
    """

    ends_in_activation: ClassVar[bool] = True

    units: int
    activation: str | None = None
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with kernel and bias."""
        return _Dense(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The last axis becomes `units`."""
        known_channels(self.who, shape)
        return (*shape[:-1], self.units)


class _Dense(nnx.Module):
    def __init__(self, spec: Dense, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        self.kernel = parameter(rngs, spec.kernel_initializer, (cin, spec.units))
        self.bias = parameter(rngs, spec.bias_initializer, (spec.units,)) if spec.use_bias else None

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        return affine(x, self.kernel[...], None if self.bias is None else self.bias[...], self.spec.activation)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, activation: str | None = None) -> jax.Array:
    """activation(x @ kernel + bias) in the dtype that x and the kernel promote to."""
    dtype = jnp.result_type(x, kernel)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    # As one matrix: of a sum over two axes, batch and time, XLA's kernel gradient turns dy around and computes the
    # activation's gradient anew for that, 4 ms of 6 in a feed-forward layer of nanoGPT's. On a mesh the two axes may be
    # split over different devices and have to stay apart.
    shape = x.shape
    if x.ndim > 2 and placement.current() is None:
        x = x.reshape(-1, shape[-1])
    y = kernels.dense(x, kernel, None if bias is None else bias.astype(dtype), activation)
    return y.reshape(*shape[:-1], y.shape[-1])
