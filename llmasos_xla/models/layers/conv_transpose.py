"""Transposed convolution, channels last."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import PerAxis, one_of, per_axis
from llmasos_xla.models.layers._modules import parameter
from llmasos_xla.models.layers._windows import check_space, over_whole_steps, transposed_extra, transposed_pads
from llmasos_xla.models.layers.conv import DIMENSIONS


@dataclasses.dataclass(frozen=True)
class Conv2DTranspose(Layer):
    """The gradient of a convolution with respect to its input, as a layer: it enlarges images.

    [batch, height, width, cin] -> [batch, height', width', filters]. With padding "same" sizes are multiplied by the
    stride; with "valid" the window's overhang is kept. `output_padding` (less than the stride) sets them otherwise:
    `(size - 1) * stride + window + output_padding`, less 2 * (window // 2) for "same".

    Arrays: kernel [window height, window width, filters, cin] (as in Keras: the convolution's own kernel, whose
    gradient this is), bias [filters].

    >>> Conv2DTranspose(4, 3, strides=2, padding="same").output_shape((7, 7, 2))
    (14, 14, 4)
    """

    ends_in_activation: ClassVar[bool] = True

    filters: int
    kernel_size: PerAxis
    strides: PerAxis = 1
    padding: str = "valid"
    output_padding: PerAxis = None
    dilation_rate: PerAxis = 1
    activation: str | None = None
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"

    def check(self) -> None:
        """Normalizes sizes to tuples and refuses what no input could make right."""
        for field in ("kernel_size", "strides", "dilation_rate"):
            self._set(**{field: per_axis(self.who, field, getattr(self, field), 2)})
        self._set(padding=one_of(self.who, "padding", self.padding, ("valid", "same")))
        if self.output_padding is not None:
            self._set(output_padding=per_axis(self.who, "output_padding", self.output_padding, 2, least=0))
            if any(p >= s for p, s in zip(self.output_padding, self.strides, strict=True)):
                raise ValueError(
                    f"{self.who}: output_padding {self.output_padding} must be less than strides {self.strides}"
                )

    @property
    def extras(self) -> tuple[tuple[int, int], ...]:
        """(reach of the window, extra length) for each spatial axis."""
        reaches = [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]
        paddings = self.output_padding or (None, None)
        return tuple(
            (k, transposed_extra(k, s, self.padding, p))
            for k, s, p in zip(reaches, self.strides, paddings, strict=True)
        )

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with kernel and bias."""
        return _Conv2DTranspose(self, check_space(self.who, shape, 2), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """Space grows by stride; channels become `filters`."""
        check_space(self.who, shape, 2)
        sizes = [
            None if n is None else (n - 1) * s + window + extra
            for n, s, (window, extra) in zip(shape[:-1], self.strides, self.extras, strict=True)
        ]
        for axis, n in enumerate(sizes):
            if n is not None and n < 1:
                raise ValueError(
                    f"{self.who}: a window of {self.kernel_size[axis]} does not fit an axis of {shape[axis]} with "
                    f"padding={self.padding!r} and output_padding={self.output_padding}: nothing is left; use a "
                    "smaller window or leave output_padding out"
                )
        return (*sizes, self.filters)


class _Conv2DTranspose(nnx.Module):
    def __init__(self, spec: Conv2DTranspose, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        self.kernel = parameter(rngs, spec.kernel_initializer, (*spec.kernel_size, spec.filters, cin))
        self.bias = parameter(rngs, spec.bias_initializer, (spec.filters,)) if spec.use_bias else None

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec = self.spec

        def convolved(x: jax.Array) -> jax.Array:
            return kernels.conv_transpose(
                x,
                self.kernel[...],
                spec.strides,
                [transposed_pads(window, extra) for window, extra in spec.extras],
                rhs_dilation=spec.dilation_rate,
                dimension_numbers=DIMENSIONS[2],
                transpose_kernel=True,
                bias=None if self.bias is None else self.bias[...],
                activation=spec.activation,
            )

        return over_whole_steps(convolved, x)
