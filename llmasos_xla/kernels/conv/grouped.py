"""Grouped convolution whose gradients stay fast on GPUs with a stride or a dilated kernel.

XLA's GPU compiler has no backward-data call of cuDNN's for groups. The input gradient that lax derives of a strided
convolution is a forward call on dy with zeros written between its elements: `stride^rank` times the work. Here it is a
forward call on dy itself that makes the `stride^rank` phases of dx as so many channels:

        dx   0  1  2  3  4  5        phase 0 of dx:  0  2  4      w of the taps that reach phase 0
        dy   a     b     c           phase 1 of dx:  1  3  5      w of the taps that reach phase 1

And the kernel gradient of a dilated kernel is that of an undilated one between phases of x and dy (`canonical.py`).
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from llmasos_xla.kernels.conv.canonical import evenly_padded, joined, lax_conv, phases_of
from llmasos_xla.kernels.conv.geometry import Geometry


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def grouped(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """`lax_conv` of channels-last arrays, strided or with a dilated kernel, with gradients in the forms above."""
    return evenly_padded(x, w, g)


def _jvp(g: Geometry, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    dx, dw = tangents
    y = grouped(x, w, g)
    strided = any(s > 1 for s in g.stride) and all(d == 1 for d in g.rhs_dilation)
    parts = []
    if not isinstance(dx, SymbolicZero) and strided:
        dy = jax.ShapeDtypeStruct(y.shape, g.dtype)
        parts += jax.linear_transpose(lambda dy: _input_gradient(w, dy, g._replace(preferred=None)), dy)(dx)
    elif not isinstance(dx, SymbolicZero):
        parts.append(evenly_padded(dx, w, g))
    if not isinstance(dw, SymbolicZero):
        parts.append(lax_conv(x, dw, g) if strided else _between_phases(x, dw, g))
    return y, reduce(jnp.add, (p.astype(y.dtype) for p in parts))


grouped.defjvp(_jvp, symbolic_zeros=True)


def _between_phases(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    x, _, undilated = phases_of(x, jnp.zeros((g.batch, *g.out_size, 1), x.dtype), g)
    return joined(lax_conv(x, w, undilated), g)


def _input_gradient(w: jax.Array, dy: jax.Array, g: Geometry) -> jax.Array:
    """`dx[s q + e] = sum_t dy[q + t] w[e + low - s t]`, over the t for which w has that tap; e is the phase."""
    inside, pads, taps = [], [], []
    for n, (low, _), k, s, o in zip(g.size, g.pads, g.kernel, g.stride, g.out_size):
        first, last = -((k - 1 - low) // s), (s - 1 + low) // s
        taps.append(last - first + 1)
        inside.append((s * last - low, s * taps[-1] - k - (s * last - low), 0))
        pads.append((-first, -(-n // s) - 1 + last - (o - 1)))
    rank, phases, outer = g.rank, tuple(g.stride), tuple(-(-n // s) for n, s in zip(g.size, g.stride))
    cin, cout = g.cin // g.groups, g.cout // g.groups
    # [*taps and phases, cin, groups, cout] -> [*taps, cout, groups * phases * cin]
    w = lax.pad(w, jnp.zeros((), w.dtype), (*inside, (0, 0, 0), (0, 0, 0)))
    w = w.reshape(*(m for pair in zip(taps, phases) for m in pair), cin, g.groups, cout)
    w = lax.rev(w, tuple(range(0, 2 * rank, 2)))
    order = (*range(0, 2 * rank, 2), 2 * rank + 2, 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank)
    w = lax.transpose(w, order).reshape(*taps, cout, -1)
    one = (1,) * rank
    dx = lax_conv(
        dy,
        w,
        g._replace(size=g.out_size, cin=g.cout, kernel=tuple(taps), cout=w.shape[-1], stride=one, pads=tuple(pads)),
    )
    # [batch, *outer, groups, *phases, cin] -> [batch, *size, groups * cin]
    dx = dx.reshape(g.batch, *outer, g.groups, *phases, cin)
    order = (0, *(m for i in range(rank) for m in (1 + i, rank + 2 + i)), rank + 1, 2 * rank + 2)
    dx = lax.transpose(dx, order).reshape(g.batch, *(m * s for m, s in zip(outer, phases)), g.cin)
    return lax.slice(dx, (0,) * dx.ndim, (g.batch, *g.size, g.cin))
