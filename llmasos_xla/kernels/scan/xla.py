"""The linear recurrence in plain JAX: the oracle, and two formulations with the derivative of `recurrence.py`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels._operation import Arrays, Engine
from llmasos_xla.kernels.scan import recurrence
from llmasos_xla.kernels.scan.recurrence import Spec

IN_PLACE, ASSOCIATIVE, STEPS = "loop in place", "associative scan", "steps"


def steps(a: jax.Array, b: jax.Array, h0: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """h and the final state, by `lax.scan` and with autodiff's derivative."""
    high = h0.dtype

    def step(state: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        gate, term = at
        state = gate.astype(high) * state + term.astype(high)
        return state, state.astype(b.dtype)

    a = jnp.broadcast_to(a, (a.shape[0], b.shape[1], a.shape[2]))
    final, h = lax.scan(step, h0, (jnp.swapaxes(a, 0, 1), jnp.swapaxes(b, 0, 1)), reverse=reverse)
    return jnp.swapaxes(h, 0, 1), final


def recur(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h and the final state, in the formulation that the spec names."""
    return tuple(_call(s, a, b, h0, named=False))  # pyright: ignore[reportReturnType]


def in_place(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A loop over the steps that writes h over b, in the memory order of both: nothing is transposed or set to zero."""
    high = h0.dtype

    def at(x: jax.Array, i: Any) -> jax.Array:
        t = 0 if x.shape[1] == 1 else s.time - 1 - i if s.reverse else i
        return lax.dynamic_index_in_dim(x, t, 1, keepdims=False).astype(high)

    def step(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h, out = carry
        # h alone is carried, and each step's gate is met on the way to the next: with two results made of what was just
        # read from `out`, XLA copies all of it at each step.
        gate = jnp.where(i == 0, jnp.ones((), high), at(a, jnp.maximum(i - 1, 0))) if s.delayed else at(a, i)
        h = gate * h + at(out, i)
        return h, lax.dynamic_update_index_in_dim(out, h, s.time - 1 - i if s.reverse else i, 1)

    # In 16 bits XLA's CPU compiler would convert the whole array at each step.
    h, out = lax.fori_loop(0, s.time, step, (h0, b.astype(high)))
    return out.astype(b.dtype), (at(a, s.time - 1) * h if s.delayed else h)


def associative(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`lax.associative_scan` of the pairs (a, b): some two log2(time) passes over all steps at once.

    It multiplies gates with each other: where such a product overflows, its state is not finite, though that of a loop
    may be.
    """
    first, last = s.ends
    gates, terms = a.astype(h0.dtype), b.astype(h0.dtype)
    if gates.shape[1] < s.time:
        gates = jnp.broadcast_to(gates, (gates.shape[0], s.time, gates.shape[2]))
    behind = gates[:, last]
    if s.delayed:
        gates = recurrence.before(s, gates, jnp.ones_like(gates[:, 0]))
    terms = terms.at[:, first].add(gates[:, first] * h0)

    def combine(x: tuple[jax.Array, jax.Array], y: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return x[0] * y[0], y[0] * x[1] + y[1]

    _, h = lax.associative_scan(combine, (gates, terms), reverse=s.reverse, axis=1)
    return h.astype(b.dtype), (behind * h[:, last] if s.delayed else h[:, last])


_FORMULATIONS = {IN_PLACE: in_place, ASSOCIATIVE: associative}


def _plain(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array) -> Arrays:
    return _FORMULATIONS[s.how](s, a, b, h0)


def _call(s: Spec, *arrays: jax.Array, named: bool) -> Arrays:
    return ENGINE.call(SCAN, s, *arrays, named=named)


# An operation without `build` is plain JAX on every platform: the engine is there for the rules of its derivative.
ENGINE = Engine("xla", "cpu", lambda *_: "is plain JAX")
SCAN = ENGINE.operation("linear scan", Spec, recurrence.results, None, _plain, **recurrence.rules(_call))
