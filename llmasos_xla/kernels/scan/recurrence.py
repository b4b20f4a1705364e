"""A linear recurrence as a JAX operation whose derivatives are linear recurrences.

The rules of differentiation and of vmap are the same whatever computes it, so they stand here once. With s for the
state, from s_0 on, an operation is one of

    plain      h_t = s_t = a_t s_{t-1} + b_t                     final: the last s
    delayed    h_t = s_t + b_t,   s_{t+1} = a_t h_t              final: the last s

in the order of time or against it. The tangent of the first is itself with b replaced by da h_{t-1} + db, and the
transpose of that, for cotangents g of h and f of the final state, is the second one against time:

    db_t = f + g_t at the last step, else g_t + a_{t+1} db_{t+1}     dh_0 = a_0 db_0     da_t = db_t h_{t-1}

Tangent and transpose of the second are such operations again, so derivatives of any order and in both modes run at the
speed of the first, and nothing but a and h is kept for them. The product that makes da is left to XLA, which computes
it in one pass with what a came from; most models have no use for da itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._operation import Arrays, mapped

Call = Callable[..., Sequence[jax.Array]]


class Spec(NamedTuple):
    """A linear recurrence of `[batch, time, channels]`."""

    batch: int
    time: int
    channels: int
    gate: tuple[int, int, int]
    """The shape of a, whose axes may have size one."""
    dtype: str
    """Of b and h."""
    gate_dtype: str
    """Of a."""
    reverse: bool
    """Whether it goes against time."""
    delayed: bool
    how: Any
    """What the implementation makes of it: the name of a formulation, or the sizes of a kernel."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of b and h."""
        return self.batch, self.time, self.channels

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last step in the order in which they are walked."""
        return (self.time - 1, 0) if self.reverse else (0, self.time - 1)

    def transposed(self) -> "Spec":
        """The recurrence that takes cotangents of h and the final state to those of b and h0."""
        return self._replace(reverse=not self.reverse, delayed=not self.delayed)


def state_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of states: float32 for the 16-bit types, else the array's own."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    """h, and the final state `[batch, channels]`."""
    dtype = jnp.dtype(s.dtype)
    return [
        jax.ShapeDtypeStruct(s.shape, dtype),
        jax.ShapeDtypeStruct((s.batch, s.channels), state_dtype(dtype)),
    ]


def before(s: Spec, x: jax.Array, first: jax.Array) -> jax.Array:
    """At each step what x `[batch, time, channels]` is one step before, in the order that is walked."""
    first = first[:, None]
    return jnp.concatenate([x[:, 1:], first] if s.reverse else [first, x[:, :-1]], axis=1)


def rules(call: Call, resized: Callable[[Spec], Spec] = lambda s: s) -> dict[str, Callable]:
    """`jvp`, `transpose` and `batch` of an operation that `call(spec, a, b, h0, named=...)` computes.

    `resized` makes a spec of other sizes right again.
    """

    def jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
        (a, b, h0), (da, db, dh0) = primals, tangents
        h, final = call(s, a, b, h0, named=named)
        if da is None and db is None and dh0 is None:
            return [h, final], [None, None]
        entering, leaving = _entering(s, da, h, h0)
        if entering is None:
            entering = jnp.zeros_like(b) if db is None else db
        else:
            entering = (entering if db is None else entering + db.astype(entering.dtype)).astype(b.dtype)
        dh, dfinal = call(s, a, entering, jnp.zeros_like(h0) if dh0 is None else dh0, named=named)
        return [h, final], [dh, dfinal if leaving is None else dfinal + leaving]

    def transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
        a, b, h0 = arrays
        db, dh0 = call(s.transposed(), a, *cotangents, named=named)
        return [None, db if b is None else None, dh0 if h0 is None else None]

    def batch(s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Arrays, Sequence[int]]:
        a, b, h0 = arrays
        if axes[0] is not None or s.gate[0] > 1:
            a = jnp.broadcast_to(mapped(a, axes[0], size), (size, s.batch, *s.gate[1:])).reshape(-1, *s.gate[1:])
        b, h0 = (mapped(x, axis, size) for x, axis in zip((b, h0), axes[1:]))
        joined = resized(s._replace(batch=size * s.batch, gate=a.shape))
        out = call(joined, a, b.reshape(joined.shape), h0.reshape(joined.batch, s.channels), named=named)
        return [r.reshape(size, s.batch, *r.shape[1:]) for r in out], [0, 0]

    return {"jvp": jvp, "transpose": transpose, "batch": batch}


def _entering(s: Spec, da: Any, h: jax.Array, h0: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
    """What the tangent of a adds to the recurrence at each step, and to the final state behind the last."""
    if da is None:
        return None, None
    # High precision through the sum over what a is shared by, which the transpose of this product takes.
    high = h0.dtype
    da, h = da.astype(high), h.astype(high)
    if not s.delayed:
        return da * before(s, h, h0), None
    product = da * h
    return before(s, product, jnp.zeros_like(h0)), product[:, s.ends[1]]
