"""Convolution whose gradients are convolutions that the platform's library takes.

**CPU.** XLA's CPU compiler has a fast path for `[batch, *spatial, cin] x [*kernel, cin, cout]`. The gradients that lax
derives keep the operands' order of dimensions instead (`f01b_i01o->01bf`), which outside of loops is mended by the
layout pass and inside `lax.scan` is not: there a training step was measured 10 to 140 times slower. Here both gradients
are convolutions of transposed operands in the canonical order, and barriers keep the compiler from folding the
transposes back in.

**GPU.** XLA's GPU compiler hands every convolution to cuDNN, as one of three calls that it tells by their form:

- backward data: a dilated input, stride 1, and a kernel that a `reverse` has just been taken of;
- backward filter: stride 1, no dilated input, and a kernel that is dilated or larger than the result;
- forward: everything else. A dilated input is then written out with its zeros, as is a dilated kernel where the padding
  is not the same at both ends.

lax's own gradients of dense and strided convolutions have these forms. Three have not, and here they get them: a
transposed convolution whose kernel is not reversed (forward with the zeros written out); its kernel gradient (forward
with a kernel as large as the picture); and the kernel gradient of a dilated convolution (the same), which is that of an
undilated one between the phases of its arrays.
"""

from functools import partial
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

from llmasos_xla.kernels._dispatch import platform
from llmasos_xla.kernels.conv.geometry import Geometry, at_least_float32, dilated, padded


