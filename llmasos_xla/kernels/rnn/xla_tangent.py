"""The recurrences with a hand-written derivative: same values as the plain scan, a cheaper gradient.

Autodiff of a plain scan adds each step's `h_prev^T dz` into dU inside the reverse loop, and keeps every intermediate
of the cell. Here the tangent of the recurrence is written as a linear scan whose coefficients are computed for all
steps at once, and the weights' tangent enters it from outside, as one matmul `H_prev dU`. JAX transposes that into the
backward pass one would write by hand: one reverse scan with one product with U^T a step, then one matmul for dU.

A JVP rule rather than a VJP rule, because it serves forward mode, reverse mode and every mix of them.
With d for tangents, U = w_recurrent and gates stacked along the last axis:

    LSTM  q = s + dh U,  dc' = f dc + A_i q_i + A_f q_f + A_g q_g,  dh' = tanh'(c') o dc' + A_o q_o
    GRU   dh' = z dh + sum_g A_g (dh U)_g + s        RNN   dh' = A (dh U) + s

Where `valid` is False the state is kept: coefficients 0, kept share 1.

All take x `[time, batch, cin]` and biases `[1, columns]`, and return the states `[time, batch, hidden]` and the final
ones. With `inside`, a call that is not differentiated projects x step by step in the plain scan.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from llmasos_xla.kernels.rnn.xla import Cell, gru_cell, matmul, project, rnn_cell, scan

Pair = tuple[jax.Array, jax.Array]
One = tuple[jax.Array]


@partial(jax.custom_jvp, nondiff_argnums=(7,))
def lstm(
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    w: jax.Array,
    h0: jax.Array,
    c0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[jax.Array, Pair]:
    """The states and the final `(h, c)`."""
    states, final, _ = _lstm_forward(x, w_input, bias, w, h0, c0, valid, reverse, keep=False)
    return states, final


def _lstm_jvp(reverse: bool, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    x, w_input, bias, w, h0, c0, valid = primals
    dx, dw_input, dbias, dw, dh0, dc0, _ = map(_present, tangents)
    states, final, (c_prev, gates, tanh_c) = _lstm_forward(x, w_input, bias, w, h0, c0, valid, reverse, keep=True)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    a = jnp.concatenate([g * i * (1 - i), c_prev * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], axis=-1)
    a, f = _where(valid, a, 0), _where(valid, f, 1)
    from_c = _where(valid, o * (1 - tanh_c * tanh_c), 0)
    h_prev = _previous(states, h0, reverse)
    s = _filled(dbias, bias)[None] + _products((dx, w_input), (x, dw_input), (h_prev, dw))

    def step(d: Pair, xs: tuple) -> tuple[Pair, jax.Array]:
        dh, dc = d
        s, a, f, from_c, ok = xs
        q_i, q_f, q_g, q_o = jnp.split(a * (s + matmul(dh, w)), 4, axis=-1)
        dc = f * dc + q_i + q_f + q_g
        new = from_c * dc + q_o
        new = new if ok is None else new + jnp.where(ok, jnp.zeros_like(dh), dh)
        return (new, dc), new

    start = _filled(dh0, h0), _filled(dc0, c0)
    dfinal, dstates = lax.scan(step, start, (jnp.broadcast_to(s, a.shape), a, f, from_c, valid), reverse=reverse)
    return (states, final), (dstates, dfinal)


lstm.defjvp(_lstm_jvp, symbolic_zeros=True)


def _lstm_forward(
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    w: jax.Array,
    h0: jax.Array,
    c0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
    keep: bool,
) -> tuple[jax.Array, Pair, Any]:
    """States, final pair and, where they are kept, each step's `(c_prev, gates, tanh_c)`."""
    scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5]), w.shape[0]).astype(bias.dtype)[None]

    def step(state: Pair, xs: tuple) -> tuple[Pair, tuple]:
        h, c = state
        p, ok = xs
        # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: one tanh over all four gates is three times faster on CPU, where the
        # exponential of a slice is not vectorized.
        gates = jnp.tanh((p + bias + matmul(h, w)) * scale) * scale + (1 - scale)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c_new = f * c + i * g
        tanh_c = jnp.tanh(c_new)
        new = _keep(ok, (o * tanh_c, c_new), state)
        return new, (new[0], (c, gates, tanh_c) if keep else None)

    final, (states, kept) = lax.scan(step, (h0, c0), (project(x, w_input), valid), reverse=reverse)
    return states, final, kept


