"""Recurrence in plain JAX: a `lax.scan` of the cell, differentiated by autodiff. The oracle of every other version.

All run on the projected input `[time, batch, gates * hidden]`, which `project` makes in one matmul ahead of the scan.
In bfloat16 and float16 the operands of the matmuls stay in that dtype, while sums, gates and states are float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels.activation import Activation

Cell = Callable[[Any, jax.Array], Any]


def state_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums, gates and states: float32 for the 16-bit types, else the arrays' own."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def matmul(a: jax.Array, w: jax.Array) -> jax.Array:
    """`a @ w` over the last axis of `a`, operands in the dtype of `w`, summed and returned in its state dtype."""
    contract = (((a.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(a.astype(w.dtype), w, contract, preferred_element_type=state_dtype(w.dtype))


def project(x: jax.Array, w_input: jax.Array) -> jax.Array:
    """The gates' share of the input at all steps: `[time, batch, cin]` to `[time, batch, gates * hidden]`."""
    time, batch, cin = x.shape
    return matmul(x.reshape(time * batch, cin), w_input).reshape(time, batch, w_input.shape[1])


def lstm_cell(
    w_recurrent: jax.Array, activation: Activation = jnp.tanh, recurrent_activation: Activation = jax.nn.sigmoid
) -> Cell:
    """One step `((h, c), p) -> (h, c)`, with c' = f c + i g and h' = o tanh(c'); gate order i f g o."""

    def step(state: tuple[jax.Array, jax.Array], p: jax.Array) -> tuple[jax.Array, jax.Array]:
        h, c = state
        i, f, g, o = jnp.split(p + matmul(h, w_recurrent), 4, axis=-1)
        c = recurrent_activation(f) * c + recurrent_activation(i) * activation(g)
        return recurrent_activation(o) * activation(c), c

    return step


def gru_cell(
    w_recurrent: jax.Array,
    recurrent_bias: jax.Array | None = None,
    activation: Activation = jnp.tanh,
    recurrent_activation: Activation = jax.nn.sigmoid,
    reset_after: bool = True,
) -> Cell:
    """One step `((h,), p) -> (h,)`, with h' = (1 - z) n + z h; gate order r z n."""
    hidden = w_recurrent.shape[0]
    b = jnp.zeros(3 * hidden, w_recurrent.dtype) if recurrent_bias is None else recurrent_bias
    b = b.astype(state_dtype(w_recurrent.dtype))[None]

    def step(state: tuple[jax.Array], p: jax.Array) -> tuple[jax.Array]:
        (h,) = state
        p_rz, p_n = p[:, : 2 * hidden], p[:, 2 * hidden :]
        if reset_after:
            q = matmul(h, w_recurrent) + b
            r, z = jnp.split(recurrent_activation(p_rz + q[:, : 2 * hidden]), 2, axis=-1)
            n = activation(p_n + r * q[:, 2 * hidden :])
        else:
            rz = p_rz + matmul(h, w_recurrent[:, : 2 * hidden]) + b[:, : 2 * hidden]
            r, z = jnp.split(recurrent_activation(rz), 2, axis=-1)
            n = activation(p_n + matmul(r * h, w_recurrent[:, 2 * hidden :]) + b[:, 2 * hidden :])
        return ((1 - z) * n + z * h,)

    return step


def rnn_cell(w_recurrent: jax.Array, activation: Activation = jnp.tanh) -> Cell:
    """One step `((h,), p) -> (h,)`, with h' = activation(p + h U)."""
    return lambda state, p: (activation(p + matmul(state[0], w_recurrent)),)


def scan(
    cell: Cell, p: jax.Array, state: tuple[jax.Array, ...], valid: jax.Array | None, reverse: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs the cell over `p`; the outputs `[time, batch, hidden]` and the final state.

    `valid` is `[time, batch, 1]`: where it is False the state is kept and the output is zero. With right-padded rows
    and `reverse`, that starts each row at its own end.
    """

    def step(state: tuple[jax.Array, ...], xs: tuple[jax.Array, jax.Array | None]) -> tuple[Any, jax.Array]:
        p, ok = xs
        new = cell(state, p)
        if ok is None:
            return new, new[0]
        kept = tuple(jnp.where(ok, a, b) for a, b in zip(new, state))
        return kept, jnp.where(ok, kept[0], jnp.zeros_like(kept[0]))

    state, ys = lax.scan(step, state, (p, valid), reverse=reverse)
    return ys, state
