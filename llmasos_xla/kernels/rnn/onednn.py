"""Recurrence by oneDNN, behind the same arguments as the XLA versions.

oneDNN knows nothing of lengths. A padded step must hand on the state as it is, which gates do exactly: in steps of
padding a further input feature of 1 meets weights of plus and minus 2^30, so that an LSTM's c' = 1 c + 0 g and a GRU's
h' = (1 - 1) n + 1 h, and every gradient through the closed gates is 0. An LSTM's h is no such state: forward in time it
is read at the row's last step, and in reverse, where padding comes first, it stays 0 if it started from 0. The simple
recurrence has no gates, so ragged rows of it are run forward in time only.
"""

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._dispatch import elsewhere
from llmasos_xla.kernels.rnn._check import Problem
from llmasos_xla.kernels.rnn.onednn_operations import INFERENCE, exchange_gates
from llmasos_xla.kernels.rnn.onednn_spec import FINAL, GATES, Spec

DTYPES = ("float32", "bfloat16")
# Above any sum of products that a gate could meet; its square is finite.
_CLOSED = 2.0**30
_LEAST = 2**18
# What each gate, in oneDNN's order, is closed to in steps of padding: i f g o and z r n.
_HOLD = {"lstm": (-_CLOSED, _CLOSED, 0.0, 0.0), "gru": (_CLOSED, 0.0, 0.0)}


def cannot(op: str, p: Problem) -> str | None:
    """Why oneDNN cannot compute this problem here, or None."""
    dtype, why = str(p.x.dtype), elsewhere("cpu")
    if why is not None:
        return why
    if dtype not in DTYPES:
        return f"takes {' and '.join(DTYPES)}, x is {dtype}"
    if op == "gru" and dtype == "bfloat16":
        return "keeps a GRU's state in bfloat16 between steps, where float32 is promised"
    if p.lengths is not None and p.reverse:
        if op == "rnn":
            return "has no gates to skip leading padding with: lengths and reverse are given"
        if op == "lstm" and any(state is not None for state in p.states):
            return "cannot carry an LSTM's initial h over leading padding: lengths, reverse and a state are given"
    return _onednn.refusal(INFERENCE, spec_of(op, p))


def spec_of(op: str, p: Problem) -> Spec:
    """oneDNN's description of the problem."""
    batch, time, cin = p.x.shape
    initial = any(state is not None for state in p.states)
    cin += _holds(op, p)
    return Spec(op, batch, time, cin, p.w_recurrent.shape[0], str(p.x.dtype), initial, p.reverse)


def recurrence(op: str, p: Problem, named: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The outputs `[batch, time, hidden]` and the final states."""
    s = spec_of(op, p)
    x, w_input, w_recurrent, bias = p.x, p.w_input, p.w_recurrent, _bias(op, p)
    if op == "gru":
        w_input, w_recurrent = exchange_gates(w_input), exchange_gates(w_recurrent)
    padding = None
    if p.lengths is not None:
        lengths = p.lengths.astype(jnp.int32)
        padding = jnp.arange(s.time, dtype=jnp.int32)[None, :, None] >= lengths[:, None, None]
        # 0 * NaN would reach the gradient of w_input.
        x = jnp.where(padding, jnp.zeros_like(x), x)
        if _holds(op, p):
            x = jnp.concatenate([x, padding.astype(x.dtype)], axis=-1)
            row = jnp.repeat(jnp.array(_HOLD[op], x.dtype), s.hidden)[None]
            w_input = jnp.concatenate([w_input, row])
    states = _states(op, p, s) if s.initial else []
    y, *final = _onednn.call(INFERENCE, s, x, w_input, w_recurrent, bias, *states, named=named)
    if padding is not None:
        if op != "gru" and not s.reverse:
            final[0] = _at_last_step(y, lengths, states[0] if states else None)
        y = jnp.where(padding, jnp.zeros_like(y), y)
    return y, tuple(a.astype(y.dtype) for a in final)


def _holds(op: str, p: Problem) -> bool:
    """Whether gates are closed over padding by a further input feature."""
    return p.lengths is not None and op in _HOLD


def _bias(op: str, p: Problem) -> jax.Array:
    """The bias in float32 as oneDNN has it: of a GRU z r n and, apart, the recurrent bias of n."""
    columns = p.w_input.shape[1]
    zeros = jnp.zeros(columns, jnp.float32)
    bias = zeros if p.bias is None else p.bias.astype(jnp.float32)
    if op != "gru":
        return bias
    recurrent = zeros if p.recurrent_bias is None else p.recurrent_bias.astype(jnp.float32)
    inside = 2 * columns // 3
    both = jnp.concatenate([bias[:inside] + recurrent[:inside], bias[inside:]])
    return jnp.concatenate([exchange_gates(both), recurrent[inside:]])


def _states(op: str, p: Problem, s: Spec) -> list[jax.Array]:
    names = s.arguments[-len(FINAL[op]) :]
    given = zip(map(s.struct, names), p.states)
    return [jnp.zeros(a.shape, a.dtype) if state is None else state.astype(a.dtype) for a, state in given]


def _at_last_step(y: jax.Array, lengths: jax.Array, initial: jax.Array | None) -> jax.Array:
    """The output at each row's last step, where there is one, else the initial state."""
    last = jnp.take_along_axis(y, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where(lengths[:, None] > 0, last, jnp.zeros_like(last) if initial is None else initial)


def slower(op: str, p: Problem) -> str | None:
    """Why XLA is the better choice although oneDNN could, from measurement, or None.

    A simple recurrence of 16 units over 20 steps of 16 rows, forward and backward: 0.35 ms against 0.19; one step of a
    GRU(128) of one row: 0.44 against 0.10, and forward 0.12 against 0.04.
    """
    s = spec_of(op, p)
    work = s.batch * s.time * (s.cin + s.hidden) * s.hidden * GATES[op]
    if op != "lstm" and work < _LEAST:
        return f"{work} multiplications; in a {op} a call pays from {_LEAST}"
    return None