@partial(jax.custom_jvp, nondiff_argnums=(7, 8))
def gru(
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    w: jax.Array,
    recurrent_bias: jax.Array,
    h0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
    inside: bool,
) -> tuple[jax.Array, One]:
    """The states and the final `(h,)`."""
    if inside:
        return _inside(gru_cell(w, recurrent_bias[0]), x, w_input, bias, h0, valid, reverse)
    states, final, _ = _gru_forward(x, w_input, bias, w, recurrent_bias, h0, valid, reverse, keep=False)
    return states, final


def _gru_jvp(reverse: bool, inside: bool, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    x, w_input, bias, w, recurrent_bias, h0, valid = primals
    dx, dw_input, dbias, dw, drecurrent_bias, dh0, _ = map(_present, tangents)
    states, final, (rz, n, q_n) = _gru_forward(x, w_input, bias, w, recurrent_bias, h0, valid, reverse, keep=True)
    h_prev = _previous(states, h0, reverse)
    r, z = jnp.split(rz, 2, axis=-1)
    a_n = (1 - z) * (1 - n * n)
    a_rz = jnp.concatenate([a_n * q_n * r * (1 - r), (h_prev - n) * z * (1 - z)], axis=-1)
    a_rz, a_n, z = _where(valid, a_rz, 0), _where(valid, a_n, 0), _where(valid, z, 1)
    # The reset gate stands between n and the recurrent product, not between n and the input.
    from_p = jnp.concatenate([a_rz, a_n], axis=-1)
    from_h = jnp.concatenate([a_rz, a_n * _where(valid, r, 0)], axis=-1)
    dp = _filled(dbias, bias)[None] + _products((dx, w_input), (x, dw_input))
    dq = _filled(drecurrent_bias, recurrent_bias)[None] + _products((h_prev, dw))
    s = _gate_sum(from_p * dp + from_h * dq, 3)
    dstates, dfinal = _linear(z, from_h, s, w, _filled(dh0, h0), reverse)
    return (states, final), (dstates, (dfinal,))


gru.defjvp(_gru_jvp, symbolic_zeros=True)


def _gru_forward(
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    w: jax.Array,
    recurrent_bias: jax.Array,
    h0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
    keep: bool,
) -> tuple[jax.Array, One, Any]:
    """States, final state and, where they are kept, each step's `(rz, n, q_n)`."""
    hidden = w.shape[0]

    def step(state: Pair, xs: tuple) -> tuple[Pair, tuple]:
        h, p = state
        p_next, ok = xs
        p, q = p + bias, matmul(h, w) + recurrent_bias
        rz = 0.5 * jnp.tanh(0.5 * (p[:, : 2 * hidden] + q[:, : 2 * hidden])) + 0.5
        r, z = jnp.split(rz, 2, axis=-1)
        q_n = q[:, 2 * hidden :]
        n = jnp.tanh(p[:, 2 * hidden :] + r * q_n)
        new = _keep(ok, n + z * (h - n), h)
        return (new, p_next), (new, (rz, n, q_n) if keep else None)

    # The loop carries the p that its next step needs. On CPU, XLA does not vectorize a tanh of part of a slice that it
    # reads in the same fusion: a forward pass took twice as long with p in step.
    rolled = jnp.concatenate([x[-1:], x[:-1]] if reverse else [x[1:], x[:1]])
    p = project(rolled, w_input)
    (final, _), (states, kept) = lax.scan(step, (h0, p[0 if reverse else -1]), (p, valid), reverse=reverse)
    return states, (final,), kept


@partial(jax.custom_jvp, nondiff_argnums=(6, 7, 8))
def rnn(
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    w: jax.Array,
    h0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
    inside: bool,
    relu: bool,
) -> tuple[jax.Array, One]:
    """The states and the final `(h,)`."""
    if inside:
        cell = rnn_cell(w, jax.nn.relu if relu else jnp.tanh)
        return _inside(cell, x, w_input, bias, h0, valid, reverse)
    return _rnn_forward(x, w_input, bias, w, h0, valid, reverse, relu)


def _rnn_jvp(reverse: bool, inside: bool, relu: bool, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    x, w_input, bias, w, h0, valid = primals
    dx, dw_input, dbias, dw, dh0, _ = map(_present, tangents)
    states, final = _rnn_forward(x, w_input, bias, w, h0, valid, reverse, relu)
    slope = (states > 0).astype(states.dtype) if relu else 1 - states * states
    a = _where(valid, slope, 0)
    kept = None if valid is None else jnp.broadcast_to(1 - valid.astype(a.dtype), a.shape)
    h_prev = _previous(states, h0, reverse)
    s = a * (_filled(dbias, bias)[None] + _products((dx, w_input), (x, dw_input), (h_prev, dw)))
    dstates, dfinal = _linear(kept, a, s, w, _filled(dh0, h0), reverse)
    return (states, final), (dstates, (dfinal,))


rnn.defjvp(_rnn_jvp, symbolic_zeros=True)


def _rnn_forward(
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    w: jax.Array,
    h0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
    relu: bool,
) -> tuple[jax.Array, One]:
    f = jax.nn.relu if relu else jnp.tanh

    def step(h: jax.Array, xs: tuple) -> Pair:
        p, ok = xs
        new = _keep(ok, f(p + bias + matmul(h, w)), h)
        return new, new

    final, states = lax.scan(step, h0, (project(x, w_input), valid), reverse=reverse)
    return states, (final,)


def _inside(
    cell: Cell,
    x: jax.Array,
    w_input: jax.Array,
    bias: jax.Array,
    h0: jax.Array,
    valid: jax.Array | None,
    reverse: bool,
) -> tuple[jax.Array, One]:
    """The plain scan, with the input's product in the loop."""

    def step(state: One, x: jax.Array) -> One:
        return cell(state, matmul(x, w_input) + bias)

    states, (h,) = scan(step, x, (h0,), valid, reverse)
    return states, (h,)


def _linear(kept: jax.Array | None, a: jax.Array, s: jax.Array, w: jax.Array, dh0: jax.Array, reverse: bool) -> Pair:
    """The scan of dh' = kept dh + sum_g a_g (dh U)_g + s; its values at all steps and the last."""
    gates = w.shape[1] // w.shape[0]

    def step(dh: jax.Array, xs: tuple) -> Pair:
        kept, a, s = xs
        new = _gate_sum(a * matmul(dh, w), gates) + s
        new = new if kept is None else new + kept * dh
        return new, new

    dfinal, dstates = lax.scan(step, dh0, (kept, a, s), reverse=reverse)
    return dstates, dfinal


def _present(tangent: Any) -> jax.Array | None:
    """The tangent, None where it is known to be zero, so that no product is made with it."""
    return None if isinstance(tangent, SymbolicZero) else tangent


def _filled(tangent: jax.Array | None, primal: jax.Array) -> jax.Array:
    return jnp.zeros_like(primal) if tangent is None else tangent


def _gate_sum(a: jax.Array, gates: int) -> jax.Array:
    first, *others = jnp.split(a, gates, axis=-1)
    return sum(others, start=first)


def _products(*pairs: tuple[jax.Array | None, jax.Array | None]) -> Any:
    """The sum of `a @ w` over all steps, each as one matrix product, whose transpose gathers dw in one.

    A pair with a None in it is zero.
    """
    total = 0
    for a, w in pairs:
        if a is not None and w is not None:
            total = total + project(a, w)
    return total


def _previous(states: jax.Array, first: jax.Array, reverse: bool) -> jax.Array:
    """The state that each step started from."""
    return jnp.concatenate([states[1:], first[None]] if reverse else [first[None], states[:-1]])


def _keep(ok: jax.Array | None, new: Any, old: Any) -> Any:
    return new if ok is None else jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def _where(valid: jax.Array | None, a: jax.Array, otherwise: int) -> jax.Array:
    return a if valid is None else jnp.where(valid, a, jnp.full_like(a, otherwise))
