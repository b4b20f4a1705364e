"""Convolution by oneDNN: forward, both gradients, bias and activation fused into the forward pass.

The three computations are linear in each of their two arrays, and the transposes of each are the other two:

    y = forward(x, w)        dx = input gradient(w, dy)        dw = kernel gradient(x, dy)

so every derivative, of any order and in both modes, is again one of them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.conv.geometry import Geometry, cropped, uncropped
from llmasos_xla.kernels.conv.onednn_plan import OPERANDS, RESULTS, Spec, build
from llmasos_xla.kernels.conv.xla import lax_conv, plain_convolution


def _results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(s.shapes[OPERANDS[s.kind][2]], jnp.dtype(s.out_dtype))]


def _xla(s: Spec, *arrays: jax.Array) -> tuple[jax.Array]:
    g = s.geometry
    wide = jnp.dtype(s.out_dtype)
    if s.dtype == "int8":
        sums = lax_conv(arrays[0], arrays[1], g._replace(preferred=jnp.dtype("int32")))
        y = sums.astype(wide) * arrays[2] if s.scaled else sums.astype(wide)
        return (_finish(y, arrays[2 + s.scaled] if s.bias else None, s.activation or None),)
    x, w = (jax.ShapeDtypeStruct(s.shapes[n], arrays[0].dtype) for n in "xw")
    if s.kind == "forward":
        y = plain_convolution(arrays[0], arrays[1], g._replace(preferred=wide if wide != arrays[0].dtype else None))
        return (_finish(y, arrays[2] if s.bias else None, s.activation or None),)
    if s.kind == "input gradient":
        (dx,) = jax.linear_transpose(lambda x: plain_convolution(x, arrays[0], g), x)(arrays[1])
        return (dx.astype(wide),)
    (dw,) = jax.linear_transpose(lambda w: plain_convolution(arrays[0], w, g), w)(arrays[1])
    return (dw.astype(wide),)


def _jvp(s: Spec, primals: Any, tangents: Any, named: bool) -> Any:
    if s.dtype == "int8":
        raise NotImplementedError("conv: an int8 convolution has no derivative; train with fake-quantized floats")
    return _onednn.bilinear_jvp(OPERATION, s, primals, tangents, named)


def _transpose(s: Spec, arrays: Any, cts: Any, named: bool) -> list[Any]:
    first, second, last = OPERANDS[s.kind]
    values = {first: arrays[0], second: arrays[1], last: cts[0]}
    out: list[Any] = [None, None]
    for i, sought in enumerate((first, second)):
        if arrays[i] is None:
            kind = next(k for k, (*_, produced) in OPERANDS.items() if produced == sought)
            a, b, _ = OPERANDS[kind]
            out[i] = _linear(
                s._replace(kind=kind, out_dtype=s.dtype), values[a].astype(s.dtype), values[b].astype(s.dtype), named
            )
    return out


def _batch(s: Spec, size: int, arrays: Any, axes: Any, named: bool) -> Any:
    """The mapped axis joins the batch where the kernel is not mapped, and becomes groups where it is."""
    first, second, _ = OPERANDS[s.kind]
    is_mapped = {first: axes[0] is not None, second: axes[1] is not None}
    front = [a if x is None else jnp.moveaxis(a, x, 0) for a, x in zip(arrays[:2], axes[:2])]
    if (s.bias and axes[2] is not None) or s.kind == "kernel gradient" or is_mapped.get("w"):
        if s.bias or s.activation or s.dtype == "int8":
            results = jax.vmap(lambda *a: _xla(s, *a), axes)(*arrays)
            return results, [0]
        return _batch_as_groups(s, size, front, is_mapped, named), [0]
    joined = [
        a if name == "w" else (a if m else jnp.broadcast_to(a, (size, *a.shape))).reshape(-1, *a.shape[1 + m :])
        for name, a, m in zip((first, second), front, is_mapped.values())
    ]
    y = _call(s._replace(batch=s.batch * size), *joined, *arrays[2:], named=named)
    return (y.reshape(size, s.batch, *y.shape[1:]),), [0]


def _batch_as_groups(s: Spec, size: int, front: Any, is_mapped: dict[str, bool], named: bool) -> tuple[jax.Array]:
    wide = s._replace(cin=s.cin * size, cout=s.cout * size, groups=s.groups * size)
    packed = []
    for m, a in zip(is_mapped.values(), front):
        a = a if m else jnp.broadcast_to(a, (size, *a.shape))
        a = jnp.moveaxis(a, 0, -2)  # next to the channels: groups outside, channels of a group inside
        packed.append(a.reshape(*a.shape[:-2], -1))
    y = _call(wide, *packed, named=named)
    y = y.reshape(*y.shape[:-1], size, -1)
    return (jnp.moveaxis(y, -2, 0),)


def _flops(s: Spec) -> float:
    """Of any of the three: each product of an input, a kernel element and a place is in all of them."""
    return 2.0 * math.prod(s.shapes["y"]) * math.prod(s.kernel) * s.cin / s.groups


OPERATION = _onednn.operation("conv", Spec, _results, build, _xla, _batch, _jvp, _transpose, flops=_flops)


def _call(s: Spec, *arrays: jax.Array, named: bool) -> jax.Array:
    (out,) = _onednn.call(OPERATION, s, *arrays, named=named)
    return out


def _linear(s: Spec, a: jax.Array, b: jax.Array, named: bool) -> jax.Array:
    """One of the three, by oneDNN if it can."""
    if not named and _onednn.refusal(OPERATION, s) is not None:
        return _xla(s, a, b)[0]
    return _call(s, a, b, named=named)


# The public side: any geometry without groups of the batch, as one of the three computations.


def cannot(g: Geometry, x: Any, scaled: bool, bias: bool, activation: str | None) -> str | None:
    """Why oneDNN cannot compute this convolution, or None."""
    if str(g.dtype) not in RESULTS:
        return f"operands are {g.dtype}; it takes {', '.join(RESULTS)}"
    if str(g.preferred or g.dtype) not in RESULTS[str(g.dtype)]:
        return f"the result is {g.preferred or g.dtype}; from {g.dtype} it gives {', '.join(RESULTS[str(g.dtype)])}"
    if g.dtype == jnp.int8 and _onednn.problem() is None and not _onednn.multiplies("int8"):
        return "this CPU has no products in int8, and oneDNN's sums would overflow"
    if g.dtype == jnp.int8 and any(b > 1 for b in g.lhs_dilation):
        return "operands are int8 and lhs_dilation is above 1"
    if not all(isinstance(n, int) for n in (g.batch, g.cin, g.cout, *g.size, *g.kernel)):
        return "a size is symbolic"
    if any(b > 1 for b in g.lhs_dilation) and any(s > 1 for s in g.stride):
        return "both lhs_dilation and the stride are above 1"
    if not g.batch or not g.cin or not g.cout or not all(g.size) or not all(g.out_size):
        return "an array is empty"
    if any(n + min(low, 0) + min(high, 0) < 1 for n, (low, high) in zip(g.size, g.pads)):
        return "negative padding crops everything"
    if _is_explicitly_sharded(x):
        return "operands are sharded over an explicit mesh; XLA can partition its own convolution only"
    return _onednn.problem() or _onednn.refusal(OPERATION, _fused_spec(g, bias, activation, scaled))


def _is_explicitly_sharded(x: Any) -> bool:
    sharding = getattr(jax.typeof(x), "sharding", None) if isinstance(x, jax.Array) else None
    return any(axis is not None for axis in getattr(sharding, "spec", None) or ())


def _fused_spec(g: Geometry, bias: bool, activation: str | None, scaled: bool) -> Spec:
    if any(b > 1 for b in g.lhs_dilation):
        return _transposed_spec(g)
    return spec_of(uncropped(g), bias, activation if activation in d.ELTWISE else None, scaled)


def spec_of(g: Geometry, bias: bool = False, activation: str | None = None, scaled: bool = False) -> Spec:
    """The forward pass of a geometry without input dilation and cropping."""
    return Spec(
        "forward", g.batch, g.size, g.cin, g.kernel, g.cout, g.stride, g.pads, g.rhs_dilation, g.groups, str(g.dtype),
        str(g.preferred or g.dtype), bias, activation or "", scaled,
    )  # fmt: skip


def _transposed_spec(g: Geometry) -> Spec:
    """A convolution of a dilated input as the input gradient of a strided one, with flipped and swapped kernel."""
    pads = []
    for n, k, dilation, b, (low, _), out in zip(g.size, g.kernel, g.rhs_dilation, g.lhs_dilation, g.pads, g.out_size):
        reach = (k - 1) * dilation
        pads.append((reach - low, (n - 1) * b + 1 + low - out))
    return Spec(
        "input gradient", g.batch, g.out_size, g.cout, g.kernel, g.cin, g.lhs_dilation, tuple(pads), g.rhs_dilation,
        g.groups, str(g.dtype), str(g.preferred or g.dtype),
    )  # fmt: skip


def conv(
    x: jax.Array,
    w: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    g: Geometry,
    activation: str | None,
    named: bool,
) -> jax.Array:
    """`activation(scale * lax_conv(x, w) + bias)` of channels-last arrays by oneDNN."""
    if any(b > 1 for b in g.lhs_dilation):
        space = tuple(range(g.rank))
        w = lax.rev(w, space).reshape(*g.kernel, g.cin // g.groups, g.groups, g.cout // g.groups)
        w = jnp.swapaxes(w, -3, -1).reshape(*g.kernel, g.cout // g.groups, g.cin)
        y = _call(_transposed_spec(g), w, x, named=named)
        return _finish(y, bias, activation)
    x, g = cropped(x, g), uncropped(g)
    if g.dtype == jnp.int8:
        extra = [] if scale is None else [jnp.broadcast_to(scale.astype(jnp.float32), (g.cout,))]
        extra += [] if bias is None else [bias.astype(jnp.float32)]
        inside = activation if activation in d.ELTWISE else None
        y = _call(spec_of(g, bias is not None, inside, scale is not None), x, w, *extra, named=named)
        return y if inside == activation else _finish(y, None, activation)
    if activation is not None and activation not in d.ELTWISE:
        return ACTIVATIONS[activation](_fused(x, w, bias, g, None, named))
    return _fused(x, w, bias, g, activation, named)


def _finish(y: jax.Array, bias: jax.Array | None, activation: str | None) -> jax.Array:
    if bias is not None:
        y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return ACTIVATIONS[activation](y) if activation else y


# The slope of an activation from its result.
_SLOPES = {
    "relu": lambda y: (y > 0).astype(y.dtype),
    "leaky_relu": lambda y: jnp.where(y > 0, jnp.ones_like(y), jnp.full_like(y, 0.2)),
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
}


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _fused(
    x: jax.Array, w: jax.Array, bias: jax.Array | None, g: Geometry, activation: str | None, named: bool
) -> jax.Array:
    s = spec_of(g, bias is not None, activation)
    return _call(s, x, w, *(() if bias is None else (bias.astype(s.out_dtype),)), named=named)


def _fused_jvp(g: Geometry, activation: str | None, named: bool, primals: Any, tangents: Any) -> Any:
    x, w, bias = primals
    dx, dw, dbias = tangents
    linear = spec_of(g)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_call(linear, dx, w, named=named))
    if not isinstance(dw, SymbolicZero):
        parts.append(_call(linear, x, dw, named=named))
    from_result = activation is None or activation in _SLOPES
    y = _fused(x, w, bias, g, activation if from_result else None, named)
    if bias is not None and not isinstance(dbias, SymbolicZero):
        row = dbias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        parts.append(jnp.broadcast_to(row, y.shape))
    dz = functools.reduce(jnp.add, parts)
    if activation is None:
        return y, dz
    if from_result:
        return y, _SLOPES[activation](y) * dz
    return jax.jvp(ACTIVATIONS[activation], (y,), (dz,))


_fused.defjvp(_fused_jvp, symbolic_zeros=True)