def lax_conv(x: jax.Array, w: jax.Array, g: Geometry, out_sharding: Any = None) -> jax.Array:
    """`lax.conv_general_dilated`: every geometry, lax's own gradients."""
    sharding = {} if out_sharding is None else {"out_sharding": out_sharding}
    return lax.conv_general_dilated(
        x, w, g.stride, g.pads, g.lhs_dilation, g.rhs_dilation, g.numbers, g.groups, g.batch_groups, g.precision,
        g.preferred, **sharding,
    )  # fmt: skip


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def canonical(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """`lax_conv` of channels-last arrays in one group, with canonical gradients.

    With stride s, input dilation b, kernel dilation d and low padding l, `y[o] = sum_k x[(s o + d k - l) / b] w[k]`
    over the k that divide.
    """
    if platform() == "gpu" and any(b > 1 for b in g.lhs_dilation):
        space = tuple(range(g.rank))
        w = lax.rev(lax.optimization_barrier(lax.rev(w, space)), space)
    return evenly_padded(x, w, g)


def evenly_padded(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """`lax_conv`, on GPU with padding that a dilated kernel is not written out for."""
    uneven = any(low != high for low, high in g.pads) and any(d > 1 for d in g.rhs_dilation)
    if platform() != "gpu" or not uneven or any(b > 1 for b in g.lhs_dilation):
        return lax_conv(x, w, g)
    x = lax.optimization_barrier(padded(x, g))  # or the padding goes back into the convolution
    return lax_conv(x, w, g._replace(size=x.shape[1:-1], pads=((0, 0),) * g.rank))


# A custom_vjp would forbid forward-mode differentiation. So the tangent is written as the transpose of the gradient
# that is wanted; reverse mode transposes it back, and lax's transposition of a convolution is its own inverse.
def _jvp(g: Geometry, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    dx, dw = tangents
    y = canonical(x, w, g)
    wide = y.dtype if y.dtype == g.dtype else at_least_float32(max(y.dtype, g.dtype, key=lambda d: d.itemsize))
    dy = jax.ShapeDtypeStruct(y.shape, wide)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts += jax.linear_transpose(lambda dy: _input_gradient(w.astype(wide), dy, g), dy)(dx.astype(wide))
    if not isinstance(dw, SymbolicZero):
        parts += jax.linear_transpose(lambda dy: _kernel_gradient(x.astype(wide), dy, g), dy)(dw.astype(wide))
    return y, sum(parts[1:], parts[0]).astype(y.dtype)


canonical.defjvp(_jvp, symbolic_zeros=True)


def _input_gradient(w: jax.Array, dy: jax.Array, g: Geometry) -> jax.Array:
    """`dx[n] = sum_k dy[(b n - d k + l) / s] w[k]`: the kernel flips, stride and input dilation change places."""
    space = tuple(range(g.rank))
    flipped = _pin(lax.transpose(lax.rev(w, space), (*space, g.rank + 1, g.rank)))
    pads = []
    for n, b, (low, _), k, d, s, o in _axes(g):
        reach = (k - 1) * d
        pads.append((reach - low, (n - 1) * b + 1 + low - dilated(o, s)))
    return evenly_padded(
        dy,
        flipped,
        g._replace(
            size=g.out_size,
            cin=g.cout,
            cout=g.cin,
            stride=g.lhs_dilation,
            lhs_dilation=g.stride,
            pads=tuple(pads),
            dtype=dy.dtype,
            preferred=None,
        ),
    )


def _kernel_gradient(x: jax.Array, dy: jax.Array, g: Geometry) -> jax.Array:
    """`dw[k] = sum_o x[(s o + d k - l) / b] dy[o]`: a convolution with batch and channels swapped.

    Where the input is dilated (a transposed convolution), dy plays the input and x the kernel: dilated kernels have a
    fast path everywhere, dilated inputs have not.
    """
    if platform() == "gpu" and any(d > 1 for d in g.rhs_dilation) and unphased(g) is None:
        x, dy, g = phases_of(x, dy, g)
    space = tuple(range(1, g.rank + 1))
    swapped = any(b > 1 for b in g.lhs_dilation)
    image, kernel = (dy, x) if swapped else (x, dy)
    image = lax.transpose(image, (g.rank + 1, *space, 0))
    kernel = lax.transpose(kernel, (*space, 0, g.rank + 1))
    pads = []
    for n, b, (low, _), k, d, s, o in _axes(g):
        reach = (k - 1) * d
        if swapped:
            low = reach - low
            pads.append((low, dilated(n, b) + reach - dilated(o, s) - low))
        else:
            pads.append((low, dilated(o, s) + reach - dilated(n, b) - low))
    of_image, of_kernel = (g.out_size, g.size) if swapped else (g.size, g.out_size)
    y = lax_conv(
        _pin(image),
        _pin(kernel),
        g._replace(
            batch=image.shape[0],
            size=of_image,
            cin=g.batch,
            kernel=of_kernel,
            cout=kernel.shape[-1],
            stride=g.rhs_dilation,
            lhs_dilation=g.stride if swapped else g.lhs_dilation,
            rhs_dilation=g.lhs_dilation if swapped else g.stride,
            pads=tuple(pads),
            dtype=dy.dtype,
            preferred=None,
        ),
    )
    y = _pin(y)
    if swapped:
        return lax.transpose(lax.rev(y, space), (*space, g.rank + 1, 0))
    return lax.transpose(y, (*space, 0, g.rank + 1))


def unphased(g: Geometry) -> str | None:
    """Why a convolution with a dilated kernel is not an undilated one between phases, or None."""
    if any(b > 1 for b in g.lhs_dilation):
        return "lhs_dilation is above 1"
    if any(s > 1 and d > 1 for s, d in zip(g.stride, g.rhs_dilation)):
        return "stride and rhs_dilation are both above 1"
    return None


def phases_of(x: jax.Array, dy: jax.Array, g: Geometry) -> tuple[jax.Array, jax.Array, Geometry]:
    """x and dy of a convolution with dilated kernel as those of an undilated one; phases join the batch.

    Along an axis of dilation d, `y[d q + e] = sum_k x[d (q + k) + e - low] w[k]` has phase e of x alone.
    """
    pads, sizes, outs = [], [], []
    for n, (low, high), k, d, o in zip(g.size, g.pads, g.kernel, g.rhs_dilation, g.out_size):
        q = -(-o // d)
        length = n + low + high if d == 1 else d * (q + k - 1)
        pads.append((low, length - n - low))
        sizes.append(length // d)
        outs.append(q)
    x = _split(padded(x, g._replace(pads=tuple(pads))), g.rhs_dilation)
    room = tuple((0, q * d - o) for q, d, o in zip(outs, g.rhs_dilation, g.out_size))
    dy = _split(padded(dy, g._replace(pads=room)), g.rhs_dilation)
    one = (1,) * g.rank
    return x, dy, g._replace(batch=x.shape[0], size=tuple(sizes), pads=((0, 0),) * g.rank, rhs_dilation=one)


def _split(x: jax.Array, phases: tuple[int, ...]) -> jax.Array:
    """`[batch, *spatial, channels]` with the phases of each spatial axis in the batch."""
    batch, *size, channels = x.shape
    x = x.reshape(batch, *(m for n, d in zip(size, phases) for m in (n // d, d)), channels)
    rank = len(size)
    order = (*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank, 2), 2 * rank + 1)
    return lax.transpose(x, order).reshape(-1, *(n // d for n, d in zip(size, phases)), channels)


def joined(y: jax.Array, g: Geometry) -> jax.Array:
    """The result of that convolution from its phases in the batch."""
    rank, outs = g.rank, y.shape[1:-1]
    y = y.reshape(*g.rhs_dilation, g.batch, *outs, y.shape[-1])
    order = (rank, *(m for i in range(rank) for m in (rank + 1 + i, i)), 2 * rank + 1)
    y = lax.transpose(y, order).reshape(g.batch, *(q * d for q, d in zip(outs, g.rhs_dilation)), y.shape[-1])
    return lax.slice(y, (0,) * y.ndim, (g.batch, *g.out_size, y.shape[-1]))


def _axes(g: Geometry):
    return zip(g.size, g.lhs_dilation, g.pads, g.kernel, g.rhs_dilation, g.stride, g.out_size)


def _pin(x: jax.Array) -> jax.Array:
    """Keeps a transpose from being folded into the convolution; elsewhere than on CPU the compiler knows better."""
    return lax.optimization_barrier(x) if platform() == "cpu" else x
