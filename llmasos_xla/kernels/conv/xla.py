"""Convolution in plain JAX: one function a formulation, all of the same value.

`lax_conv` takes every geometry and is the oracle. The others are for channels-last arrays, `x [batch, *spatial, cin]`
and `w [*kernel, cin / groups, cout]`, and their gradients are autodiff's, so that no backward pass keeps a dimension
order that no library takes.
"""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels.conv.geometry import Geometry


def lax_conv(x: jax.Array, w: jax.Array, g: Geometry, out_sharding: object = None) -> jax.Array:
    """`lax.conv_general_dilated`."""
    return lax.conv_general_dilated(
        x,
        w,
        g.stride,
        g.pads,
        g.lhs_dilation,
        g.rhs_dilation,
        g.numbers,
        g.groups,
        g.batch_groups,
        g.precision,
        g.preferred,
        **({} if out_sharding is None else {"out_sharding": out_sharding}),
    )


def taps_matmul(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """One matmul for each kernel position, over the input shifted to it: `y = sum_k x[k + s i] @ w[k]`."""
    total = None
    for offset, part in _taps(x, g):
        term = lax.dot_general(
            part, w[offset], (((g.rank + 1,), (0,)), ((), ())), g.precision, preferred_element_type=_wide(g)
        )
        total = term if total is None else total + term
    return _narrow(total, g)


def patches_matmul(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """One matmul over the patches: `y = concat_k(x[k + s i]) @ w.reshape(-1, cout)`."""
    patches = jnp.concatenate([part for _, part in _taps(x, g)], axis=-1)
    y = lax.dot_general(
        patches,
        w.reshape(-1, g.cout),
        (((g.rank + 1,), (0,)), ((), ())),
        g.precision,
        preferred_element_type=_wide(g),
    )
    return _narrow(y, g)


def taps_multiply(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """One multiply-add for each kernel position, for one input channel a group (depthwise)."""
    multiplier = g.cout // g.cin
    wide = _wide(g) or x.dtype
    x = x.astype(wide)
    w = w.astype(wide).reshape(*g.kernel, g.cin, multiplier)
    total = None
    for offset, part in _taps(x, g):
        term = part[..., None] * lax.broadcast_in_dim(
            w[offset], (*part.shape, multiplier), (g.rank + 1, g.rank + 2)
        )
        total = term if total is None else total + term
    return _narrow(total, g).reshape(g.batch, *g.out_size, g.cout)


def _taps(x: jax.Array, g: Geometry) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Each kernel position with the part of the padded input that it multiplies, `[batch, *out, cin]`."""
    x = padded(x, g)
    for offset in itertools.product(*map(range, g.kernel)):
        start = [k * d for k, d in zip(offset, g.rhs_dilation)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, g.out_size, g.stride)]
        yield offset, lax.slice(x, (0, *start, 0), (g.batch, *stop, g.cin), (1, *g.stride, 1))


def padded(x: jax.Array, g: Geometry) -> jax.Array:
    """The input with its padding; negative padding crops."""
    if all(pair == (0, 0) for pair in g.pads):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in g.pads), (0, 0, 0)))


def _wide(g: Geometry) -> jnp.dtype | None:
    """The dtype of partial sums: 16-bit operands are summed in float32, as the convolution of lax is."""
    if g.preferred is not None:
        return g.preferred
    return jnp.dtype(jnp.float32) if g.dtype.itemsize < 4 else None


def _narrow(y: jax.Array, g: Geometry) -> jax.Array:
    return y.astype(g.preferred or g.dtype)


def macs(g: Geometry) -> int:
    """Multiply-adds of one forward pass."""
    return g.batch * math.prod(g.out_size) * math.prod(g.kernel) * (g.cin // g.groups) * g.cout
