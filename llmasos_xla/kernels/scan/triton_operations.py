"""The linear recurrence by Triton as JAX operations.

`SCAN` is closed under differentiation, by the rules of `recurrence.py`. With `Config.fused` its derivative is instead

    dh      = tangent(a, h, h0, da, db, dh0)      whose transpose is
    d(b, h0, a) = backward(a, h, h0, dh)          one kernel

and the derivatives of these two are those of what they stand for, in terms of `SCAN`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._operation import Arrays
from llmasos_xla.kernels.scan import recurrence, xla
from llmasos_xla.kernels.scan.recurrence import Spec, before, mapped
from llmasos_xla.kernels.scan.triton_launches import run
from llmasos_xla.kernels.scan.triton_spec import configured


def recur(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array, named: bool) -> tuple[jax.Array, jax.Array]:
    """h and the final state."""
    h, final = _scan(configured(s), a, b, h0, named=named)
    return h, final


def _scan(s: Spec, *arrays: jax.Array, named: bool) -> Arrays:
    return _triton.call(SCAN, s, *arrays, named=named)


_RULES = recurrence.rules(_scan, configured)


def _jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    if not s.how.fused or s.delayed or tangents[0] is None or s.gate != s.shape:
        return _RULES["jvp"](s, primals, tangents, named)
    a, _, h0 = primals
    out = _scan(s, *primals, named=named)
    return out, _triton.call(TANGENT, s, a, out[0], h0, *_filled(primals, tangents), named=named)


def _tangent(s: Spec, *arrays: jax.Array, named: bool = False) -> Arrays:
    a, h, h0, da, db, dh0 = arrays
    entering = _times_before(s, da, h, h0) + db.astype(h0.dtype)
    return _scan(s, a, entering.astype(db.dtype), dh0, named=named)


def _backward(s: Spec, *arrays: jax.Array, named: bool = False) -> Arrays:
    a, h, h0, *cotangents = arrays
    db, dh0 = _scan(s.transposed(), a, *cotangents, named=named)
    return db, dh0, _times_before(s, db, h, h0).astype(a.dtype)


def _times_before(s: Spec, x: jax.Array, h: jax.Array, h0: jax.Array) -> jax.Array:
    return x.astype(h0.dtype) * before(s, h.astype(h0.dtype), h0)


def _build_backward(s: Spec, a: jax.Array, h: jax.Array, h0: jax.Array, *cotangents: jax.Array) -> Arrays:
    return run(s.transposed(), a, *cotangents, h, h0)


def _backward_results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [*recurrence.results(s), jax.ShapeDtypeStruct(s.gate, jnp.dtype(s.gate_dtype))]


def _tangent_transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
    db, dh0, da = _triton.call(BACKWARD, s, *arrays[:3], *cotangents, named=named)
    return [None] * 3 + [g if x is None else None for g, x in zip((da, db, dh0), arrays[3:])]


def _jvp_of(function: Callable) -> Callable:
    def jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
        return jax.jvp(functools.partial(function, s, named=named), tuple(primals), tuple(_filled(primals, tangents)))

    return jvp


def _filled(primals: Arrays, tangents: Arrays) -> list[Any]:
    return [jnp.zeros_like(p) if t is None else t for p, t in zip(primals, tangents)]


def _batch_of(name: str) -> Callable:
    """The mapped axis joins the rows, which all arrays of the fused operations have."""

    def batch(s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Arrays, Sequence[int]]:
        rows = size * s.batch
        joined = configured(s._replace(batch=rows, gate=(rows, *s.gate[1:])))
        flat = (m.reshape(rows, *m.shape[2:]) for m in (mapped(x, axis, size) for x, axis in zip(arrays, axes)))
        out = _triton.call(_triton.ENGINE.operations[name], joined, *flat, named=named)
        return [r.reshape(size, s.batch, *r.shape[1:]) for r in out], [0] * len(out)

    return batch


_NAMES = "linear scan", "linear scan tangent", "linear scan backward"

SCAN = _triton.operation(
    _NAMES[0], Spec, recurrence.results, run, xla.associative, batch=_RULES["batch"], jvp=_jvp,
    transpose=_RULES["transpose"], flops=lambda s: 2.0 * s.batch * s.time * s.channels,
)  # fmt: skip
TANGENT = _triton.operation(
    _NAMES[1], Spec, recurrence.results, None, _tangent, batch=_batch_of(_NAMES[1]), jvp=_jvp_of(_tangent),
    transpose=_tangent_transpose,
)  # fmt: skip
BACKWARD = _triton.operation(
    _NAMES[2], Spec, _backward_results, _build_backward, _backward, batch=_batch_of(_NAMES[2]), jvp=_jvp_of(_backward),
    flops=lambda s: 3.0 * s.batch * s.time * s.channels,
)  # fmt: skip
