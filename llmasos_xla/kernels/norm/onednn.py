"""Batch normalization by oneDNN as JAX operations, and how they are each other's derivatives.

    y, mean, variance    = forward(x, scale, offset)
    dy                   = tangent(x, mean, variance, scale, dx, dscale, doffset)
    dx, dscale, doffset  = backward(x, mean, variance, scale, dy)

`tangent` is linear in its last arrays and its transpose is `backward`. In reverse mode it is only ever transposed;
where it really runs, in forward mode, and in every derivative of `tangent` and `backward`, it is the plain JAX
version's. The tangents of mean and variance are plain JAX beside it: a loss that does not read them has nothing to
compute there.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels.norm import xla

Arrays = Sequence[Any]

DTYPES = ("float32", "bfloat16")
_MEAN, _VARIANCE, _SCALE, _SHIFT, _DIFF_SCALE, _DIFF_SHIFT = 49, 50, 51, 52, 255, 256
_USE_SCALE, _USE_SHIFT = 0x2, 0x4
# Of oneDNN's kernels the one whose threads never wait for each other inside of a parallel region. The other generated
# one, its first choice, is no faster on idle cores and 20 times slower where a core is busy: it spins and never yields.
# What is left are plain loops, 10 times slower.
_JIT = "bnorm_tbb_jit:"


class Spec(NamedTuple):
    """A batch normalization of `[rows, channels]`."""

    rows: int
    channels: int
    dtype: str
    epsilon: float
    scale: bool
    offset: bool


def _image_struct(s: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((s.rows, s.channels), jnp.dtype(s.dtype))


def _channels_struct(s: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((s.channels,), jnp.dtype(jnp.float32))


def _forward_results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [_image_struct(s), _channels_struct(s), _channels_struct(s)]


def _backward_results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [_image_struct(s), *[_channels_struct(s)] * (s.scale + s.offset)]


# The plans.


def _build_forward(b: _onednn.Builder, s: Spec) -> None:
    image, pd = _forward(b, s)
    channels = b.dense((s.channels,), "float32")
    operands = {d.SRC: b.argument(0, image), d.DST: b.result(0, image)}
    operands |= {_MEAN: b.result(1, channels), _VARIANCE: b.result(2, channels)}
    for index, argument in enumerate(_present(s, _SCALE, _SHIFT)):
        operands[argument] = b.argument(1 + index, channels)
    b.run(pd, operands)


def _build_backward(b: _onednn.Builder, s: Spec) -> None:
    image, forward = _forward(b, s)
    channels = b.dense((s.channels,), "float32")
    kind = d.BACKWARD if _flags(s) else d.BACKWARD_DATA
    pd = b.describe(
        "batch_normalization_backward", kind, image, image, image, ctypes.c_float(s.epsilon), _flags(s), forward,
        b.attributes(), prefer=_JIT,
    )  # fmt: skip
    _check_implementation(b, s, pd)
    operands = {d.SRC: b.argument(0, image), _MEAN: b.argument(1, channels), _VARIANCE: b.argument(2, channels)}
    if s.scale:
        operands[_SCALE] = b.argument(3, channels)
    operands |= {d.DIFF_DST: b.argument(3 + s.scale, image), d.DIFF_SRC: b.result(0, image)}
    for index, argument in enumerate(_present(s, _DIFF_SCALE, _DIFF_SHIFT)):
        operands[argument] = b.result(1 + index, channels)
    b.run(pd, operands)


def _forward(b: _onednn.Builder, s: Spec) -> tuple[Any, Any]:
    """The image's layout and the forward pass.

    AVX-512 takes the rows as the pixels of one picture: (64, 32, 32, 16) forward and backward in 1.2 ms against 2.1 as
    a batch of pictures of one pixel. AVX2 takes them as such a batch: 1.9 ms against 3.9.
    """
    image = b.strided((1, s.channels, s.rows, 1), (s.rows * s.channels, 1, s.channels, s.channels), s.dtype)
    pd = _describe_forward(b, s, image)
    if not b.implementation(pd).startswith(_JIT + "avx512"):
        image = b.dense((s.rows, s.channels), s.dtype)
        pd = _describe_forward(b, s, image)
    _check_implementation(b, s, pd)
    return image, pd


def _describe_forward(b: _onednn.Builder, s: Spec, image: Any) -> Any:
    return b.describe(
        "batch_normalization_forward", d.FORWARD_TRAINING, image, image, ctypes.c_float(s.epsilon), _flags(s),
        b.attributes(), prefer=_JIT,
    )  # fmt: skip


def _check_implementation(b: _onednn.Builder, s: Spec, pd: Any) -> None:
    if not b.implementation(pd).startswith(_JIT):
        raise _onednn.Refused(f"oneDNN has plain loops only for {s.channels} channels of {s.dtype} on this CPU")


def _flags(s: Spec) -> int:
    return _USE_SCALE * s.scale + _USE_SHIFT * s.offset


def _present(s: Spec, scale: Any, offset: Any) -> list[Any]:
    """Those of a scale's and an offset's that the spec has."""
    return [scale] * s.scale + [offset] * s.offset


# The same in plain JAX, and the derivatives.


def _given(s: Spec, arrays: Arrays) -> tuple[Any, Any]:
    """Scale and offset, or what stands for them, from what the spec has of them."""
    rest = list(arrays)
    scale = rest.pop(0) if s.scale else None
    return scale, rest.pop(0) if s.offset else None


def _plain_forward(s: Spec, x: jax.Array, *arrays: jax.Array) -> Arrays:
    return xla.batch_norm(x, *_given(s, arrays), s.epsilon)


def _plain_tangent(s: Spec, x: jax.Array, mean: jax.Array, variance: jax.Array, *arrays: jax.Array) -> Arrays:
    scale, (dx, *rest) = (arrays[0] if s.scale else None), arrays[s.scale :]
    return (xla.tangent(x, mean, variance, scale, s.epsilon, dx, *_given(s, rest)),)


def _plain_backward(s: Spec, *arrays: jax.Array) -> Arrays:
    *known, dy = arrays
    pull = jax.linear_transpose(lambda *sought: _plain_tangent(s, *known, *sought)[0], *_backward_results(s))
    return pull(dy)


def _forward_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    x, *parameters = primals
    y, mean, variance = _onednn.call(FORWARD, s, *primals, named=named)
    known = x, mean, variance, *parameters[: s.scale]
    filled = [jnp.zeros_like(p) if t is None else t for p, t in zip(primals, tangents)]
    (dy,) = _onednn.call(TANGENT, s, *known, *filled, named=named)
    moments = (None, None) if tangents[0] is None else xla.statistics_tangents(x, mean, tangents[0])
    return (y, mean, variance), (dy, *moments)


def _tangent_transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
    known, sought = arrays[: 3 + s.scale], arrays[3 + s.scale :]
    gradients = _onednn.call(BACKWARD, s, *known, *cotangents, named=named)
    return [None] * len(known) + [g if a is None else None for g, a in zip(gradients, sought)]


FORWARD = _onednn.operation(
    "batch norm", Spec, _forward_results, _build_forward, _plain_forward, jvp=_forward_jvp
)  # fmt: skip
TANGENT = _onednn.operation(
    "batch norm tangent", Spec, lambda s: [_image_struct(s)], None, _plain_tangent, transpose=_tangent_transpose
)
BACKWARD = _onednn.operation("batch norm backward", Spec, _backward_results, _build_backward, _plain_backward)


# The public side.


def cannot(x: Any, spec: Spec) -> str | None:
    """Why oneDNN cannot do it, or None."""
    if spec.dtype not in DTYPES:
        return f"x is {spec.dtype}; it takes {', '.join(DTYPES)}"
    return _onednn.unfit(x) or _onednn.refusal(FORWARD, spec) or _onednn.refusal(BACKWARD, spec)


def batch_norm(x: jax.Array, scale: jax.Array | None, offset: jax.Array | None, s: Spec, named: bool) -> xla.Moments:
    """y in x's shape and dtype, mean and variance; scale and offset are float32."""
    rows = x.reshape(s.rows, s.channels)
    y, mean, variance = _onednn.call(FORWARD, s, rows, *_present(s, scale, offset), named=named)
    return y.reshape(x.shape), mean, variance
