"""Recurrence in plain JAX: a `lax.scan` of the cell, differentiated by autodiff. The oracle of every other version.

All run on the projected input `[time, batch, gates * hidden]`, which `project` makes in one matmul ahead of the scan.
In bfloat16 and float16 the operands of the matmuls stay in that dtype, while sums, gates and states are float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels.activation import Activation
from llmasos_xla.kernels.rnn.layer_norm import LayerNorm, normalize

Cell = Callable[[Any, jax.Array], Any]

# Stands for minus infinity where it is a state: sLSTM's stabilizer before the first step.
LOWEST = -1e30


def state_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums, gates and states: float32 for the 16-bit types, else the arrays' own."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def matmul(a: jax.Array, w: jax.Array) -> jax.Array:
    """`a @ w` over the last axis of `a`, operands in the dtype of `w`, summed and returned in its state dtype."""
    contract = (((a.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(a.astype(w.dtype), w, contract, preferred_element_type=state_dtype(w.dtype))


def recurrent(h: jax.Array, w: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The gates' share of the state: `(mask * h) U`, `[batch, gates * hidden]`.

    U is `[hidden, gates * hidden]`, or block-diagonal `[heads, head, gates * head]`.
    """
    h = h if mask is None else h * mask.astype(h.dtype)
    if w.ndim == 2:
        return matmul(h, w)
    heads, head, columns = w.shape
    batch, gates = h.shape[0], columns // head
    by_head = h.reshape(batch, heads, head).astype(w.dtype)
    q = lax.dot_general(by_head, w, (((2,), (1,)), ((1,), (0,))), preferred_element_type=state_dtype(w.dtype))
    return q.reshape(heads, batch, gates, head).transpose(1, 2, 0, 3).reshape(batch, gates * heads * head)


def project(x: jax.Array, w_input: jax.Array) -> jax.Array:
    """The gates' share of the input at all steps: `[time, batch, cin]` to `[time, batch, gates * hidden]`."""
    time, batch, cin = x.shape
    return matmul(x.reshape(time * batch, cin), w_input).reshape(time, batch, w_input.shape[1])


def normalized_input(p: jax.Array, norm: LayerNorm | None) -> jax.Array:
    """The projected input as an LSTM with that normalization takes it."""
    return p if norm is None else normalize(p, norm.epsilon, norm.input_scale)


def lstm_cell(
    w_recurrent: jax.Array,
    activation: Activation = jnp.tanh,
    recurrent_activation: Activation = jax.nn.sigmoid,
    mask: jax.Array | None = None,
    norm: LayerNorm | None = None,
) -> Cell:
    """One step `((h, c), p) -> (h, c)`, with c' = f c + i g and h' = o tanh(c'); gate order i f g o.

    With `norm`, h U and the c' in h' are normalized; so should p be, by `normalized_input`.
    """

    def step(state: tuple[jax.Array, jax.Array], p: jax.Array) -> tuple[jax.Array, jax.Array]:
        h, c = state
        q = recurrent(h, w_recurrent, mask)
        if norm is not None:
            q = normalize(q, norm.epsilon, norm.recurrent_scale)
        i, f, g, o = jnp.split(p + q, 4, axis=-1)
        c = recurrent_activation(f) * c + recurrent_activation(i) * activation(g)
        seen = c if norm is None else normalize(c, norm.epsilon, norm.cell_scale, norm.cell_offset)
        return recurrent_activation(o) * activation(seen), c

    return step


def gru_cell(
    w_recurrent: jax.Array,
    recurrent_bias: jax.Array | None = None,
    activation: Activation = jnp.tanh,
    recurrent_activation: Activation = jax.nn.sigmoid,
    reset_after: bool = True,
    mask: jax.Array | None = None,
) -> Cell:
    """One step `((h,), p) -> (h,)`, with h' = (1 - z) n + z h; gate order r z n."""
    *heads, head, _ = w_recurrent.shape
    hidden = head * math.prod(heads)
    b = jnp.zeros(3 * hidden, w_recurrent.dtype) if recurrent_bias is None else recurrent_bias
    b = b.astype(state_dtype(w_recurrent.dtype))[None]

    def step(state: tuple[jax.Array], p: jax.Array) -> tuple[jax.Array]:
        (h,) = state
        p_rz, p_n = p[:, : 2 * hidden], p[:, 2 * hidden :]
        if reset_after:
            q = recurrent(h, w_recurrent, mask) + b
            r, z = jnp.split(recurrent_activation(p_rz + q[:, : 2 * hidden]), 2, axis=-1)
            n = activation(p_n + r * q[:, 2 * hidden :])
        else:
            rz = p_rz + recurrent(h, w_recurrent[..., : 2 * head], mask) + b[:, : 2 * hidden]
            r, z = jnp.split(recurrent_activation(rz), 2, axis=-1)
            n = activation(p_n + recurrent(r * h, w_recurrent[..., 2 * head :], mask) + b[:, 2 * hidden :])
        return ((1 - z) * n + z * h,)

    return step


def rnn_cell(w_recurrent: jax.Array, activation: Activation = jnp.tanh, mask: jax.Array | None = None) -> Cell:
    """One step `((h,), p) -> (h,)`, with h' = activation(p + h U)."""
    return lambda state, p: (activation(p + recurrent(state[0], w_recurrent, mask)),)


def slstm_cell(w_recurrent: jax.Array, mask: jax.Array | None = None) -> Cell:
    """One step `((h, c, n, m), p) -> (h, c, n, m)`; gate order i f z o, with exponential i and logistic f.

    m' = max(log f + m, i) holds the exponents down and cancels in h' = o c' / n', so it is a constant to derivatives.
    """

    def step(state: tuple[jax.Array, ...], p: jax.Array) -> tuple[jax.Array, ...]:
        h, c, n, m = state
        i, f, z, o = jnp.split(p + recurrent(h, w_recurrent, mask), 4, axis=-1)
        log_f = jax.nn.log_sigmoid(f)
        top = lax.stop_gradient(jnp.maximum(log_f + m, i))
        i, f = jnp.exp(i - top), jnp.exp(log_f + lax.stop_gradient(m) - top)
        c, n = f * c + i * jnp.tanh(z), f * n + i
        return jax.nn.sigmoid(o) * (c / n), c, n, top

    return step


def scan(
    cell: Cell,
    p: jax.Array,
    state: tuple[jax.Array, ...],
    valid: jax.Array | None,
    reverse: bool,
    fresh: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs the cell over `p`; the outputs `[time, batch, hidden]` and the final state.

    `valid` and `fresh` are `[time, batch, 1]`. Where `valid` is False the state is kept and the output is zero. With
    right-padded rows and `reverse`, that starts each row at its own end. Where `fresh` is True the step starts from
    `initial(state)`.
    """

    def step(state: tuple[jax.Array, ...], xs: tuple) -> tuple[Any, jax.Array]:
        p, ok, new_row = xs
        if new_row is not None:
            begin = new_row if ok is None else new_row & ok
            state = tuple(jnp.where(begin, a, b) for a, b in zip(initial(state), state))
        new = cell(state, p)
        if ok is None:
            return new, new[0]
        kept = tuple(jnp.where(ok, a, b) for a, b in zip(new, state))
        return kept, jnp.where(ok, kept[0], jnp.zeros_like(kept[0]))

    state, ys = lax.scan(step, state, (p, valid, fresh), reverse=reverse)
    return ys, state


def initial(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """What a state is before the first step where nobody says: zeros, and the lowest stabilizer."""
    return tuple(jnp.full_like(s, LOWEST if place == 3 else 0) for place, s in enumerate(state))
