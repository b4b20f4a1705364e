"""Modules that are nothing but arrays by name, for layers whose arithmetic is a plain function of such a dict."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers.initializers import stacked


class NamedArrays(nnx.Module):
    """Arrays held under names such as "attention/query/kernel", each a path of attributes."""

    def hold(self, params: dict[str, jax.Array], state: dict[str, jax.Array]) -> None:
        """Takes the arrays, trained ones and carried ones; once."""
        self._params, self._state = tuple(params), tuple(state)
        for name, array in params.items():
            _set(self, name, nnx.Param(array))
        for name, array in state.items():
            _set(self, name, nnx.BatchStat(array))

    def params(self) -> dict[str, jax.Array]:
        """The trained arrays."""
        return {name: _get(self, name)[...] for name in self._params}

    def state(self) -> dict[str, jax.Array]:
        """The carried arrays."""
        return {name: _get(self, name)[...] for name in self._state}

    def carry(self, state: dict[str, jax.Array]) -> None:
        """Puts new values in the place of carried ones."""
        for name, array in state.items():
            _get(self, name)[...] = array


class _Part(nnx.Module):
    """What "attention" and "query" stand for in "attention/query/kernel"."""


def _set(module: nnx.Module, name: str, value: nnx.Variable) -> None:
    *parts, last = name.split("/")
    for part in parts:
        if not hasattr(module, part):
            setattr(module, part, _Part())
        module = getattr(module, part)
    setattr(module, last, value)


def _get(module: nnx.Module, name: str) -> nnx.Variable:
    return functools.reduce(getattr, name.split("/"), module)  # pyright: ignore[reportReturnType, reportArgumentType]


def drawn(
    key: jax.Array, name: str, shape: tuple[int, ...], kernel_initializer: str, stack: tuple[int, ...] = ()
) -> jax.Array:
    """The initial values of the array of that name, [*stack, *shape] in float32.

    A kernel is drawn as the matrix that it is: an initializer would read three axes as a convolution's. Axis 0 of
    "experts/..." counts matrices; "output/kernel" has two axes that are summed over, others one.

    >>> drawn(jax.random.key(0), "attention/query/kernel", (8, 2, 4), "glorot_uniform", (3,)).shape
    (3, 8, 2, 4)
    """
    if not name.endswith("kernel"):
        return jnp.ones((*stack, *shape), jnp.float32)
    experts = 1 if "experts/" in name else 0
    summed = experts + (2 if name.endswith("output/kernel") else 1)
    matrices = (*stack, *shape[:experts], math.prod(shape[experts:summed]), math.prod(shape[summed:]))
    return stacked(kernel_initializer, key, matrices).reshape(*stack, *shape)
