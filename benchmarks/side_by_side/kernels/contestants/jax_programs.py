"""The parts of a problem as jitted programs of a JAX function."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_by_side.kernels.bench import Program
from side_by_side.kernels.problem import Part, Problem

Function = Callable[..., jax.Array]


def entered(problem: Problem, arrays: list[np.ndarray]) -> tuple[jax.Array, ...]:
    """The arrays on the device, in the problem's dtype; integers stay what they are."""
    return tuple(jnp.asarray(a, problem.dtype if a.dtype.kind == "f" else a.dtype) for a in arrays)


def programs(
    function: Function,
    problem: Problem,
    arrays: list[np.ndarray],
    cotangent: np.ndarray,
    variant: str = "",
    **jit: Any,
) -> Iterator[Program]:
    """A program for each part of the problem; `jit` goes to `jax.jit`."""
    # What an earlier problem left would only hold memory.
    jax.clear_caches()
    values, dy = entered(problem, arrays), jnp.asarray(cotangent, problem.dtype)
    for part in problem.parts:
        yield Program(part.name, variant, partial(_made, function, part, values, dy, jit))


def jitted(
    function: Function, part: Part, values: tuple[jax.Array, ...], dy: jax.Array, jit: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A part's program and its arguments.

    Gradients without the forward pass start from what `jax.vjp` saves, given as arguments; XLA could otherwise neither
    leave the forward pass out nor be kept from folding it.
    """
    if not part.of:
        return jax.jit(function, **jit), values
    if part.whole:
        return jax.jit(lambda dy, *v: _pulled(function, part, v)[1](dy), **jit), (dy, *values)
    _, pull = jax.jit(lambda *v: _pulled(function, part, v), **jit)(*values)
    saved, tree = jax.tree.flatten(pull)
    return jax.jit(lambda saved, dy: tree.unflatten(saved)(dy), **jit), (saved, dy)


def _pulled(function: Function, part: Part, values: tuple[jax.Array, ...]) -> Any:
    def of_chosen(*chosen: jax.Array) -> jax.Array:
        given = dict(zip(part.of, chosen))
        return function(*(given.get(i, v) for i, v in enumerate(values)))

    return jax.vjp(of_chosen, *(values[i] for i in part.of))


def _made(
    function: Function, part: Part, values: tuple[jax.Array, ...], dy: jax.Array, jit: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]:
    program, arguments = jitted(function, part, values, dy, jit)

    def call() -> Any:
        return jax.block_until_ready(program(*arguments))

    return call, lambda found: [np.asarray(a, np.float32) for a in jax.tree.leaves(found)]
