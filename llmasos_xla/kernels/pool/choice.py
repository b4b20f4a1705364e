"""Which formulation of a pooling runs: by platform and static shape, in the order of preference.

Measured on a 4-core x86-64 CPU with AVX-512 and AMX, jax 0.10.2. XLA's formulations, gradient of a window of 2x2 at
(8, 112, 112, 64): maximum by blocks 3.4 ms, by slices 6, by `lax.reduce_window` 84; 3x3 with stride 2: 15 by slices
against 105. Forward passes are equal. Sums: slices 8 ms against 33 at 3x3 with stride 2; by blocks 1.4 against 19 at
8x8.

oneDNN against the best of these in float32, forward / forward and gradient, in ms:

    3x3, stride 2, "SAME", (8, 112, 112, 64)  maximum 0.92, 2.5 / 2.7, 18.9  mean 0.45, 2.5 / 2.0, 13.3
    3x3, stride 1, "SAME", (8, 28, 28, 192)   maximum 0.34, 0.76 / 0.66, 2.3 mean 0.19, 0.51 / 0.58, 2.2
    3x3, stride 2, "VALID", (8, 55, 55, 96)   maximum 0.37, 0.27 / 0.63, 5.6 mean 0.18, 0.23 / 0.39, 0.59
    2x2 tiles, (128, 26, 26, 32)              maximum 0.36, 0.24 / 0.63, 0.77 mean 0.19, 0.27 / 0.52, 0.68
    2x2 tiles, (512, 26, 26, 32)              maximum 1.2, 1.1 / 5.8, 20     mean 0.60, 1.0 / 5.7, 17

In bfloat16 it wins 1 to 50 times.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, elsewhere, platform
from llmasos_xla.kernels.pool import onednn, xla
from llmasos_xla.kernels.pool.xla import Window

Formulation = Callable[[jax.Array, Window], jax.Array]

LIBRARY = "library"
# Elements of an input and of a window from which on oneDNN was measured to pay.
LEAST_OVERLAPPING_OR_LARGE, LEAST_TILED, LEAST_TILED_MAX_IN_FLOAT32 = 2**16, 2**18, 2**20
LEAST_POSITIONS = 4

_REASONS = {
    LIBRARY: "oneDNN's kernels; of a maximum the place is written down for the gradient",
    "reduce window": "takes everything",
}


def max_candidates(x: Any, g: Window, named: bool = False) -> list[Candidate]:
    """Every way to compute this maximum. `named`: an implementation was asked for by name."""
    integer = None if jnp.issubdtype(x.dtype, jnp.floating) else f"has gradients for floating point, x is {x.dtype}"

    def candidate(name: str, function: Formulation, cannot: str | None, slow: str | None) -> Candidate:
        return _candidate(name, lambda: xla.wide(function, x, g), cannot or integer, _elsewhere() or slow)

    tiled = LEAST_TILED_MAX_IN_FLOAT32 if x.dtype == jnp.float32 else LEAST_TILED
    return [
        _library(lambda: onednn.max_pool(x, g, named), lambda: onednn.cannot_max(x, g), x, g, tiled),
        candidate("blocks", xla.max_blocks, _overlapping(g), _large(g, xla.MAX_BLOCKS)),
        candidate("slices", xla.max_slices, None, _large(g, xla.MAX_SLICES)),
        _candidate("reduce window", lambda: xla.max_reduce_window(x, g)),
    ]


def avg_candidates(x: Any, g: Window, count_include_pad: bool, named: bool = False) -> list[Candidate]:
    """Every way to compute this mean. `named`: an implementation was asked for by name."""

    def candidate(name: str, total: Formulation, cannot: str | None = None, slow: str | None = None) -> Candidate:
        return _candidate(name, lambda: xla.mean(total, x, g, count_include_pad), cannot, slow)

    def library() -> jax.Array:
        return onednn.avg_pool(x, g, count_include_pad, named)

    small = None if g.positions > xla.MAX_BLOCKS else f"slices pay up to {xla.MAX_BLOCKS} elements"
    return [
        _library(library, lambda: onednn.cannot_mean(x, g, count_include_pad), x, g, LEAST_TILED),
        candidate("blocks", xla.sum_blocks, _overlapping(g), _elsewhere() or small),
        candidate("slices", xla.sum_slices, None, _elsewhere() or _large(g, xla.SUM_SLICES)),
        candidate("reduce window", xla.sum_reduce_window),
    ]


def _library(
    run: Callable[[], jax.Array], cannot: Callable[[], str | None], x: Any, g: Window, least_tiled: int
) -> Candidate:
    why = elsewhere("cpu") or cannot()
    return Candidate("onednn", LIBRARY, run, why or _slower(x, g, least_tiled), _REASONS[LIBRARY], able=why is None)


def _slower(x: Any, g: Window, least_tiled: int) -> str | None:
    if g.positions < LEAST_POSITIONS:
        return f"{g.positions} elements in a window, pays from {LEAST_POSITIONS} on"
    few = g.window == g.stride and g.positions <= xla.MAX_BLOCKS
    least = least_tiled if few else LEAST_OVERLAPPING_OR_LARGE
    if math.prod(x.shape) < least:
        return f"{math.prod(x.shape)} elements in the input, pays from {least} on"
    return None


def _candidate(
    formulation: str, run: Callable[[], jax.Array], cannot: str | None = None, slow: str | None = None
) -> Candidate:
    reason = _REASONS.get(formulation, "a gradient without scatter")
    return Candidate("xla", formulation, run, cannot or slow, reason, able=cannot is None)


def _elsewhere() -> str | None:
    return None if platform() == "cpu" else f"measured to pay on cpu only, this is {platform()}"


def _overlapping(g: Window) -> str | None:
    return None if g.window == g.stride else f"windows {g.window} with strides {g.stride} do not tile the input"


def _large(g: Window, limit: int) -> str | None:
    return None if g.positions <= limit else f"{g.positions} elements in a window, pays up to {limit}"
