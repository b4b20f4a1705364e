"""The kinds of module that layers build, and their arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers.initializers import initializer


def parameter(rngs: nnx.Rngs, name: str, shape: tuple[int, ...]) -> nnx.Param:
    """A trained float32 array with the initial values of that name.

    >>> parameter(nnx.Rngs(0), "zeros", (2,)).shape
    (2,)
    """
    return nnx.Param(initializer(name)(rngs.params(), shape, jnp.float32))


def counted(rngs: nnx.Rngs) -> nnx.Rngs:
    """Gives the keys that `rngs.params()` would give, one after the other, fast for models of many arrays.

    An nnx.Rngs sets a counter at each key, and to set a variable while a program is traced flax looks through all that
    was traced so far: for the 777 arrays of a ResNet-152 that took seven seconds. Here the counter is a plain number.

    >>> fast, slow = counted(nnx.Rngs(0)), nnx.Rngs(0)
    >>> all(bool(fast.params() == slow.params()) for _ in range(3))
    True
    """
    made = nnx.Rngs(rngs.params.key[...])
    setattr(made, "params", _Counted(rngs.params))  # noqa: B010 - a stream is an attribute that no class declares
    return made


class _Counted(nnx.RngStream):
    def __init__(self, stream: nnx.RngStream):
        super().__init__(stream.key[...], tag=stream.tag)
        self.count = nnx.RngCount(stream.count[...], tag=stream.tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key[...], self.count[...] + jnp.uint32(self.drawn - 1))


class Pointwise(nnx.Module):
    """A module without arrays: applies `function(x, train, rngs)`.

    `keeps_time` says whether axis 1 still is the time axis of the input, so that a mask [batch, time] goes on.
    """

    def __init__(self, function: Callable[..., jax.Array], keeps_time: bool = True):
        self.function = function
        self.keeps_time = keeps_time

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Applies the function."""
        return self.function(x, train, rngs)


class MaskModule(nnx.Module):
    """A module that reads or makes a mask [batch, time] (True: a real step, False: padding)."""

    def masked(
        self, x: Any, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The output and the mask that holds for it."""
        raise NotImplementedError(f"{type(self).__name__} does not define masked")

    def __call__(
        self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """The output alone."""
        return self.masked(x, mask, train=train, rngs=rngs)[0]


def call_module(
    module: nnx.Module, x: Any, *, train: bool, rngs: nnx.Rngs | None, mask: jax.Array | None
) -> tuple[Any, jax.Array | None]:
    """Calls a layer's module and says which mask holds after it: the same one for as long as the time axis is there."""
    if isinstance(module, MaskModule):
        return module.masked(x, mask, train=train, rngs=rngs)
    y = module(x, train=train, rngs=rngs)  # pyright: ignore[reportCallIssue]
    keeps = mask is not None and getattr(module, "keeps_time", True) and y.ndim >= 3 and y.shape[:2] == mask.shape
    return y, mask if keeps else None


def random_key(rngs: nnx.Rngs | None, who: str) -> jax.Array:
    """A fresh key for a layer that is random in training."""
    if rngs is None:
        raise ValueError(f"{who}: is random in training and got no key; pass key=jax.random.key(...) or train=False")
    return rngs.dropout()
