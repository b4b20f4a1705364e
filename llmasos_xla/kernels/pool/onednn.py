"""Pooling by oneDNN: maximum with the place of each winner, mean, and the gradients of both.

oneDNN finds the first of equal values in a window, as XLA does, and writes its place down, so that the gradient is one
pass over the result. Everything after the maximum itself is linear:

    y, at = maximum(x)        dy = pick(dx, at)        dx = scatter(dy, at), the transpose of pick
    y = mean(x)               dx = spread(dy), the transpose of mean

oneDNN's maximum overlooks NaN and starts from the lowest finite number where XLA starts from -inf. Both show in the
input's minimum, and where it is not above the lowest number, XLA's maximum runs instead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels._operation import in_batch
from llmasos_xla.kernels.pool import xla
from llmasos_xla.kernels.pool.xla import Ints, Window

DTYPES = ("float32", "bfloat16", "float16")
# A winner's place is a byte, and XLA's version, which stands beside it in the program, takes one slice for each place.
MOST_PLACES = 64

_MAXIMUM, _MEAN_WITH_PADDING, _MEAN = 511, 767, 1023


class Spec(NamedTuple):
    """A pooling of channels-last arrays."""

    batch: int
    size: Ints
    window: Ints
    stride: Ints
    pads: tuple[tuple[int, int], ...]
    channels: int
    dtype: str
    count_include_pad: bool = False

    @property
    def geometry(self) -> Window:
        """The same for the XLA formulations."""
        return Window(self.size, self.window, self.stride, self.pads)

    @property
    def x(self) -> jax.ShapeDtypeStruct:
        """The input."""
        return jax.ShapeDtypeStruct((self.batch, *self.size, self.channels), jnp.dtype(self.dtype))

    @property
    def y(self) -> jax.ShapeDtypeStruct:
        """The result."""
        return jax.ShapeDtypeStruct((self.batch, *self.geometry.out_size, self.channels), jnp.dtype(self.dtype))

    @property
    def at(self) -> jax.ShapeDtypeStruct:
        """The place of each maximum in its window, counted in row-major order."""
        return jax.ShapeDtypeStruct(self.y.shape, np.dtype(np.uint8))


# What oneDNN does.


class _Described(NamedTuple):
    x: Any
    y: Any
    window: tuple[Any, ...]
    algorithm: int
    forward: Any


def _described(b: _onednn.Builder, s: Spec, algorithm: int, prop: int) -> _Described:
    x, y = b.channels_last(s.x.shape, s.dtype), b.channels_last(s.y.shape, s.dtype)
    low, high = zip(*s.pads)
    window = tuple(map(d.int64s, (s.stride, s.window, [0] * len(s.window), low, high)))
    return _Described(
        x, y, window, algorithm, b.describe("pooling_forward", prop, algorithm, x, y, *window, b.attributes())
    )


def _mean_algorithm(s: Spec) -> int:
    return _MEAN_WITH_PADDING if s.count_include_pad else _MEAN


def _build_maximum(b: _onednn.Builder, s: Spec) -> None:
    p = _described(b, s, _MAXIMUM, d.FORWARD_INFERENCE)
    b.run(p.forward, {d.SRC: b.argument(0, p.x), d.DST: b.result(0, p.y)})


def _build_maximum_and_place(b: _onednn.Builder, s: Spec) -> None:
    p = _described(b, s, _MAXIMUM, d.FORWARD_TRAINING)
    places = b.result(1, _places(b, s, p))
    b.run(p.forward, {d.SRC: b.argument(0, p.x), d.DST: b.result(0, p.y), d.WORKSPACE: places})


def _build_mean(b: _onednn.Builder, s: Spec) -> None:
    p = _described(b, s, _mean_algorithm(s), d.FORWARD_INFERENCE)
    b.run(p.forward, {d.SRC: b.argument(0, p.x), d.DST: b.result(0, p.y)})


def _build_scatter(b: _onednn.Builder, s: Spec) -> None:
    p = _described(b, s, _MAXIMUM, d.FORWARD_TRAINING)
    b.run(_backward(b, p), {
        d.DIFF_DST: b.argument(0, p.y), d.WORKSPACE: b.argument(1, _places(b, s, p)), d.DIFF_SRC: b.result(0, p.x),
    })  # fmt: skip


def _build_spread(b: _onednn.Builder, s: Spec) -> None:
    p = _described(b, s, _mean_algorithm(s), d.FORWARD_TRAINING)
    b.run(_backward(b, p), {d.DIFF_DST: b.argument(0, p.y), d.DIFF_SRC: b.result(0, p.x)})


def _backward(b: _onednn.Builder, p: _Described) -> Any:
    return b.describe("pooling_backward", p.algorithm, p.x, p.y, *p.window, p.forward, b.attributes())


def _places(b: _onednn.Builder, s: Spec, p: _Described) -> Any:
    workspace, bytes_ = b.query(p.forward, "workspace"), b.channels_last(s.at.shape, "uint8")
    if not b.same(workspace, bytes_):
        raise _onednn.Refused("oneDNN keeps the places of the maxima in a layout of its own")
    return workspace


# The same in plain JAX.


def _xla_maximum(s: Spec, x: jax.Array) -> tuple[jax.Array, ...]:
    return (xla.wide(xla.max_slices, x, s.geometry),)


def _xla_maximum_and_place(s: Spec, x: jax.Array) -> tuple[jax.Array, ...]:
    (y,) = _xla_maximum(s, x)
    at = xla.place(x.astype(np.float32), y.astype(np.float32), s.geometry)
    return y, at.astype(np.uint8)


def _xla_pick(s: Spec, x: jax.Array, at: jax.Array) -> tuple[jax.Array, ...]:
    pick = xla.pick_blocks if s.window == s.stride else xla.pick_slices
    return (xla.wide(pick, x, at, s.geometry),)


def _xla_scatter(s: Spec, y: jax.Array, at: jax.Array) -> tuple[jax.Array, ...]:
    return jax.linear_transpose(lambda x: _xla_pick(s, x, at), s.x)((y,))


def _xla_mean(s: Spec, x: jax.Array) -> tuple[jax.Array, ...]:
    total = xla.sum_slices if s.geometry.positions <= xla.SUM_SLICES else xla.sum_reduce_window
    return (xla.mean(total, x, s.geometry, s.count_include_pad),)


def _xla_spread(s: Spec, y: jax.Array) -> tuple[jax.Array, ...]:
    return jax.linear_transpose(partial(_xla_mean, s), s.x)((y,))


def _above_lowest(s: Spec, x: jax.Array) -> jax.Array:
    """Whether every element is above the lowest finite number. A minimum is one fast pass; NaN makes it NaN."""
    return x.min() > np.asarray(jnp.finfo(s.dtype).min, s.dtype)


# Derivatives and vmap.


def _maximum_jvp(s: Spec, primals: Any, tangents: Any, named: bool) -> Any:
    y, at = _onednn.call(MAXIMUM_AND_PLACE, s, *primals, named=named)
    return [y], _onednn.call(PICK, s, *tangents, at, named=named)


def _maximum_and_place_jvp(s: Spec, primals: Any, tangents: Any, named: bool) -> Any:
    y, at = _onednn.call(MAXIMUM_AND_PLACE, s, *primals, named=named)
    return [y, at], [*_onednn.call(PICK, s, *tangents, at, named=named), None]


def _folded(this: Callable[[], _onednn.Operation], s: Spec, size: int, arrays: Any, axes: Any, named: bool) -> Any:
    """The mapped axis joins the batch."""
    joined = (in_batch(a, axis, size) for a, axis in zip(arrays, axes))
    results = _onednn.call(this(), s._replace(batch=size * s.batch), *joined, named=named)
    return [r.reshape(size, s.batch, *r.shape[1:]) for r in results], [0] * len(results)


def _linear(this: Callable[[], _onednn.Operation], other: Callable[[], _onednn.Operation]) -> dict[str, Any]:
    """The rules of an operation that is linear in its first array, and whose transpose is another."""

    def transposed(s: Spec, arrays: Any, cts: Any, named: bool) -> Sequence[Any]:
        (out,) = _onednn.call(other(), s, *cts, *arrays[1:], named=named)
        return [out, *(None for _ in arrays[1:])]

    def jvp(s: Spec, primals: Any, tangents: Any, named: bool) -> Any:
        return _onednn.bilinear_jvp(this(), s, primals, tangents, named)

    return {"batch": partial(_folded, this), "jvp": jvp, "transpose": transposed}


MAXIMUM = _onednn.operation(
    "max_pool", Spec, lambda s: [s.y], _build_maximum, _xla_maximum, partial(_folded, lambda: MAXIMUM), _maximum_jvp,
    guard=_above_lowest,
)  # fmt: skip
MAXIMUM_AND_PLACE = _onednn.operation(
    "max_pool with places", Spec, lambda s: [s.y, s.at], _build_maximum_and_place, _xla_maximum_and_place,
    partial(_folded, lambda: MAXIMUM_AND_PLACE), _maximum_and_place_jvp, guard=_above_lowest,
)  # fmt: skip
# XLA's maximum with oneDNN's gradient.
MAXIMUM_BY_XLA = _onednn.operation(
    "max_pool by slices", Spec, lambda s: [s.y], None, _xla_maximum, partial(_folded, lambda: MAXIMUM_BY_XLA),
    _maximum_jvp,
)  # fmt: skip
PICK = _onednn.operation(
    "max_pool tangent", Spec, lambda s: [s.y], None, _xla_pick, **_linear(lambda: PICK, lambda: SCATTER)
)
SCATTER = _onednn.operation(
    "max_pool gradient", Spec, lambda s: [s.x], _build_scatter, _xla_scatter, **_linear(lambda: SCATTER, lambda: PICK)
)
MEAN = _onednn.operation(
    "avg_pool", Spec, lambda s: [s.y], _build_mean, _xla_mean, **_linear(lambda: MEAN, lambda: SPREAD)
)
SPREAD = _onednn.operation(
    "avg_pool gradient", Spec, lambda s: [s.x], _build_spread, _xla_spread, **_linear(lambda: SPREAD, lambda: MEAN)
)


# The public side.


def cannot_max(x: Any, g: Window) -> str | None:
    """Why oneDNN cannot compute this maximum, or None."""
    if g.positions > MOST_PLACES:
        return f"{g.positions} elements in a window, the places of the maxima are kept up to {MOST_PLACES}"
    if any(map(jax.export.is_symbolic_dim, x.shape)):
        # Asked here: which windows hold padding only cannot be counted then.
        return "a size is symbolic"
    if str(x.dtype) in DTYPES and (xla.counts(g, False) < 1).any():
        return "a window holds padding only, whose maximum oneDNN has as the lowest finite number"
    return _cannot(x, g, False, MAXIMUM_AND_PLACE, SCATTER, MAXIMUM)


def cannot_mean(x: Any, g: Window, count_include_pad: bool) -> str | None:
    """Why oneDNN cannot compute this mean, or None."""
    return _cannot(x, g, count_include_pad, MEAN, SPREAD)


def _cannot(x: Any, g: Window, count_include_pad: bool, *operations: _onednn.Operation) -> str | None:
    if str(x.dtype) not in DTYPES:
        return f"x is {x.dtype}; it takes {', '.join(DTYPES)}"
    unfit = _onednn.unfit(x)
    if unfit is not None:
        return unfit
    s = spec_of(x, g, count_include_pad)
    refusals = (_onednn.refusal(operation, s) for operation in operations)
    return next((why for why in refusals if why is not None), None)


def spec_of(x: Any, g: Window, count_include_pad: bool = False) -> Spec:
    """oneDNN's description of a pooling."""
    return Spec(x.shape[0], *g, x.shape[-1], str(x.dtype), count_include_pad)


def max_pool(x: jax.Array, g: Window, named: bool) -> jax.Array:
    """The maximum over each window. What is not differentiated is left to XLA where that was measured faster."""
    operation = MAXIMUM_BY_XLA if not named and _is_faster_by_xla(x, g) else MAXIMUM
    (y,) = _onednn.call(operation, spec_of(x, g), x, named=named)
    return y


def _is_faster_by_xla(x: jax.Array, g: Window) -> bool:
    """Slices that need no padding and overlap little are one fused pass, without the check for NaN."""
    unpadded = all(pair == (0, 0) for pair in g.pads)
    return x.dtype == jnp.float32 and unpadded and all(s > 1 for s in g.stride)


def avg_pool(x: jax.Array, g: Window, count_include_pad: bool, named: bool) -> jax.Array:
    """The mean over each window."""
    (y,) = _onednn.call(MEAN, spec_of(x, g, count_include_pad), x, named=named)
    return y
