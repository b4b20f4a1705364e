"""Batch normalization in plain JAX, with a derivative that transposes to two sums and one pass over the elements.

With n rows, z = (x - mean) / sqrt(variance + epsilon) and f = scale / sqrt(variance + epsilon) for each channel:

    y  = f (x - mean) + offset
    dy = f dx + z (dscale - f mean(z dx)) + (doffset - f mean(dx))

and the transpose of the second line, for the cotangent g of y:

    doffset = sum(g)    dscale = sum(z g)    dx = f (g - doffset / n - z dscale / n)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

Moments = tuple[jax.Array, jax.Array, jax.Array]


def statistics_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of mean and variance: bfloat16 has 8 bits, a sum of a thousand values would lose nearly all of each."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def batch_norm(x: jax.Array, scale: jax.Array | None, offset: jax.Array | None, epsilon: float) -> Moments:
    """y in x's dtype, mean and variance; scale and offset have the dtype of the statistics."""
    wide = x.astype(statistics_dtype(x.dtype))
    # Two passes: E[x^2] - E[x]^2 cancels when means are large.
    mean = _mean(wide)
    variance = _mean(jnp.square(wide - _row(mean, x)))
    return normalized(x, mean, variance, scale, offset, epsilon), mean, variance


def normalized(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array | None,
    offset: jax.Array | None,
    epsilon: float,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset, in x's dtype."""
    factor = lax.rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale
    y = (x.astype(mean.dtype) - _row(mean, x)) * _row(factor, x)
    if offset is not None:
        y = y + _row(offset, x)
    return y.astype(x.dtype)


def batch_norm_then(
    x: jax.Array,
    scale: jax.Array | None,
    offset: jax.Array | None,
    residual: jax.Array | None,
    relu: bool,
    epsilon: float,
) -> Moments:
    """`batch_norm` with residual added and a ReLU at the end."""
    y, mean, variance = batch_norm(x, scale, offset, epsilon)
    if residual is not None:
        y = y + residual
    return (jax.nn.relu(y) if relu else y), mean, variance


def _jvp(epsilon: float, primals: Any, tangents: Any) -> tuple[Moments, Moments]:
    x, scale, offset = primals
    dx, dscale, doffset = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    y, mean, variance = batch_norm(x, scale, offset, epsilon)
    dy = tangent(x, mean, variance, scale, epsilon, dx, dscale, doffset)
    if dx is None:
        return (y, mean, variance), (dy, jnp.zeros_like(mean), jnp.zeros_like(variance))
    return (y, mean, variance), (dy, *statistics_tangents(x, mean, dx))


batch_norm.defjvp(_jvp, symbolic_zeros=True)


def tangent(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array | None,
    epsilon: float,
    dx: jax.Array | None,
    dscale: jax.Array | None,
    doffset: jax.Array | None,
) -> jax.Array:
    """The tangent of y, linear in dx, dscale and doffset; None is zero."""
    high = mean.dtype
    rstd = lax.rsqrt(variance + epsilon)
    normalized = (x.astype(high) - _row(mean, x)) * _row(rstd, x)
    # One coefficient for each channel to every sum, so that the transpose takes each sum once.
    slope = jnp.zeros_like(mean) if dscale is None else dscale
    shift = jnp.zeros_like(mean) if doffset is None else doffset
    if dx is None:
        return (normalized * _row(slope, x) + _row(shift, x)).astype(x.dtype)
    factor = rstd if scale is None else rstd * scale
    wide = dx.astype(high)
    slope = slope - factor * _mean(normalized * wide)
    shift = shift - factor * _mean(wide)
    return (_row(factor, x) * wide + normalized * _row(slope, x) + _row(shift, x)).astype(x.dtype)


def statistics_tangents(x: jax.Array, mean: jax.Array, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tangents of mean and variance, apart from that of y: without a cotangent they cost nothing."""
    wide = dx.astype(mean.dtype)
    return _mean(wide), 2 * _mean((x.astype(mean.dtype) - _row(mean, x)) * wide)


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, range(x.ndim - 1))


def _row(values: jax.Array, like: jax.Array) -> jax.Array:
    """A value for each channel, against `[..., channels]`."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,))
