"""Batch normalization on oneDNN's team of threads as JAX operations, and how they are each other's derivatives.

The passes over memory are our own (native/normalize.cpp): oneDNN's take one more for the statistics, have nothing for a
residual block's sum, and those of its kernels that know a ReLU wait for each other inside of a parallel region.

    y, mean, variance              = forward(x, scale, offset, residual)
    dy                             = tangent(known, dx, dscale, doffset, dresidual)
    dx, dscale, doffset, dresidual = backward(known, dy)

`known` is x, mean, variance, scale, and what tells where the ReLU let values through: y if a residual was added, else
offset, from which the mask is computed again. `tangent` is linear in its last arrays and its transpose is `backward`.
In reverse mode it is only ever transposed; where it really runs, in forward mode, and in every derivative of `tangent`
and `backward`, it is the plain JAX version's. The tangents of mean and variance are plain JAX beside it: a loss that
does not read them has nothing to compute there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels.norm import xla

Arrays = Sequence[Any]

DTYPES = ("float32", "bfloat16")
LANES = 16  # channels are taken by so many


class Spec(NamedTuple):
    """A batch normalization of `[rows, channels]`; a residual is there only under a ReLU."""

    rows: int
    channels: int
    dtype: str
    epsilon: float
    scale: bool
    offset: bool
    relu: bool = False
    residual: bool = False


def _image_struct(s: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((s.rows, s.channels), jnp.dtype(s.dtype))


def _channels_struct(s: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((s.channels,), jnp.dtype(jnp.float32))


def _forward_results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [_image_struct(s), _channels_struct(s), _channels_struct(s)]


def _backward_results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [_image_struct(s), *[_channels_struct(s)] * (s.scale + s.offset), *[_image_struct(s)] * s.residual]


def _known_offset(s: Spec) -> bool:
    """Whether the derivatives read the offset."""
    return s.offset and s.relu and not s.residual


# The plans.


def _build_forward(b: _onednn.Builder, s: Spec) -> None:
    image, channels = b.dense((s.rows, s.channels), s.dtype), b.dense((s.channels,), "float32")
    given = iter(range(1, 4))
    x, y, mean, variance = b.argument(0, image), b.result(0, image), b.result(1, channels), b.result(2, channels)
    scale, offset = (b.argument(next(given), channels) if there else None for there in (s.scale, s.offset))
    residual = b.argument(next(given), image) if s.residual else None
    b.own("batch normalization", (x, residual, scale, offset, y, mean, variance, _scratch(b, s)), _numbers(s))


def _build_backward(b: _onednn.Builder, s: Spec) -> None:
    image, channels = b.dense((s.rows, s.channels), s.dtype), b.dense((s.channels,), "float32")
    given, wanted = iter(range(3, 7)), iter(range(1, 4))
    x, mean, variance = b.argument(0, image), b.argument(1, channels), b.argument(2, channels)
    scale, offset = (b.argument(next(given), channels) if there else None for there in (s.scale, _known_offset(s)))
    y = b.argument(next(given), image) if s.residual else None
    dy, dx = b.argument(next(given), image), b.result(0, image)
    dscale, doffset = (b.result(next(wanted), channels) if there else None for there in (s.scale, s.offset))
    dresidual = b.result(next(wanted), image) if s.residual else None
    regions = x, y, dy, mean, variance, scale, offset, dx, dresidual, dscale, doffset, _scratch(b, s)
    b.own("batch normalization backward", regions, _numbers(s))


def _scratch(b: _onednn.Builder, s: Spec) -> int:
    """As native/normalize.h wants it; the forward pass leaves two rows."""
    return b.scratch(b.dense((2 * b.threads + 5, s.channels), "float32"))


def _numbers(s: Spec) -> tuple[float | int, ...]:
    return s.epsilon, s.rows, s.channels, s.dtype == "bfloat16", s.relu, s.residual


# The same in plain JAX, and the derivatives.


def _plain_forward(s: Spec, x: jax.Array, *arrays: jax.Array) -> Arrays:
    given = list(arrays)
    scale = given.pop(0) if s.scale else None
    offset = given.pop(0) if s.offset else None
    return xla.batch_norm_then(x, scale, offset, given[0] if s.residual else None, s.relu, s.epsilon)


def _split(s: Spec, arrays: Arrays) -> tuple[Arrays, Arrays]:
    """What the derivatives know, and what follows."""
    count = 3 + s.scale + _known_offset(s) + s.residual
    return arrays[:count], arrays[count:]


def _plain_tangent(s: Spec, *arrays: jax.Array) -> Arrays:
    (x, mean, variance, *more), (dx, *rest) = _split(s, arrays)
    scale = more.pop(0) if s.scale else None
    dscale = rest.pop(0) if s.scale else None
    doffset = rest.pop(0) if s.offset else None
    dy = xla.tangent(x, mean, variance, scale, s.epsilon, dx, dscale, doffset)
    if s.residual:
        dy = dy + rest[0]
    if not s.relu:
        return (dy,)
    passes = more[0] if s.residual else xla.normalized(x, mean, variance, scale, more[0] if more else None, s.epsilon)
    return (jnp.where(passes > 0, dy, jnp.zeros_like(dy)),)


def _plain_backward(s: Spec, *arrays: jax.Array) -> Arrays:
    *known, dy = arrays
    sought = [_image_struct(s), *_backward_results(s)[1:]]
    return jax.linear_transpose(lambda *a: _plain_tangent(s, *known, *a)[0], *sought)(dy)


def _forward_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    x, *parameters = primals
    y, mean, variance = _onednn.call(FORWARD, s, *primals, named=named)
    known = [x, mean, variance, *parameters[: s.scale]]
    if _known_offset(s):
        known.append(parameters[s.scale])
    if s.residual:
        known.append(y)
    filled = [jnp.zeros_like(p) if t is None else t for p, t in zip(primals, tangents)]
    (dy,) = _onednn.call(TANGENT, s, *known, *filled, named=named)
    moments = (None, None) if tangents[0] is None else xla.statistics_tangents(x, mean, tangents[0])
    return (y, mean, variance), (dy, *moments)


def _tangent_transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
    known, sought = _split(s, arrays)
    gradients = _onednn.call(BACKWARD, s, *known, *cotangents, named=named)
    return [None] * len(known) + [g if a is None else None for g, a in zip(gradients, sought)]


FORWARD = _onednn.operation("batch norm", Spec, _forward_results, _build_forward, _plain_forward, jvp=_forward_jvp)
TANGENT = _onednn.operation(
    "batch norm tangent", Spec, lambda s: [_image_struct(s)], None, _plain_tangent, transpose=_tangent_transpose
)
BACKWARD = _onednn.operation("batch norm backward", Spec, _backward_results, _build_backward, _plain_backward)


# The public side.


def cannot(x: Any, residual: Any, spec: Spec) -> str | None:
    """Why it cannot be done, or None."""
    if spec.dtype not in DTYPES:
        return f"x is {spec.dtype}; it takes {', '.join(DTYPES)}"
    if spec.channels % LANES:
        return f"{spec.channels} channels; it takes multiples of {LANES}"
    unfit = _onednn.unfit(x) if residual is None else _onednn.unfit(x, residual)
    return unfit or _onednn.refusal(FORWARD, spec)


def batch_norm(
    x: jax.Array, scale: jax.Array | None, offset: jax.Array | None, residual: jax.Array | None, s: Spec, named: bool
) -> xla.Moments:
    """y in x's shape and dtype, mean and variance; scale and offset are float32."""
    given = [x.reshape(s.rows, s.channels), *(a for a in (scale, offset) if a is not None)]
    if residual is not None:
        given.append(residual.reshape(s.rows, s.channels))
    y, mean, variance = _onednn.call(FORWARD, s, *given, named=named)
    return y.reshape(x.shape), mean, variance
