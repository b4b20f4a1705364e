"""Layers that add to, cut from or enlarge space: zero padding, cropping, upsampling."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import Edges, PerAxis, edges, one_of, per_axis
from llmasos_xla.models.layers._modules import Pointwise
from llmasos_xla.models.layers._windows import check_space


@dataclasses.dataclass(frozen=True)
class _ZeroPadding(Layer):
    rank: ClassVar[int]

    padding: Edges = 1

    def check(self) -> None:
        """Normalizes to a pair an axis."""
        self._set(padding=edges(self.who, "padding", self.padding, self.rank))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        widths = ((0, 0), *self.padding, (0, 0))
        return Pointwise(lambda x, train, rngs: jnp.pad(x, widths), keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """Space grows by both ends."""
        channels = check_space(self.who, shape, self.rank)
        sizes = zip(shape[:-1], self.padding, strict=True)
        return (*(None if n is None else n + low + high for n, (low, high) in sizes), channels)


@dataclasses.dataclass(frozen=True)
class _Cropping(Layer):
    rank: ClassVar[int]

    cropping: Edges = 1

    def check(self) -> None:
        """Normalizes to a pair an axis."""
        self._set(cropping=edges(self.who, "cropping", self.cropping, self.rank))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(self._crop, keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """Space shrinks by both ends; something must be left."""
        channels = check_space(self.who, shape, self.rank)
        sizes = [
            None if n is None else n - low - high for n, (low, high) in zip(shape[:-1], self.cropping, strict=True)
        ]
        if any(n is not None and n < 1 for n in sizes):
            raise ValueError(f"{self.who}: cropping {self.cropping} leaves nothing of samples of shape {shape}")
        return (*sizes, channels)

    def _crop(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        space = [slice(low, n - high) for n, (low, high) in zip(x.shape[1:-1], self.cropping, strict=True)]
        return x[:, *space]


@dataclasses.dataclass(frozen=True)
class _UpSampling(Layer):
    rank: ClassVar[int]

    size: PerAxis = 2

    def check(self) -> None:
        """Normalizes the factors to a tuple."""
        self._set(size=per_axis(self.who, "size", self.size, self.rank))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(self._enlarge, keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """Space is multiplied by `size`."""
        channels = check_space(self.who, shape, self.rank)
        return (*(None if n is None else n * k for n, k in zip(shape[:-1], self.size, strict=True)), channels)

    def _enlarge(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        for axis, factor in enumerate(self.size, start=1):
            x = jnp.repeat(x, factor, axis=axis)
        return x


@dataclasses.dataclass(frozen=True)
class ZeroPadding1D(_ZeroPadding):
    """Zeros before and after: [batch, time, channels]; `padding` is an int or (before, after).

    >>> ZeroPadding1D((1, 2)).output_shape((5, 3))
    (8, 3)
    """

    rank: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True)
class ZeroPadding2D(_ZeroPadding):
    """Zeros around [batch, height, width, channels]; `padding` is an int, one an axis or a (low, high) for each.

    >>> ZeroPadding2D(((1, 0), (2, 2))).output_shape((5, 5, 3))
    (6, 9, 3)
    """

    rank: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class ZeroPadding3D(_ZeroPadding):
    """Zeros around [batch, depth, height, width, channels]; `padding` is an int, one an axis or a (low, high) for each.

    >>> ZeroPadding3D(1).output_shape((5, 5, 5, 3))
    (7, 7, 7, 3)
    """

    rank: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True)
class Cropping1D(_Cropping):
    """Cuts steps off both ends of [batch, time, channels]; `cropping` is an int or (before, after).

    >>> Cropping1D((1, 2)).output_shape((5, 3))
    (2, 3)
    """

    rank: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True)
class Cropping2D(_Cropping):
    """Cuts borders off [batch, height, width, channels]; `cropping` is an int, one an axis or a (low, high) for each.

    >>> Cropping2D(((1, 0), (2, 2))).output_shape((5, 5, 3))
    (4, 1, 3)
    """

    rank: ClassVar[int] = 2

    cropping: Edges = 0


@dataclasses.dataclass(frozen=True)
class Cropping3D(_Cropping):
    """Cuts borders off [batch, depth, height, width, channels]; `cropping` as in Cropping2D.

    >>> Cropping3D(1).output_shape((5, 5, 5, 3))
    (3, 3, 3, 3)
    """

    rank: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True)
class UpSampling1D(_UpSampling):
    """Each step `size` times: [batch, time, channels] -> [batch, time * size, channels].

    >>> UpSampling1D(3).output_shape((5, 2))
    (15, 2)
    """

    rank: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True)
class UpSampling2D(_UpSampling):
    """Enlarges [batch, height, width, channels] by `size`, repeating pixels ("nearest") or between them ("bilinear").

    >>> UpSampling2D((2, 3)).output_shape((5, 5, 2))
    (10, 15, 2)
    """

    rank: ClassVar[int] = 2

    interpolation: str = "nearest"

    def check(self) -> None:
        """Refuses unknown interpolations."""
        super().check()
        self._set(interpolation=one_of(self.who, "interpolation", self.interpolation, ("nearest", "bilinear")))

    def _enlarge(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        if self.interpolation == "nearest":
            return super()._enlarge(x, train, rngs)
        batch, height, width, channels = x.shape
        return jax.image.resize(x, (batch, height * self.size[0], width * self.size[1], channels), "bilinear")


@dataclasses.dataclass(frozen=True)
class UpSampling3D(_UpSampling):
    """Each voxel of [batch, depth, height, width, channels] repeated `size` times along each axis.

    >>> UpSampling3D(2).output_shape((2, 3, 4, 1))
    (4, 6, 8, 1)
    """

    rank: ClassVar[int] = 3
