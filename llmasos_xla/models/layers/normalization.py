"""Normalization layers. Statistics are taken in float32 where values are narrower; the result has the input's dtype."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import array_axis, known_channels, number, whole
from llmasos_xla.models.layers._modules import MaskModule, parameter


@dataclasses.dataclass(frozen=True)
class _Normalization(Layer):
    axis: int | Sequence[int] = -1
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    beta_initializer: str = "zeros"
    gamma_initializer: str = "ones"

    def check(self) -> None:
        """Refuses epsilons that are not positive."""
        if number(self.who, "epsilon", self.epsilon, least=0) == 0:
            raise ValueError(f"{self.who}: epsilon wants a positive number, got 0")
        if isinstance(self.axis, Sequence) and not isinstance(self.axis, str):
            self._set(axis=tuple(self.axis))

    def axes(self, shape: Shape) -> tuple[int, ...]:
        """The axes of the array [batch, ...] that have scale and bias of their own, in order."""
        given = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        axes = tuple(sorted(array_axis(self.who, axis, len(shape)) for axis in given))
        if not axes or len(set(axes)) < len(axes):
            raise ValueError(f"{self.who}: axis wants one axis or several different ones, got {self.axis!r}")
        return axes

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        self.sizes(shape)
        return shape

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The shape of scale and bias."""
        return tuple(known_channels(self.who, shape, axis - 1) for axis in self.axes(shape))


@dataclasses.dataclass(frozen=True)
class BatchNormalization(_Normalization):
    """(x - mean) / sqrt(var + epsilon) * scale + bias for each channel (Ioffe and Szegedy 2015).

    In training mean and variance are the batch's, over all axes but `axis`, and the moving ones follow them:
    moving = momentum * moving + (1 - momentum) * batch. Otherwise the moving ones are used. Steps that a mask
    [batch, time] calls padding do not count. Axis 0 is the batch, as in Keras.

    Arrays: scale (Keras' gamma), bias (beta); state: mean, var; all [channels].

    >>> BatchNormalization().output_shape((28, 28, 3))
    (28, 28, 3)
    """

    momentum: float = 0.99

    def check(self) -> None:
        """Refuses momentum outside [0, 1] and several axes."""
        super().check()
        if number(self.who, "momentum", self.momentum, least=0) > 1:
            raise ValueError(f"{self.who}: momentum wants a number between 0 and 1, got {self.momentum!r}")
        if isinstance(self.axis, tuple):
            raise ValueError(f"{self.who}: axis wants one int, got {self.axis!r}")

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with scale, bias and moving statistics."""
        return _BatchNormalization(self, shape, rngs)


@dataclasses.dataclass(frozen=True)
class LayerNormalization(_Normalization):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, over the axes `axis` of each sample (Ba et al. 2016).

    Arrays: scale (Keras' gamma), bias (beta), of the sizes of these axes.

    >>> LayerNormalization(axis=(1, 2)).output_shape((5, 8))
    (5, 8)
    """

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with scale and bias."""
        return _LayerNormalization(self, shape, rngs)


@dataclasses.dataclass(frozen=True)
class GroupNormalization(_Normalization):
    """Normalizes each sample's channels in `groups` groups, over all other axes (Wu and He 2018).

    `groups=-1` is one group a channel (instance normalization). Other than in BatchNormalization a mask is not read:
    padded steps count.

    Arrays: scale (Keras' gamma), bias (beta); [channels].

    >>> GroupNormalization(4).output_shape((28, 28, 32))
    (28, 28, 32)
    """

    groups: int | None = dataclasses.field(default=32)

    def __init__(self, groups: int = 32, **kwargs):  # Keras takes groups first
        raise NotImplementedError

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with scale and bias."""
        return _GroupNormalization(self, shape, rngs)
