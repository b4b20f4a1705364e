"""Which formulation of a linear recurrence runs, in the order of preference."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, platform
from llmasos_xla.kernels._operation import unfit
from llmasos_xla.kernels.scan import triton, triton_operations, xla
from llmasos_xla.kernels.scan._check import Problem
from llmasos_xla.kernels.scan.recurrence import Spec, state_dtype

Pair = tuple[jax.Array, jax.Array]


def candidates(p: Problem, named: bool = False) -> list[Candidate]:
    """Every way to compute it. Shapes do for arrays if none runs. `named`: an implementation was asked for by name."""
    cannot = unfit(*(x for x in (p.a, p.b, p.h0) if x is not None))
    on_cpu = platform() == "cpu"

    def recur(how: str) -> Callable[[], Pair]:
        return lambda: _prepared(p, lambda a, b, h0: xla.recur(spec_of(p, how), a, b, h0))

    def kernel() -> Pair:
        return _prepared(p, lambda a, b, h0: triton_operations.recur(spec_of(p, None), a, b, h0, named))

    in_place = Candidate(
        "xla", xla.IN_PLACE, recur(xla.IN_PLACE), cannot, "one pass over memory; measured fastest on CPU"
    )
    associative = Candidate(
        "xla", xla.ASSOCIATIVE, recur(xla.ASSOCIATIVE), cannot, "some launches for all steps, not some for each"
    )
    spec = spec_of(p, None)
    refused = triton.cannot(spec, cannot)
    walk = Candidate("triton", triton.WALK, kernel, refused)
    if refused is None:
        walk = Candidate("triton", triton.WALK, kernel, triton.slower(spec), triton.reason(spec), able=True)
    return [
        walk,
        *([in_place, associative] if on_cpu or p.b.shape[1] == 1 else [associative, in_place]),
        Candidate(
            "xla", xla.STEPS, lambda: _prepared(p, lambda a, b, h0: xla.steps(a, b, h0, p.reverse)), None,
            "takes every array; autodiff's gradient",
        ),
    ]  # fmt: skip


def spec_of(p: Problem, how: str | None) -> Spec:
    """The recurrence that is left when lengths and resets are gates of 1 and 0."""
    full = p.lengths is not None or p.resets is not None
    batch, time, channels = p.b.shape
    gate = (batch, time, p.a.shape[2]) if full else p.a.shape
    return Spec(batch, time, channels, gate, str(p.b.dtype), str(p.a.dtype), bool(p.reverse), False, how)


def _prepared(p: Problem, recur: Callable[[jax.Array, jax.Array, jax.Array], Pair]) -> Pair:
    """Runs a recurrence of all steps: padding keeps the state, a reset drops it, and neither is looked at."""
    a, b = p.a, p.b
    batch, time, channels = b.shape
    if p.resets is not None:
        a = jnp.where(p.resets[..., None], jnp.zeros_like(a), a)
    valid = None
    if p.lengths is not None:
        steps = jnp.arange(time, dtype=jnp.int32)
        valid = (steps[None] < p.lengths.astype(jnp.int32)[:, None])[..., None]
        a, b = jnp.where(valid, a, jnp.ones_like(a)), jnp.where(valid, b, jnp.zeros_like(b))
    high = state_dtype(b.dtype)
    h0 = jnp.zeros((batch, channels), high) if p.h0 is None else p.h0.astype(high)
    h, final = recur(a, b, h0)
    if valid is not None:
        h = jnp.where(valid, h, jnp.zeros_like(h))
    return h, final.astype(b.dtype if p.h0 is None else p.h0.dtype)
