"""Convolution layers, channels last."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.export
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

DIMENSIONS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@dataclasses.dataclass(frozen=True)
class _Conv(Layer):
    """Correlation of [batch, *space, cin] with a kernel [*window, cin / groups, filters], plus bias and activation.

    Padding is "valid", "same", or zeros as torch counts them: an int, one an axis, or a pair (low, high) an axis.
    """

    ends_in_activation: ClassVar[bool] = True
    rank: ClassVar[int]

    filters: int
    kernel_size: PerAxis
    strides: PerAxis = 1
    padding: str | Edges = "valid"
    dilation_rate: PerAxis = 1
    groups: int = 1
    activation: str | None = None
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"

    def check(self) -> None:
        """Normalizes sizes to tuples and refuses what no input could make right."""
        for field in ("kernel_size", "strides", "dilation_rate"):
            self._set(**{field: per_axis(self.who, field, getattr(self, field), self.rank)})
        known = ("valid", "same", "causal") if self.rank == 1 else ("valid", "same")
        self._set(padding=check_padding(self.who, self.padding, self.rank, known))
        if self.filters % self.groups:
            raise ValueError(f"{self.who}: filters ({self.filters}) must be a multiple of groups ({self.groups})")

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with kernel and bias."""
        self.output_shape(shape)
        return _ConvModule(self, check_space(self.who, shape, self.rank), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """Space shrinks by window, stride and padding; channels become `filters`."""
        cin = check_space(self.who, shape, self.rank)
        if cin % self.groups:
            raise ValueError(f"{self.who}: the input's {cin} channels are no multiple of groups ({self.groups})")
        space = window_outputs(self.who, shape[:-1], self.kernel_size, self.strides, self.padding, self.dilation_rate)
        return (*space, self.filters)


class _ConvModule(nnx.Module):
    def __init__(self, spec: _Conv, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        self.kernel = parameter(rngs, spec.kernel_initializer, (*spec.kernel_size, cin // spec.groups, spec.filters))
        self.bias = parameter(rngs, spec.bias_initializer, (spec.filters,)) if spec.use_bias else None

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        rngs: nnx.Rngs | None = None,
        then: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """The convolution; `then` is applied to it ahead of bias and activation."""
        if then is None:
            return self._convolved(x, None if self.bias is None else self.bias[...], self.spec.activation)
        y = then(self._convolved(x, None, None))
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias[...], range(y.ndim - 1))
        return kernels.activation(self.spec.activation)(y)

    def absorbs(self, x: jax.Array) -> bool:
        """Whether scaling the kernel is less work than another pass over the output, at full precision."""
        size = x.shape[0] * math.prod(n or 1 for n in self.spec.output_shape(x.shape[1:]))
        if jax.export.is_symbolic_dim(size):
            return False
        return x.dtype == self.kernel[...].dtype == jnp.float32 and size >= self.kernel[...].size

    def normalized(self, x: jax.Array, factor: jax.Array, offset: jax.Array, activation: str | None) -> jax.Array:
        """activation(convolution * factor + offset), with the factor of each output feature put into the kernel."""
        bias = offset if self.bias is None else self.bias[...] * factor + offset
        scaled = self.kernel[...] * jnp.expand_dims(factor, range(self.kernel[...].ndim - 1))
        return self._convolved(x, bias, activation, scaled)

    def _convolved(
        self, x: jax.Array, bias: jax.Array | None, activation: str | None, kernel: jax.Array | None = None
    ) -> jax.Array:
        spec = self.spec
        padding = as_kernels_take_it(spec.padding)
        if spec.padding == "causal":
            padding = [((spec.kernel_size[0] - 1) * spec.dilation_rate[0], 0)]

        def convolved(x: jax.Array) -> jax.Array:
            return kernels.conv(
                x,
                self.kernel[...] if kernel is None else kernel,
                spec.strides,
                padding,
                rhs_dilation=spec.dilation_rate,
                dimension_numbers=DIMENSIONS[spec.rank],
                feature_group_count=spec.groups,
                bias=bias,
                activation=activation,
            )

        return over_whole_steps(convolved, x)


@dataclasses.dataclass(frozen=True)
class Conv1D(_Conv):
    """Convolution over time: [batch, time, cin] -> [batch, time', filters]; padding may be "causal".

    Arrays: kernel [window, cin / groups, filters], bias [filters].

    >>> Conv1D(8, 3, padding="causal").output_shape((100, 4))
    (100, 8)
    """

    rank: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True)
class Conv2D(_Conv):
    """Convolution over images: [batch, height, width, cin] -> [batch, height', width', filters].

    `padding` is "valid", "same", or zeros at both ends: an int, one an axis, or a pair (low, high) an axis; with
    strides "same" pads as TensorFlow does, `padding=1` as torch does.

    Arrays: kernel [window height, window width, cin / groups, filters], bias [filters].

    >>> Conv2D(32, (3, 3)).output_shape((28, 28, 1))
    (26, 26, 32)
    """

    rank: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class Conv3D(_Conv):
    """Convolution over volumes: [batch, depth, height, width, cin] -> [batch, depth', height', width', filters].

    Arrays: kernel [window depth, window height, window width, cin / groups, filters], bias [filters].

    >>> Conv3D(4, 3, strides=2, padding="same").output_shape((9, 8, 8, 2))
    (5, 4, 4, 4)
    """

    rank: ClassVar[int] = 3
