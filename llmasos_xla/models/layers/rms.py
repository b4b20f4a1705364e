"""Root mean square normalization."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.kernels.conv.geometry import at_least_float32
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, number
from llmasos_xla.models.layers._modules import parameter


@dataclasses.dataclass(frozen=True)
class RMSNormalization(Layer):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, for each sample and step (Zhang and Sennrich 2019).

    No mean is taken off and no bias added. The mean of squares is float32 where values are narrower; the result has
    the input's dtype.

    Arrays: scale [channels].

    >>> RMSNormalization().output_shape((20, 64))
    (20, 64)
    """

    epsilon: float = 1e-5
    gamma_initializer: str = "ones"

    def check(self) -> None:
        """Refuses epsilon 0."""
        check_epsilon(self.who, self.epsilon)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with the scale."""
        return _RMSNormalization(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        known_channels(self.who, shape)
        return shape


class _RMSNormalization(nnx.Module):
    def __init__(self, spec: RMSNormalization, channels: int, rngs: nnx.Rngs):
        self.spec = spec
        self.scale = parameter(rngs, spec.gamma_initializer, (channels,))

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        return rms_norm(x, self.scale[...], self.spec.epsilon)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in x's dtype.

    >>> rms_norm(jnp.array([[3.0, -3.0]]), jnp.array([1.0, 2.0]), 1e-12).tolist()
    [[1.0, -2.0]]
    """
    values = x.astype(at_least_float32(x.dtype))
    values = values * jax.lax.rsqrt(jnp.mean(jnp.square(values), axis=-1, keepdims=True) + epsilon)
    return (values * jnp.broadcast_to(scale.astype(values.dtype), values.shape)).astype(x.dtype)


def check_epsilon(who: str, epsilon: float) -> None:
    """Refuses an epsilon that is not positive."""
    if number(who, "epsilon", epsilon, least=0.0) == 0:
        raise ValueError(f"{who}: epsilon wants a positive number, got 0")
