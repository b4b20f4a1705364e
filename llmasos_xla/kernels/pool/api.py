"""Pooling over channels-last arrays: checks, documentation, dispatch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._rows import Rows
from llmasos_xla.kernels.conv.geometry import as_array, pad_pairs, per_axis
from llmasos_xla.kernels.pool import choice
from llmasos_xla.kernels.pool.xla import Window, counts


def _max_candidates(
    x: Any, window: Any, strides: Any = None, padding: Any = "VALID", *, implementation: str | None = None
) -> list[_dispatch.Candidate]:
    x = as_array(x)
    g = _geometry("max_pool", x, window, strides, padding)
    if x.dtype == jnp.bool_ or not jnp.issubdtype(x.dtype, jnp.number) or jnp.iscomplexobj(x):
        raise TypeError(f"max_pool: x is {x.dtype}; cast it to float32 or an integer type")
    return choice.max_candidates(x, g, implementation is not None)


@_dispatch.op(_max_candidates, Rows(("x",)))
def max_pool(
    x: Any,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Maximum over a sliding window, channels last: `y[i] = max_k x[stride * i + k - low]`.

    NaN propagates. The gradient goes to the first of equal elements in row-major order of the window, as that of
    `lax.reduce_window` does. Padding never wins, but over a window of nothing else, which gives the lowest value.

    Args:
        x: `[batch, *spatial, channels]` with one to three spatial axes, floating point or integer.
        window: its size, one integer or one for each spatial axis.
        strides: the step, by default the window's size.
        padding: "VALID", "SAME", "SAME_LOWER", or (low, high) for each spatial axis.
        implementation: None chooses; "onednn" or "xla" must run.

    Raises:
        ValueError: if x has another rank, the window is larger than the padded input, or a name is unknown.
        TypeError: if x is boolean or complex.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    candidates = _max_candidates(x, window, strides, padding, implementation=implementation)
    return _dispatch.run(max_pool, candidates, implementation)


def _avg_candidates(
    x: Any,
    window: Any,
    strides: Any = None,
    padding: Any = "VALID",
    count_include_pad: bool = False,
    *,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    x = as_array(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"avg_pool: x is {x.dtype}; cast it to float32")
    g = _geometry("avg_pool", x, window, strides, padding)
    if not count_include_pad and (counts(g, False) < 1).any():
        raise ValueError(
            f"avg_pool: with padding={padding!r} a window of {g.window} holds padding only (x {tuple(x.shape)}); "
            "pad less than the window, or pass count_include_pad=True"
        )
    return choice.avg_candidates(x, g, count_include_pad, implementation is not None)


@_dispatch.op(_avg_candidates, Rows(("x",)))
def avg_pool(
    x: Any,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = False,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Mean over a sliding window, channels last: `y[i] = sum_k x[stride * i + k - low] / count[i]`.

    Sums are kept in float32 at least.

    Args:
        x: `[batch, *spatial, channels]` with one to three spatial axes, floating point.
        window: its size, one integer or one for each spatial axis.
        strides: the step, by default the window's size.
        padding: "VALID", "SAME", "SAME_LOWER", or (low, high) for each spatial axis.
        count_include_pad: whether padding counts as zeros (PyTorch's default) or not at all (Keras).
        implementation: None chooses; "onednn" or "xla" must run.

    Raises:
        ValueError: if x has another rank, the window is larger than the padded input or holds padding only, or a name
            is unknown.
        TypeError: if x is not floating point.

    >>> import jax.numpy as jnp
    >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[2.5, 4.5], [10.5, 12.5]]
    """
    candidates = _avg_candidates(x, window, strides, padding, count_include_pad, implementation=implementation)
    return _dispatch.run(avg_pool, candidates, implementation)


def _geometry(who: str, x: Any, window: Any, strides: Any, padding: Any) -> Window:
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f"{who}: x must be [batch, *spatial, channels] with one to three spatial axes, got shape {tuple(x.shape)}"
        )
    rank = x.ndim - 2
    size = tuple(x.shape[1:-1])
    window = per_axis(who, "window", window, rank)
    stride = window if strides is None else per_axis(who, "strides", strides, rank)
    pads = pad_pairs(who, padding, size, window, stride)
    for axis, (n, (low, high), k) in enumerate(zip(size, pads, window)):
        if n + low + high < k:
            raise ValueError(
                f"{who}: the window spans {k} on spatial axis {axis}, the padded input only {n + low + high} "
                f"(x {tuple(x.shape)}, window {window}); use a smaller window or padding='SAME'"
            )
    return Window(size, window, stride, pads)
