"""Convolution in plain JAX: one function a formulation, all of the same value.

`lax_conv` takes every geometry and is the oracle; `canonical.py` beside this file is what runs most often on CPU. The
others are for channels-last arrays, `x [batch, *spatial, cin]` and `w [*kernel, cin / groups, cout]`.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from llmasos_xla.kernels._dispatch import platform
from llmasos_xla.kernels.conv.canonical import canonical, lax_conv, unphased
from llmasos_xla.kernels.conv.geometry import Geometry, at_least_float32, padded
from llmasos_xla.kernels.conv.grouped import grouped

# Above this many groups one convolution each makes the program too long to compile, and a loop runs them.
UNROLLED_GROUPS = 32

# Multiply-adds of a group below which the grouped convolution of lax is the faster forward pass.
WORTH_A_CALL = 1 << 19


def pointwise(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """A kernel of size one: the stride picks elements ahead of the convolution, so that no gradient is dilated."""
    stop = tuple((n - 1) * s + 1 for n, s in zip(g.out_size, g.stride))
    x = lax.slice(padded(x, g), (0,) * x.ndim, (g.batch, *stop, g.cin), (1, *g.stride, 1))
    one = (1,) * g.rank
    return canonical(x, w, g._replace(size=g.out_size, stride=one, pads=((0, 0),) * g.rank))


def depthwise(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """One multiply-add for each kernel position, each channel apart: `y = sum_k x[s i + d k] * w[k]`."""
    multiplier = g.cout // g.cin
    wide = at_least_float32(g.preferred or g.dtype)
    w = w.astype(wide).reshape(*g.kernel, g.cin, multiplier)
    x = padded(x.astype(wide), g)
    shape = (g.batch, *g.out_size, g.cin, multiplier)
    y = jnp.zeros(shape, wide)
    for k in itertools.product(*map(range, g.kernel)):
        start = tuple(i * d for i, d in zip(k, g.rhs_dilation))
        stop = tuple(a + (n - 1) * s + 1 for a, n, s in zip(start, g.out_size, g.stride))
        part = lax.slice(x, (0, *start, 0), (g.batch, *stop, g.cin), (1, *g.stride, 1))
        y += part[..., None] * lax.broadcast_in_dim(w[k], shape, (g.rank + 1, g.rank + 2))
    return y.reshape(g.batch, *g.out_size, g.cout).astype(g.preferred or g.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def by_group(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """One canonical convolution for each group of channels, if the groups are worth a call each."""
    macs = g.batch * math.prod(g.out_size) * math.prod(g.kernel) * (g.cin // g.groups) * (g.cout // g.groups)
    return _each_group(x, w, g) if macs >= WORTH_A_CALL else lax_conv(x, w, g)


def _by_group_jvp(g: Geometry, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    live = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

    def of_live(*values: jax.Array) -> jax.Array:
        x, w = (values[live.index(i)] if i in live else primals[i] for i in (0, 1))
        return _each_group(x, w, g)

    # Here the groups always have a call each: the gradients of lax are 25 to 70 times slower.
    _, dy = jax.jvp(of_live, [primals[i] for i in live], [tangents[i] for i in live])
    return by_group(*primals, g), dy


by_group.defjvp(_by_group_jvp, symbolic_zeros=True)


def _each_group(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    one = g._replace(cin=g.cin // g.groups, cout=g.cout // g.groups, groups=1)
    if g.groups <= UNROLLED_GROUPS:
        pairs = zip(jnp.split(x, g.groups, -1), jnp.split(w, g.groups, -1))
        return jnp.concatenate([canonical(*pair, one) for pair in pairs], -1)
    xs = jnp.moveaxis(x.reshape(*x.shape[:-1], g.groups, one.cin), -2, 0)
    ws = jnp.moveaxis(w.reshape(*w.shape[:-1], g.groups, one.cout), -2, 0)
    y = lax.map(lambda pair: canonical(*pair, one), (xs, ws))
    return jnp.moveaxis(y, 0, -2).reshape(g.batch, *g.out_size, g.cout)


def in_channels_last(formulation, x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """A channels-last formulation for arrays in any order of dimensions."""
    if g.channels_last:
        return formulation(x, w, g)
    batch, features, *space = g.numbers.lhs_spec
    x = lax.transpose(x, (batch, *space, features))
    cout, cin, *space = g.numbers.rhs_spec
    w = lax.transpose(w, (*space, cin, cout))
    y = formulation(x, w, g.with_channels_last())
    batch, features, *space = g.numbers.out_spec
    order = [0] * y.ndim
    for axis, place in enumerate((batch, *space, features)):
        order[place] = axis
    return lax.transpose(y, order)


FORMULATIONS = {
    "depthwise multiply-adds": depthwise,
    "strided pointwise": pointwise,
    "canonical by group": by_group,
    "phases": grouped,
    "canonical": canonical,
    "lax": lax_conv,
}


def _one_group(g: Geometry) -> str | None:
    return "has one group" if g.groups == 1 else None


def _grouped(g: Geometry) -> str | None:
    return None if g.groups == 1 else f"has {g.groups} groups"


def _not_depthwise(g: Geometry) -> str | None:
    if g.groups == 1 or g.groups != g.cin:
        return f"has {g.cin // g.groups} input channel(s) in each of {g.groups} group(s)"
    if any(b > 1 for b in g.lhs_dilation):
        return "lhs_dilation is above 1"
    return None


def _not_strided_pointwise(g: Geometry) -> str | None:
    if any(k > 1 for k in g.kernel):
        return "the kernel is larger than 1"
    if all(s == 1 for s in g.stride):
        return "the stride is 1"
    if any(b > 1 for b in g.lhs_dilation):
        return "lhs_dilation is above 1"
    return _grouped(g)


def _no_phases(g: Geometry) -> str | None:
    if all(s == 1 for s in g.stride) and all(d == 1 for d in g.rhs_dilation):
        return "neither the stride nor rhs_dilation is above 1"
    if g.groups == g.cin:
        return f"has 1 input channel in each of {g.groups} group(s)"
    return unphased(g) or _one_group(g)


# Why a formulation does not fit a floating-point geometry, in the order of preference; where none fits, lax does.
UNFIT = {
    "depthwise multiply-adds": _not_depthwise,
    "strided pointwise": _not_strided_pointwise,
    "canonical by group": _one_group,
    "phases": _no_phases,
    "canonical": _grouped,
}


def slow(formulation: str, g: Geometry) -> str | None:
    """Why a formulation that fits is not worth it on the platform, or None."""
    here = platform()
    if formulation == "phases":
        return None if here == "gpu" else f"made for cuDNN, this is {here}"
    if here == "cpu":
        return None
    if here == "gpu" and formulation == "depthwise multiply-adds" and all(k == 1 for k in g.kernel):
        return None  # a factor for each channel
    if here == "gpu" and formulation == "canonical":
        dilated = any(d > 1 for d in g.rhs_dilation) and unphased(g) is None
        if dilated or any(b > 1 for b in g.lhs_dilation):
            return None
        return "lax's own gradients have the forms that cuDNN takes"
    return f"measured to pay on cpu only, this is {here}"


def plain_convolution(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """A channels-last floating-point convolution in the formulation that fits on CPU, elsewhere as lax has it."""
    fit = (name for name, unfit in UNFIT.items() if platform() == "cpu" and unfit(g) is None)
    return FORMULATIONS[next(fit, "lax")](x, w, g)
