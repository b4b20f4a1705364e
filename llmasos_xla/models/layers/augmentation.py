"""Random changes of images in training, inside of the compiled step; the identity otherwise."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import one_of, per_axis
from llmasos_xla.models.layers._modules import Pointwise, random_key
from llmasos_xla.models.layers._windows import check_space

_FILLS = {"zeros": "constant", "edge": "edge", "reflect": "reflect"}


@dataclasses.dataclass(frozen=True)
class _Augmentation(Layer):
    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(self._apply, keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        check_space(self.who, shape, 2)
        return shape

    def _apply(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return self._changed(x, random_key(rngs, self.who)) if train else x

    def _changed(self, x: jax.Array, key: jax.Array) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} does not define _changed")


@dataclasses.dataclass(frozen=True)
class RandomFlip(_Augmentation):
    """In training mirrors each image of [batch, height, width, channels] with probability 1/2.

    `mode` is "horizontal" (left and right change places), "vertical", or "both", each of them by a draw of its own.

    >>> RandomFlip().output_shape((28, 28, 1))
    (28, 28, 1)
    """

    mode: str = "horizontal"

    def check(self) -> None:
        """Refuses unknown modes."""
        self._set(mode=one_of(self.who, "mode", self.mode, ("horizontal", "vertical", "both")))

    def _changed(self, x: jax.Array, key: jax.Array) -> jax.Array:
        for axis, mode in ((1, "vertical"), (2, "horizontal")):
            if self.mode in (mode, "both"):
                chosen = jax.random.bernoulli(jax.random.fold_in(key, axis), shape=(x.shape[0], 1, 1, 1))
                x = jnp.where(chosen, jnp.flip(x, axis), x)
        return x


@dataclasses.dataclass(frozen=True)
class RandomShift(_Augmentation):
    """In training moves each image of [batch, height, width, channels] by up to `pixels` along height and width.

    The same as cutting a random window out of the padded image (He et al. 2015, section 4.2). Moves are uniform and
    whole. What comes in at the border is "zeros", the "edge" repeated, or the image mirrored, "reflect".

    Args:
        pixels: the largest move, or one for height and one for width.
        fill: what comes in.

    >>> RandomShift(4).output_shape((32, 32, 3))
    (32, 32, 3)
    """

    pixels: int | Sequence[int] = 4
    fill: str = "zeros"

    def check(self) -> None:
        """Normalizes the moves to a pair; refuses unknown fills."""
        self._set(
            pixels=per_axis(self.who, "pixels", self.pixels, 2, least=0),
            fill=one_of(self.who, "fill", self.fill, _FILLS),
        )

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape; a mirror image of `pixels` must fit."""
        super().output_shape(shape)
        for size, most in zip(shape, self._most(), strict=False):
            if self.fill == "reflect" and size is not None and most >= size:
                raise ValueError(f"{self.who}: an axis of {size} has no mirror image of {most} pixels; move less")
        return shape

    def _most(self) -> tuple[int, int]:
        assert isinstance(self.pixels, tuple)
        return self.pixels[0], self.pixels[1]

    def _changed(self, x: jax.Array, key: jax.Array) -> jax.Array:
        up, left = self._most()
        padded = jnp.pad(x, ((0, 0), (up, up), (left, left), (0, 0)), mode=_FILLS[self.fill])
        most = jnp.array([2 * up + 1, 2 * left + 1], jnp.int32)
        starts = jax.random.randint(key, (x.shape[0], 2), jnp.zeros_like(most)[None], most[None])

        def window(image: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), x.shape[1:])

        return jax.vmap(window)(padded, starts)
