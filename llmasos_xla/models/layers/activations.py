"""Activation functions as layers."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.kernels.activation import activation
from llmasos_xla.models.layers._base import HEADS, Layer, Shape
from llmasos_xla.models.layers._checks import array_axis, known_channels, number
from llmasos_xla.models.layers._modules import Pointwise, parameter


@dataclasses.dataclass(frozen=True)
class Activation(Layer):
    """The activation of that name; None passes values through.

    >>> Activation("relu").output_shape((28, 28, 3))
    (28, 28, 3)
    """

    ends_in_activation: ClassVar[bool] = True

    activation: str | None

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        function = activation(self.activation)
        return Pointwise(lambda x, train, rngs: function(x))

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape


@dataclasses.dataclass(frozen=True)
class ReLU(Layer):
    """min(x, max_value) where x >= threshold, negative_slope * (x - threshold) below it.

    >>> ReLU(max_value=6.0).output_shape((3,))
    (3,)
    """

    max_value: float | None = None
    negative_slope: float = 0.0
    threshold: float = 0.0

    def check(self) -> None:
        """Refuses negative slopes and caps."""
        number(self.who, "negative_slope", self.negative_slope, least=0.0)
        number(self.who, "threshold", self.threshold, least=0.0)
        if self.max_value is not None:
            self._set(max_value=number(self.who, "max_value", self.max_value, least=0.0))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        return Pointwise(self._apply)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape

    def _apply(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        if self.threshold == 0 and self.negative_slope == 0:
            y = jax.nn.relu(x)  # whose gradient at 0 is 0
            return y if self.max_value is None else jnp.minimum(y, self.max_value)
        y = x if self.max_value is None else jnp.minimum(x, self.max_value)
        return jnp.where(x >= self.threshold, y, self.negative_slope * (x - self.threshold))


@dataclasses.dataclass(frozen=True)
class LeakyReLU(Layer):
    """x where x >= 0, negative_slope * x below.

    >>> LeakyReLU(0.1).output_shape((3,))
    (3,)
    """

    negative_slope: float = 0.3

    def check(self) -> None:
        """Refuses negative slopes."""
        number(self.who, "negative_slope", self.negative_slope, least=0.0)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        return Pointwise(lambda x, train, rngs: jax.nn.leaky_relu(x, self.negative_slope))

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape


@dataclasses.dataclass(frozen=True)
class PReLU(Layer):
    """x where x >= 0, alpha * x below, with a trained alpha for each value of a sample (He et al. 2015).

    Arrays: alpha, of the sample's shape, with ones at the axes in `shared_axes` (counted from 1, as Keras does).

    >>> PReLU(shared_axes=(1, 2)).output_shape((28, 28, 3))
    (28, 28, 3)
    """

    alpha_initializer: str = "zeros"
    shared_axes: int | Sequence[int] | None = None

    def check(self) -> None:
        """Normalizes the shared axes to a tuple."""
        if self.shared_axes is not None:
            axes = self.shared_axes if isinstance(self.shared_axes, Sequence) else (self.shared_axes,)
            self._set(shared_axes=tuple(axes))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with alpha."""
        return _PReLU(self, self._alpha_shape(shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        self._alpha_shape(shape)
        return shape

    def _alpha_shape(self, shape: Shape) -> tuple[int, ...]:
        axes = self.shared_axes if isinstance(self.shared_axes, tuple) else ()
        shared = {array_axis(self.who, axis, len(shape)) - 1 for axis in axes}
        return tuple(1 if i in shared else known_channels(self.who, shape, i) for i in range(len(shape)))


class _PReLU(nnx.Module):
    def __init__(self, spec: PReLU, shape: tuple[int, ...], rngs: nnx.Rngs):
        self.alpha = parameter(rngs, spec.alpha_initializer, shape)

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        return jnp.where(x >= 0, x, self.alpha[...][None] * x)


@dataclasses.dataclass(frozen=True)
class ELU(Layer):
    """x where x > 0, alpha * (exp(x) - 1) below (Clevert et al. 2016).

    >>> ELU().output_shape((3,))
    (3,)
    """

    alpha: float = 1.0

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        return Pointwise(lambda x, train, rngs: jax.nn.elu(x, self.alpha))

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape


@dataclasses.dataclass(frozen=True)
class Softmax(Layer):
    """exp(x) / sum(exp(x)) along `axis` (0 is the batch and refused).

    >>> Softmax().output_shape((5, 10))
    (5, 10)
    """

    axis: int | Sequence[int] = -1

    def check(self) -> None:
        """Normalizes several axes to a tuple."""
        if isinstance(self.axis, Sequence):
            self._set(axis=tuple(self.axis))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        axes = self._axes(shape)
        return Pointwise(lambda x, train, rngs: jax.nn.softmax(x, axes))

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        self._axes(shape)
        return shape

    def split_head(self) -> tuple[Layer, str | None]:
        """Over the last axis it is the same as a last `activation="softmax"`."""
        return (Activation(None, name=self.name), HEADS[0]) if self.axis in (-1, (-1,)) else (self, None)

    def _axes(self, shape: Shape) -> tuple[int, ...]:
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(array_axis(self.who, axis, len(shape)) for axis in axes)


@dataclasses.dataclass(frozen=True)
class Rescaling(Layer):
    """x * scale + offset, such as `Rescaling(1 / 255)` for pixels; integers become float32.

    >>> Rescaling(1 / 127.5, offset=-1.0).output_shape((28, 28, 3))
    (28, 28, 3)
    """

    scale: float
    offset: float = 0.0

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        return Pointwise(self._apply)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape

    def _apply(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        return x * self.scale + self.offset
