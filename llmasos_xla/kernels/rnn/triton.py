"""Recurrence by persistent Triton kernels, behind the same arguments as the XLA versions."""

from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._dispatch import platform
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn._check import Problem
from llmasos_xla.kernels.rnn.triton_operations import INFERENCE
from llmasos_xla.kernels.rnn.triton_spec import Spec, tiles

DTYPES = ("float32", "bfloat16", "float16")
# Units of a head are filled up to a multiple: rows of whole 16-byte words, which one instruction loads.
_ALIGNED = 16


def cannot(kind: str, p: Problem) -> str | None:
    """Why the kernels cannot compute this problem here, or None."""
    if platform() != "gpu":
        return f"runs on gpu, this is {platform()}"
    why = _triton.refusal() or _triton.unfit(p.x, p.w_input, p.w_recurrent)
    if why is not None:
        return why
    if str(p.x.dtype) not in DTYPES:
        return f"takes {', '.join(DTYPES)}, x is {p.x.dtype}"
    s = spec_of(kind, p)
    return s if isinstance(s, str) else None


def slower(kind: str, p: Problem) -> str | None:
    """Why XLA is the better choice although the kernels could, or None."""
    return "one step has no loop to save" if p.x.shape[1] == 1 else None


def spec_of(kind: str, p: Problem) -> Spec | str:
    """The problem for the kernels, or why they have no tiles for it."""
    device = _triton.current()
    assert isinstance(device, _triton.Device)
    batch, time, cin = p.x.shape
    heads, head = _blocks(p)
    head = -(-head // _ALIGNED) * _ALIGNED
    dtype = str(p.x.dtype)
    cut = [tiles(kind, batch, heads, head, dtype, device, backward) for backward in (False, True)]
    if None in cut:
        return (
            f"{heads} head(s) of {head} units for {batch} rows do not fit: the recurrent weights of {dtype} must lie in "
            f"the shared memory of {device.multiprocessors} multiprocessors, {device.shared_memory} bytes each"
        )
    optional = p.lengths is not None, p.resets is not None, p.recurrent_mask is not None
    return Spec(
        kind, batch, time, cin, heads, heads, head, int(p.reverse), dtype, *optional, _precision(), device, *cut
    )


def _precision() -> str:
    """Of float32 products inside the kernels: TF32 only where JAX is told so, else three of it, which make a float32."""
    asked = str(jax.config.jax_default_matmul_precision or "").lower()
    return "tf32" if asked in ("tensorfloat32", "tf32", "fastest") else "tf32x3"


def recurrence(kind: str, p: Problem, named: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The outputs `[batch, time, hidden]` and the final states."""
    s = spec_of(kind, p)
    assert isinstance(s, Spec)
    high = jnp.dtype(jnp.float32)
    heads, head = _blocks(p)

    def padded(a: jax.Array, gates: int) -> jax.Array:
        """The last axis, gate by gate and head by head, with zeros for the units that fill up a head."""
        if head == s.head:
            return a
        apart = a.reshape(*a.shape[:-1], gates, -1, head)
        wide = jnp.pad(apart, [(0, 0)] * (apart.ndim - 1) + [(0, s.head - head)])
        return wide.reshape(*a.shape[:-1], -1)

    def vector(a: jax.Array | None) -> jax.Array:
        return jnp.zeros(s.gates * s.units, high) if a is None else padded(a.astype(high), s.gates)

    w = padded(p.w_recurrent.reshape(heads, head, s.gates * head), s.gates)
    given: dict[str, Any] = {
        "x": p.x,
        "w_input": padded(p.w_input, s.gates),
        "w_recurrent": jnp.pad(w, [(0, 0), (0, s.head - head), (0, 0)]) if head < s.head else w,
        "bias": vector(p.bias),
        "recurrent_bias": vector(p.recurrent_bias),
    }
    nothing = xla.initial(tuple(jnp.zeros((s.batch, s.units), high) for _ in p.states))
    for name, state, zero in zip(("h0", "c0", "n0", "m0"), p.states, nothing):
        given[name] = zero if state is None else padded(state.astype(high), 1)
    if s.mask:
        given["mask"] = padded(p.recurrent_mask.astype(high), 1)
    if s.lengths:
        given["lengths"] = lengths = p.lengths.astype(jnp.int32)
        padding = jnp.arange(s.time, dtype=jnp.int32)[None, :, None] >= lengths[:, None, None]
        # 0 * NaN would reach the gradient of w_input.
        given["x"] = jnp.where(padding, jnp.zeros_like(p.x), p.x)
    if s.resets:
        given["resets"] = p.resets.astype(jnp.uint8)
    arrays = [given[name] for name in (*s.arguments, *s.integers)]
    results = _triton.call(INFERENCE, s, *arrays, named=named)
    y, *final = (a.reshape(*a.shape[:-1], heads, s.head)[..., :head].reshape(*a.shape[:-1], -1) for a in results)
    return y, tuple(a.astype(y.dtype) for a in final)


def _blocks(p: Problem) -> tuple[int, int]:
    """Heads, and units of one."""
    return p.w_recurrent.shape[:2] if p.w_recurrent.ndim == 3 else (1, p.w_recurrent.shape[0])
