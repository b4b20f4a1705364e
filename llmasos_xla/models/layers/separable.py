"""Depthwise and separable convolution: each channel has filters of its own."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import Edges, PerAxis, per_axis
from llmasos_xla.models.layers._modules import parameter
from llmasos_xla.models.layers._windows import (
    as_kernels_take_it,
    check_padding,
    check_space,
    over_whole_steps,
    window_outputs,
)
from llmasos_xla.models.layers.conv import DIMENSIONS


@dataclasses.dataclass(frozen=True)
class DepthwiseConv2D(Layer):
    """Convolves each channel with `depth_multiplier` filters of its own.

    [batch, height, width, cin] -> [batch, height', width', cin * depth_multiplier]; output channel
    c * depth_multiplier + m is channel c under its filter m.

    Arrays: kernel [window height, window width, cin, depth_multiplier], bias [cin * depth_multiplier].

    >>> DepthwiseConv2D(3, depth_multiplier=2, padding="same").output_shape((8, 8, 3))
    (8, 8, 6)
    """

    ends_in_activation: ClassVar[bool] = True

    kernel_size: PerAxis
    strides: PerAxis = 1
    padding: str | Edges = "valid"
    depth_multiplier: int = 1
    dilation_rate: PerAxis = 1
    activation: str | None = None
    use_bias: bool = True
    depthwise_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"

    def check(self) -> None:
        """Normalizes sizes to tuples and refuses what no input could make right."""
        _check_windows(self)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with kernel and bias."""
        self.output_shape(shape)
        return _Depthwise(self, check_space(self.who, shape, 2), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """Space shrinks by window, stride and padding; channels are multiplied."""
        cin = check_space(self.who, shape, 2)
        return (*_space(self, shape), cin * self.depth_multiplier)


@dataclasses.dataclass(frozen=True)
class SeparableConv2D(Layer):
    """A depthwise convolution, then a 1x1 convolution over channels, bias and activation (Chollet 2017, Xception).

    [batch, height, width, cin] -> [batch, height', width', filters].

    Arrays: depthwise_kernel [window height, window width, cin, depth_multiplier],
    pointwise_kernel [1, 1, cin * depth_multiplier, filters], bias [filters].

    >>> SeparableConv2D(16, 3, strides=2, padding="same").output_shape((9, 8, 3))
    (5, 4, 16)
    """

    ends_in_activation: ClassVar[bool] = True

    filters: int
    kernel_size: PerAxis
    strides: PerAxis = 1
    padding: str | Edges = "valid"
    dilation_rate: PerAxis = 1
    depth_multiplier: int = 1
    activation: str | None = None
    use_bias: bool = True
    depthwise_initializer: str = "glorot_uniform"
    pointwise_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"

    def check(self) -> None:
        """Normalizes sizes to tuples and refuses what no input could make right."""
        _check_windows(self)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with both kernels and bias."""
        self.output_shape(shape)
        return _Separable(self, check_space(self.who, shape, 2), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """Space shrinks by window, stride and padding; channels become `filters`."""
        check_space(self.who, shape, 2)
        return (*_space(self, shape), self.filters)


class _Depthwise(nnx.Module):
    def __init__(self, spec: DepthwiseConv2D, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        self.kernel = parameter(rngs, spec.depthwise_initializer, (*spec.kernel_size, cin, spec.depth_multiplier))
        self.bias = parameter(rngs, spec.bias_initializer, (cin * spec.depth_multiplier,)) if spec.use_bias else None

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return _depthwise(self.spec, x, self.kernel[...], bias=bias, activation=self.spec.activation)

    def absorbs(self, x: jax.Array) -> bool:
        """Whether a normalization may go into the kernel, which is small beside any output: at full precision."""
        return x.dtype == self.kernel[...].dtype == jnp.float32

    def normalized(self, x: jax.Array, factor: jax.Array, offset: jax.Array, activation: str | None) -> jax.Array:
        """activation(convolution * factor + offset), with the factor of each output feature put into the kernel."""
        bias = offset if self.bias is None else self.bias[...] * factor + offset
        kernel = self.kernel[...] * factor.reshape(self.kernel[...].shape[2:])[None, None]
        return _depthwise(self.spec, x, kernel, bias=bias, activation=activation)


class _Separable(nnx.Module):
    def __init__(self, spec: SeparableConv2D, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        middle = cin * spec.depth_multiplier
        self.depthwise_kernel = parameter(
            rngs, spec.depthwise_initializer, (*spec.kernel_size, cin, spec.depth_multiplier)
        )
        self.pointwise_kernel = parameter(rngs, spec.pointwise_initializer, (1, 1, middle, spec.filters))
        self.bias = parameter(rngs, spec.bias_initializer, (spec.filters,)) if spec.use_bias else None

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        return kernels.conv(
            _depthwise(self.spec, x, self.depthwise_kernel[...]),
            self.pointwise_kernel[...],
            dimension_numbers=DIMENSIONS[2],
            bias=None if self.bias is None else self.bias[...],
            activation=self.spec.activation,
        )


def _depthwise(spec: DepthwiseConv2D | SeparableConv2D, x: jax.Array, kernel: jax.Array, **finish: Any) -> jax.Array:
    height, width, cin, multiplier = kernel.shape

    def convolved(x: jax.Array) -> jax.Array:
        return kernels.conv(
            x,
            # A grouped convolution wants [h, w, 1, cin * multiplier], groups outermost: the same order of values.
            kernel.reshape(height, width, 1, cin * multiplier),
            spec.strides,
            as_kernels_take_it(spec.padding),
            rhs_dilation=spec.dilation_rate,
            dimension_numbers=DIMENSIONS[2],
            feature_group_count=cin,
            **finish,
        )

    return over_whole_steps(convolved, x)


def _check_windows(layer: Any) -> None:
    for field in ("kernel_size", "strides", "dilation_rate"):
        layer._set(**{field: per_axis(layer.who, field, getattr(layer, field), 2)})
    layer._set(padding=check_padding(layer.who, layer.padding, 2))


def _space(layer: Any, shape: Shape) -> tuple[int | None, ...]:
    return window_outputs(layer.who, shape[:-1], layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
