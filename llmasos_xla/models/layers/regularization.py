"""Layers that are random in training and the identity otherwise."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import number
from llmasos_xla.models.layers._modules import Pointwise, random_key
from llmasos_xla.models.layers._windows import check_space


@dataclasses.dataclass(frozen=True)
class _Noise(Layer):
    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(self._apply)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape

    def _apply(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        if not train or self._amount() == 0:
            return x
        return self._disturb(x, random_key(rngs, self.who))

    def _amount(self) -> float:
        raise NotImplementedError(f"{type(self).__name__} does not define _amount")

    def _disturb(self, x: jax.Array, key: jax.Array) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} does not define _disturb")


@dataclasses.dataclass(frozen=True)
class _RateNoise(_Noise):
    rate: float

    def check(self) -> None:
        """Refuses rates outside [0, 1)."""
        number(self.who, "rate", self.rate, least=0.0, below=1.0)

    def _amount(self) -> float:
        return self.rate


def drop(x: jax.Array, key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Sets values to zero with probability `rate` and divides the others by 1 - rate, so that the mean stays.

    `shape` is that of the draw: axes of size 1 are kept or dropped as a whole. The rate holds to 16 bits.
    """
    share = min(round(rate * _SHARES), _SHARES - 1)
    keep = jnp.broadcast_to(_halves(key, shape) >= np.uint32(share), x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


_SHARES = 1 << 16


def _halves(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers of 16 bits as uint32: a word of 32 makes two, since drawing them is most of what dropout costs."""
    if not shape:
        return jax.random.bits(key, shape, jnp.uint32) >> 16
    *outer, last = shape
    words = jax.random.bits(key, (*outer, -(-last // 2)), jnp.uint32)
    return jnp.concatenate([words & np.uint32(_SHARES - 1), words >> 16], axis=-1)[..., :last]


@dataclasses.dataclass(frozen=True)
class Dropout(_RateNoise):
    """In training sets a share `rate` of the values to zero, divides the others by 1 - rate (Srivastava et al. 2014).

    >>> Dropout(0.5).output_shape((128,))
    (128,)
    """

    def _disturb(self, x: jax.Array, key: jax.Array) -> jax.Array:
        return drop(x, key, self.rate, x.shape)


@dataclasses.dataclass(frozen=True)
class SpatialDropout1D(_RateNoise):
    """Dropout of whole channels of [batch, time, channels] (Tompson et al. 2015).

    >>> SpatialDropout1D(0.5).output_shape((20, 8))
    (20, 8)
    """

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        check_space(self.who, shape, 1)
        return shape

    def _disturb(self, x: jax.Array, key: jax.Array) -> jax.Array:
        return drop(x, key, self.rate, (x.shape[0], 1, x.shape[2]))


@dataclasses.dataclass(frozen=True)
class SpatialDropout2D(_RateNoise):
    """Dropout of whole channels of [batch, height, width, channels] (Tompson et al. 2015).

    >>> SpatialDropout2D(0.5).output_shape((7, 7, 8))
    (7, 7, 8)
    """

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        check_space(self.who, shape, 2)
        return shape

    def _disturb(self, x: jax.Array, key: jax.Array) -> jax.Array:
        return drop(x, key, self.rate, (x.shape[0], 1, 1, x.shape[3]))


@dataclasses.dataclass(frozen=True)
class GaussianDropout(_RateNoise):
    """In training multiplies by normal noise of mean 1 and variance rate / (1 - rate) (Srivastava et al. 2014).

    >>> GaussianDropout(0.5).output_shape((128,))
    (128,)
    """

    def _disturb(self, x: jax.Array, key: jax.Array) -> jax.Array:
        return x * (1 + math.sqrt(self.rate / (1 - self.rate)) * jax.random.normal(key, x.shape, x.dtype))


@dataclasses.dataclass(frozen=True)
class GaussianNoise(_Noise):
    """In training adds normal noise of mean 0 and standard deviation `stddev`.

    >>> GaussianNoise(0.1).output_shape((128,))
    (128,)
    """

    stddev: float

    def check(self) -> None:
        """Refuses negative deviations."""
        number(self.who, "stddev", self.stddev, least=0.0)

    def _amount(self) -> float:
        return self.stddev

    def _disturb(self, x: jax.Array, key: jax.Array) -> jax.Array:
        return x + self.stddev * jax.random.normal(key, x.shape, x.dtype)
