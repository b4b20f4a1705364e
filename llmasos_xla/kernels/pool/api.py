"""Pooling over channels-last arrays: checks, documentation, dispatch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.conv.geometry import as_array, pad_pairs, per_axis
from llmasos_xla.kernels.pool import xla


def _geometry(who: str, x: Any, window: Any, strides: Any, padding: Any) -> xla.Window:
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f"{who}: x must be [batch, *spatial, channels] with one to three spatial axes, got shape {tuple(x.shape)}"
        )
    rank = x.ndim - 2
    size = tuple(x.shape[1:-1])
    window = per_axis(who, "window", window, rank)
    stride = window if strides is None else per_axis(who, "strides", strides, rank)
    pads = pad_pairs(who, padding, size, window, stride)
    return xla.Window(size, window, stride, pads)


def _max_candidates(x: Any, window: Any, strides: Any = None, padding: Any = "VALID") -> list[_dispatch.Candidate]:
    x = as_array(x)
    g = _geometry("max_pool", x, window, strides, padding)
    return [
        _dispatch.Candidate("xla", "slices", lambda: xla.max_slices(x, g)),
        _dispatch.Candidate("xla", "reduce window", lambda: xla.max_reduce_window(x, g)),
    ]


@_dispatch.op(_max_candidates)
def max_pool(
    x: Any,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Maximum over a sliding window of `[batch, *spatial, channels]`.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.ones((1, 4, 4, 3)), 2).shape
    (1, 2, 2, 3)
    """
    return _dispatch.run(max_pool, _max_candidates(x, window, strides, padding), implementation)


def _avg_candidates(
    x: Any, window: Any, strides: Any = None, padding: Any = "VALID", count_include_pad: bool = False
) -> list[_dispatch.Candidate]:
    x = as_array(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"avg_pool: x is {x.dtype}; cast it to float32")
    g = _geometry("avg_pool", x, window, strides, padding)
    return [
        _dispatch.Candidate("xla", "slices", lambda: xla.average(x, g, xla.sum_slices, count_include_pad)),
        _dispatch.Candidate(
            "xla", "reduce window", lambda: xla.average(x, g, xla.sum_reduce_window, count_include_pad)
        ),
    ]


@_dispatch.op(_avg_candidates)
def avg_pool(
    x: Any,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = False,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Mean over a sliding window of `[batch, *spatial, channels]`.

    >>> import jax.numpy as jnp
    >>> avg_pool(jnp.ones((1, 4, 4, 3)), 2).shape
    (1, 2, 2, 3)
    """
    return _dispatch.run(avg_pool, _avg_candidates(x, window, strides, padding, count_include_pad), implementation)
