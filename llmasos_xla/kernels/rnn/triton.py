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
    heads, head, _ = p.w_recurrent.shape if p.w_recurrent.ndim == 3 else (1, *p.w_recurrent.shape)
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
    states = [jnp.zeros((s.batch, s.units), high) for _ in p.states]
    given: dict[str, Any] = {
        "x": p.x,
        "w_input": p.w_input,
        "w_recurrent": p.w_recurrent.reshape(s.blocks, s.head, s.gates * s.head),
        "bias": _vector(p.bias, s),
        "recurrent_bias": _vector(p.recurrent_bias, s),
    }
    for name, state, nothing in zip(("h0", "c0", "n0", "m0"), p.states, xla.initial(tuple(states))):
        given[name] = nothing if state is None else state.astype(high)
    if s.mask:
        given["mask"] = p.recurrent_mask.astype(high)
    if s.lengths:
        given["lengths"] = lengths = p.lengths.astype(jnp.int32)
        padding = jnp.arange(s.time, dtype=jnp.int32)[None, :, None] >= lengths[:, None, None]
        # 0 * NaN would reach the gradient of w_input.
        given["x"] = jnp.where(padding, jnp.zeros_like(p.x), p.x)
    if s.resets:
        given["resets"] = p.resets.astype(jnp.uint8)
    arrays = [given[name] for name in (*s.arguments, *s.integers)]
    y, *final = _triton.call(INFERENCE, s, *arrays, named=named)
    return y, tuple(a.astype(y.dtype) for a in final)


def _vector(bias: jax.Array | None, s: Spec) -> jax.Array:
    return jnp.zeros(s.gates * s.units, jnp.float32) if bias is None else bias.astype(jnp.float32)
