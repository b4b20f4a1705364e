"""Recurrence by persistent Triton kernels, behind the same arguments as the XLA versions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._dispatch import elsewhere
from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels._triton.precision import dot_precisions
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn._check import Problem
from llmasos_xla.kernels.rnn.triton_operations import INFERENCE
from llmasos_xla.kernels.rnn.triton_spec import (
    CHOICE,
    MOST_ROUNDS,
    MOST_STATES,
    NORMS,
    Spec,
    origin,
    shape_class,
    tiles,
)

# Units of a head are filled up to a multiple: rows of whole 16-byte words, which one instruction loads.
_ALIGNED = 16


def cannot(kind: str, *problems: Problem) -> str | None:
    """Why the kernels cannot compute this problem here, or None. Two problems are the two directions of one."""
    p = problems[0]
    why = elsewhere("gpu") or _triton.refusal() or _triton.unfit(p.x, p.w_input, p.w_recurrent)
    if why is not None:
        return why
    if str(p.x.dtype) not in _triton.DTYPES:
        return f"takes {', '.join(_triton.DTYPES)}, x is {p.x.dtype}"
    s = spec_of(kind, *problems)
    return s if isinstance(s, str) else None


def slower(kind: str, *problems: Problem) -> str | None:
    """Why XLA is the better choice although the kernels could, or None."""
    if problems[0].x.shape[1] == 1:
        return "one step has no loop to save"
    s = spec_of(kind, *problems)
    assert isinstance(s, Spec)
    return tuned.slower(s.device.name, CHOICE, choice_class(s))


def choice_class(s: Spec) -> str:
    """The shape class that decides between these kernels and XLA."""
    return shape_class(s.kind, s.batch, s.blocks, s.head, s.dtype, s.precision, s.time)


def reason(kind: str, *problems: Problem) -> str:
    """Why the kernels are preferred, and where their tiles come from."""
    s = spec_of(kind, *problems)
    assert isinstance(s, Spec)
    return f"all steps in one launch, the recurrent weights on chip; {origin(s)}"


def spec_of(kind: str, *problems: Problem) -> Spec | str:
    """The problem for the kernels, or why they have no tiles for it."""
    device, p = _triton.device(), problems[0]
    batch, time, cin = p.x.shape
    heads, head = _blocks(p)
    epsilon, counted = (p.layer_norm.epsilon, head) if p.layer_norm else (0.0, 0)
    if counted and heads > 1:
        return f"layer_norm takes its statistics over {heads} heads, which are programs of their own"
    blocks, head = len(problems) * heads, -(-head // _ALIGNED) * _ALIGNED
    reverse = 2 if len(problems) == 2 else int(p.reverse)
    dtype = str(p.x.dtype)
    if batch * blocks * head > MOST_STATES:
        return f"{batch} rows of {blocks * head} units are a state of more than {MOST_STATES} elements"
    optional = p.lengths is not None, p.resets is not None, p.recurrent_mask is not None
    for precision in dot_precisions(dtype):
        forward, backward = (tiles(kind, batch, blocks, head, dtype, precision, device, back) for back in (False, True))
        if forward is not None and backward is not None:
            sizes = batch, time, cin, blocks, heads, head
            cut = forward, backward
            return Spec(kind, *sizes, reverse, dtype, *optional, precision, device, *cut, counted, epsilon)
    if counted:
        return (
            f"layer_norm takes its statistics inside of one program, and the recurrent weights of {counted} units of "
            f"{dtype} do not fit the {device.shared_memory} bytes of shared memory that it can have"
        )
    return (
        f"{blocks} block(s) of {head} units do not fit: recurrent weights of {dtype} must lie in the shared memory of "
        f"{device.multiprocessors} multiprocessors, {device.shared_memory} bytes each, "
        f"for {batch} rows in at most {MOST_ROUNDS} rounds"
    )


def recurrence(kind: str, problems: Sequence[Problem], named: bool) -> list[tuple[jax.Array, tuple[jax.Array, ...]]]:
    """The outputs `[batch, time, hidden]` and the final states: of the problem, or of both directions of one."""
    s = spec_of(kind, *problems)
    assert isinstance(s, Spec)
    p = problems[0]
    of_each = [_weights(s, each) for each in problems]
    given = {name: jnp.concatenate([a[name] for a in of_each], axis=-1) for name in of_each[0]}
    given["w_recurrent"] = jnp.concatenate([a["w_recurrent"] for a in of_each])
    given["x"] = p.x
    if s.lengths:
        given["lengths"] = lengths = p.lengths.astype(jnp.int32)
        padding = jnp.arange(s.time, dtype=jnp.int32)[None, :, None] >= lengths[:, None, None]
        # 0 * NaN would reach the gradient of w_input.
        given["x"] = jnp.where(padding, jnp.zeros_like(p.x), p.x)
    if s.resets:
        given["resets"] = p.resets.astype(jnp.uint8)
    results = _triton.call(INFERENCE, s, *(given[name] for name in (*s.arguments, *s.integers)), named=named)
    _, head = _blocks(p)
    by_direction = zip(*(jnp.split(a, len(problems), axis=-1) for a in results))
    out = []
    for y, *final in by_direction:
        y, *final = (a.reshape(*a.shape[:-1], -1, s.head)[..., :head].reshape(*a.shape[:-1], -1) for a in (y, *final))
        out.append((y, tuple(a.astype(y.dtype) for a in final)))
    return out


def _weights(s: Spec, p: Problem) -> dict[str, jax.Array]:
    """The arrays of a direction as the kernels take them, each head filled up with units of zeros."""
    high = jnp.dtype(jnp.float32)
    heads, head = _blocks(p)

    def padded(a: jax.Array, gates: int) -> jax.Array:
        """The last axis, gate by gate and head by head."""
        if head == s.head:
            return a
        apart = a.reshape(*a.shape[:-1], gates, -1, head)
        wide = jnp.pad(apart, [(0, 0)] * (apart.ndim - 1) + [(0, s.head - head)])
        return wide.reshape(*a.shape[:-1], -1)

    def vector(a: jax.Array | None, gates: int = s.gates, otherwise: float = 0.0) -> jax.Array:
        return padded(jnp.full(gates * heads * head, otherwise, high) if a is None else a.astype(high), gates)

    w = padded(p.w_recurrent.reshape(heads, head, s.gates * head), s.gates)
    given: dict[str, Any] = {
        "w_input": padded(p.w_input, s.gates),
        "w_recurrent": jnp.pad(w, [(0, 0), (0, s.head - head), (0, 0)]),
        "bias": vector(p.bias),
        "recurrent_bias": vector(p.recurrent_bias),
    }
    nothing = xla.initial(tuple(jnp.zeros((s.batch, heads * s.head), high) for _ in p.states))
    for name, state, zero in zip(("h0", "c0", "n0", "m0"), p.states, nothing):
        given[name] = zero if state is None else padded(state.astype(high), 1)
    if p.layer_norm is not None:
        for name in NORMS:
            gates, otherwise = 1 if name.startswith("cell") else s.gates, 0.0 if name.endswith("offset") else 1.0
            given[name] = vector(getattr(p.layer_norm, name), gates, otherwise)
    if s.mask:
        given["mask"] = padded(p.recurrent_mask.astype(high), 1)
    return given


def _blocks(p: Problem) -> tuple[int, int]:
    """Heads, and units of one."""
    return p.w_recurrent.shape[:2] if p.w_recurrent.ndim == 3 else (1, p.w_recurrent.shape[0])
