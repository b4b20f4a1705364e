"""Pooling over all of space or time, channels last."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._modules import MaskModule
from llmasos_xla.models.layers._windows import check_space


@dataclasses.dataclass(frozen=True)
class _GlobalPooling(Layer):
    rank: ClassVar[int]
    reduce: ClassVar[str]

    keepdims: bool = False

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        check_space(self.who, shape, self.rank)
        return _GlobalPool(self)

    def output_shape(self, shape: Shape) -> Shape:
        """The channels; with `keepdims` after ones."""
        channels = check_space(self.who, shape, self.rank)
        return (*(1,) * (self.rank if self.keepdims else 0), channels)


class _GlobalPool(MaskModule):
    def __init__(self, spec: _GlobalPooling):
        self.spec = spec

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, None]:
        spec = self.spec
        axes = tuple(range(1, spec.rank + 1))
        reduce = jnp.max if spec.reduce == "max" else jnp.mean
        if mask is None or spec.rank > 1:
            return reduce(x, axes, keepdims=spec.keepdims), None
        valid = jnp.expand_dims(mask, range(2, x.ndim))
        if spec.reduce == "max":
            y = jnp.max(x, 1, keepdims=spec.keepdims, where=valid, initial=-jnp.inf)
        else:
            total = jnp.sum(x, 1, keepdims=spec.keepdims, where=valid)
            return total / jnp.maximum(jnp.sum(valid, 1, keepdims=spec.keepdims), 1).astype(x.dtype), None
        # A row that is all padding has no largest value; zero is what its mean is.
        return jnp.where(jnp.any(valid, 1, keepdims=spec.keepdims), y, jnp.zeros_like(y)), None


@dataclasses.dataclass(frozen=True)
class GlobalAveragePooling1D(_GlobalPooling):
    """The mean over time: [batch, time, channels] -> [batch, channels]; over the unmasked steps where there is a mask.

    >>> GlobalAveragePooling1D().output_shape((None, 8))
    (8,)
    """

    rank: ClassVar[int] = 1
    reduce: ClassVar[str] = "mean"


@dataclasses.dataclass(frozen=True)
class GlobalAveragePooling2D(_GlobalPooling):
    """The mean over an image: [batch, height, width, channels] -> [batch, channels].

    >>> GlobalAveragePooling2D(keepdims=True).output_shape((7, 7, 8))
    (1, 1, 8)
    """

    rank: ClassVar[int] = 2
    reduce: ClassVar[str] = "mean"


@dataclasses.dataclass(frozen=True)
class GlobalAveragePooling3D(_GlobalPooling):
    """The mean over a volume: [batch, depth, height, width, channels] -> [batch, channels].

    >>> GlobalAveragePooling3D().output_shape((4, 7, 7, 8))
    (8,)
    """

    rank: ClassVar[int] = 3
    reduce: ClassVar[str] = "mean"


@dataclasses.dataclass(frozen=True)
class GlobalMaxPooling1D(_GlobalPooling):
    """The largest value over time: [batch, time, channels] -> [batch, channels].

    Masked steps are left out (Keras counts them).

    >>> GlobalMaxPooling1D().output_shape((None, 8))
    (8,)
    """

    rank: ClassVar[int] = 1
    reduce: ClassVar[str] = "max"


@dataclasses.dataclass(frozen=True)
class GlobalMaxPooling2D(_GlobalPooling):
    """The largest value over an image: [batch, height, width, channels] -> [batch, channels].

    >>> GlobalMaxPooling2D().output_shape((7, 7, 8))
    (8,)
    """

    rank: ClassVar[int] = 2
    reduce: ClassVar[str] = "max"


@dataclasses.dataclass(frozen=True)
class GlobalMaxPooling3D(_GlobalPooling):
    """The largest value over a volume: [batch, depth, height, width, channels] -> [batch, channels].

    >>> GlobalMaxPooling3D().output_shape((4, 7, 7, 8))
    (8,)
    """

    rank: ClassVar[int] = 3
    reduce: ClassVar[str] = "max"
