"""Which formulation of a pooling runs: by platform and static shape, in the order of preference.

Measured on a 4-core x86-64 CPU with AVX-512, jax 0.10.2, gradient of a window of 2x2 at (8, 112, 112, 64): maximum
by blocks 3.4 ms, by slices 6, by `lax.reduce_window` 84; 3x3 with stride 2: 15 by slices against 105. Forward passes
are equal. Sums: slices 8 ms against 33 at 3x3 with stride 2; by blocks 1.4 against 19 at 8x8.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, platform
from llmasos_xla.kernels.conv.geometry import at_least_float32
from llmasos_xla.kernels.pool import xla
from llmasos_xla.kernels.pool.xla import Window

Formulation = Callable[[jax.Array, Window], jax.Array]

# Largest windows, in elements, for which a formulation was measured to pay.
MAX_BLOCKS, MAX_SLICES, SUM_SLICES = 16, 64, 32


def max_candidates(x: Any, g: Window) -> list[Candidate]:
    """Every way to compute this maximum."""
    integer = None if jnp.issubdtype(x.dtype, jnp.floating) else f"has gradients for floating point, x is {x.dtype}"

    def candidate(name: str, function: Formulation, cannot: str | None, slow: str | None) -> Candidate:
        return _candidate(name, lambda: function(x, g), cannot or integer, _elsewhere() or slow)

    return [
        candidate("blocks", xla.max_blocks, _overlapping(g), _large(g, MAX_BLOCKS)),
        candidate("slices", xla.max_slices, None, _large(g, MAX_SLICES)),
        _candidate("reduce window", lambda: xla.max_reduce_window(x, g)),
    ]


def avg_candidates(x: Any, g: Window, count_include_pad: bool) -> list[Candidate]:
    """Every way to compute this mean."""
    wide = at_least_float32(x.dtype)
    count = xla.counts(g, count_include_pad).astype(wide)

    def candidate(name: str, total: Formulation, cannot: str | None = None, slow: str | None = None) -> Candidate:
        def run() -> jax.Array:
            sums = total(x.astype(wide), g)
            return (sums / jnp.broadcast_to(count, sums.shape)).astype(x.dtype)

        return _candidate(name, run, cannot, slow)

    small = None if g.positions > MAX_BLOCKS else f"slices pay up to {MAX_BLOCKS} elements"
    return [
        candidate("blocks", xla.sum_blocks, _overlapping(g), _elsewhere() or small),
        candidate("slices", xla.sum_slices, None, _elsewhere() or _large(g, SUM_SLICES)),
        candidate("reduce window", xla.sum_reduce_window),
    ]


def _candidate(
    formulation: str, run: Callable[[], jax.Array], cannot: str | None = None, slow: str | None = None
) -> Candidate:
    reason = "takes everything" if formulation == "reduce window" else "a gradient without scatter"
    return Candidate("xla", formulation, run, cannot or slow, reason, able=cannot is None)


def _elsewhere() -> str | None:
    return None if platform() == "cpu" else f"measured to pay on cpu only, this is {platform()}"


def _overlapping(g: Window) -> str | None:
    return None if g.window == g.stride else f"windows {g.window} with strides {g.stride} do not tile the input"


def _large(g: Window, limit: int) -> str | None:
    return None if g.positions <= limit else f"{g.positions} elements in a window, pays up to {limit}"
