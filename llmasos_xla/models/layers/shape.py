"""Layers that only arrange values anew."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import as_int, sample_rank, short, whole
from llmasos_xla.models.layers._modules import Pointwise


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """[batch, ...] -> [batch, product of the rest].

    >>> Flatten().output_shape((13, 13, 32))
    (5408,)
    """

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        return Pointwise(lambda x, train, rngs: x.reshape(x.shape[0], math.prod(x.shape[1:])))

    def output_shape(self, shape: Shape) -> Shape:
        """One axis."""
        return (None,) if None in shape else (math.prod(n for n in shape if n is not None),)


@dataclasses.dataclass(frozen=True)
class Reshape(Layer):
    """Gives samples another shape of as many values; one entry may be -1, what is left.

    >>> Reshape((4, -1)).output_shape((6, 2))
    (4, 3)
    """

    target_shape: Sequence[int]

    def check(self) -> None:
        """Refuses sizes below 1 other than one -1."""
        target = (self.target_shape,) if as_int(self.target_shape) is not None else self.target_shape
        sizes: list[int] = [as_int(n) or 0 for n in target] if isinstance(target, Sequence) else [0]
        if any(n < 1 and n != -1 for n in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"{self.who}: target_shape wants ints of at least 1, one of them may be -1, "
                f"got {short(self.target_shape)}"
            )
        self._set(target_shape=tuple(whole(self.who, "target_shape", n, least=-1) for n in sizes))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        target = self.output_shape(shape)
        target = tuple(-1 if n is None else n for n in target)
        return Pointwise(lambda x, train, rngs: x.reshape(x.shape[0], *target), keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """The target, its -1 worked out where the input's size is known."""
        known = math.prod(n for n in self.target_shape if n > 0)
        if None in shape:
            return tuple(None if n == -1 else n for n in self.target_shape)
        values = math.prod(n for n in shape if n is not None)
        if values != known and (-1 not in self.target_shape or values % known):
            raise ValueError(
                f"{self.who}: samples of shape {shape} hold {values} values, {self.target_shape} wants {known}"
            )
        return tuple(values // known if n == -1 else n for n in self.target_shape)


@dataclasses.dataclass(frozen=True)
class Permute(Layer):
    """Axes in another order, counted from 1 as Keras does (0 is the batch).

    >>> Permute((2, 1)).output_shape((3, 5))
    (5, 3)
    """

    dims: Sequence[int]

    def check(self) -> None:
        """Refuses what is no permutation of 1..n."""
        dims = self.dims if isinstance(self.dims, Sequence) and not isinstance(self.dims, str) else ()
        order = [as_int(d) or 0 for d in dims]
        if not order or sorted(order) != list(range(1, len(order) + 1)):
            raise ValueError(f"{self.who}: dims wants each of 1, 2, ... once, such as (2, 1), got {short(self.dims)}")
        self._set(dims=tuple(order))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(lambda x, train, rngs: jnp.transpose(x, (0, *self.dims)), keeps_time=self.dims[0] == 1)

    def output_shape(self, shape: Shape) -> Shape:
        """The same sizes in the new order."""
        if len(shape) != len(self.dims):
            raise ValueError(f"{self.who}: dims {self.dims} order {len(self.dims)} axes, samples are of shape {shape}")
        return tuple(shape[d - 1] for d in self.dims)


@dataclasses.dataclass(frozen=True)
class RepeatVector(Layer):
    """The same vector at each of `n` steps: [batch, channels] -> [batch, n, channels].

    >>> RepeatVector(3).output_shape((6,))
    (3, 6)
    """

    n: int

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(lambda x, train, rngs: jnp.repeat(x[:, None], self.n, axis=1), keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """A time axis before the channels."""
        sample_rank(self.who, shape, "channels")
        return (self.n, *shape)
