"""Pooling over windows, channels last."""

import dataclasses
from typing import ClassVar

from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import Edges, PerAxis, per_axis
from llmasos_xla.models.layers._modules import Pointwise
from llmasos_xla.models.layers._windows import as_kernels_take_it, check_padding, check_space, window_outputs


@dataclasses.dataclass(frozen=True)
class _Pooling(Layer):
    rank: ClassVar[int]
    reduce: ClassVar[str]

    pool_size: PerAxis = 2
    strides: PerAxis = None
    padding: str | Edges = "valid"

    def check(self) -> None:
        """Normalizes sizes to tuples; strides default to the window."""
        self._set(pool_size=per_axis(self.who, "pool_size", self.pool_size, self.rank))
        strides = self.pool_size if self.strides is None else self.strides
        self._set(strides=per_axis(self.who, "strides", strides, self.rank))
        self._set(padding=check_padding(self.who, self.padding, self.rank))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        pool = kernels.max_pool if self.reduce == "max" else kernels.avg_pool
        padding = as_kernels_take_it(self.padding)
        return Pointwise(lambda x, train, rngs: pool(x, self.pool_size, self.strides, padding))

    def output_shape(self, shape: Shape) -> Shape:
        """Space shrinks by window, stride and padding; channels stay."""
        channels = check_space(self.who, shape, self.rank)
        return (*window_outputs(self.who, shape[:-1], self.pool_size, self.strides, self.padding), channels)


@dataclasses.dataclass(frozen=True)
class MaxPooling1D(_Pooling):
    """The largest of each window over time: [batch, time, channels] -> [batch, time', channels].

    >>> MaxPooling1D(2).output_shape((9, 3))
    (4, 3)
    """

    rank: ClassVar[int] = 1
    reduce: ClassVar[str] = "max"


@dataclasses.dataclass(frozen=True)
class MaxPooling2D(_Pooling):
    """The largest of each window over an image: [batch, height, width, channels] -> [batch, height', width', channels].

    `padding` is "valid", "same", or an amount at both ends as `Conv2D` takes it; padding never is the largest.

    >>> MaxPooling2D((2, 2)).output_shape((26, 26, 32))
    (13, 13, 32)
    """

    rank: ClassVar[int] = 2
    reduce: ClassVar[str] = "max"


@dataclasses.dataclass(frozen=True)
class MaxPooling3D(_Pooling):
    """The largest of each window over a volume [batch, depth, height, width, channels].

    >>> MaxPooling3D(2, strides=1).output_shape((4, 4, 4, 2))
    (3, 3, 3, 2)
    """

    rank: ClassVar[int] = 3
    reduce: ClassVar[str] = "max"


@dataclasses.dataclass(frozen=True)
class AveragePooling1D(_Pooling):
    """The mean of each window over time: [batch, time, channels] -> [batch, time', channels]; padding is not counted.

    >>> AveragePooling1D(2, padding="same").output_shape((9, 3))
    (5, 3)
    """

    rank: ClassVar[int] = 1
    reduce: ClassVar[str] = "mean"


@dataclasses.dataclass(frozen=True)
class AveragePooling2D(_Pooling):
    """The mean of each window over an image [batch, height, width, channels]; padding is not counted.

    >>> AveragePooling2D((2, 2)).output_shape((26, 26, 32))
    (13, 13, 32)
    """

    rank: ClassVar[int] = 2
    reduce: ClassVar[str] = "mean"


@dataclasses.dataclass(frozen=True)
class AveragePooling3D(_Pooling):
    """The mean of each window over a volume [batch, depth, height, width, channels]; padding is not counted.

    >>> AveragePooling3D(2, strides=1).output_shape((4, 4, 4, 2))
    (3, 3, 3, 2)
    """

    rank: ClassVar[int] = 3
    reduce: ClassVar[str] = "mean"
