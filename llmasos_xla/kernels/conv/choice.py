"""Which formulation of a convolution runs: by platform and static shape, in the order of preference.

Measured on a 4-core x86-64 CPU with AVX-512, jax 0.10.2, against plain `lax.conv_general_dilated`, forward and both
gradients: canonical 0.95 to 1.05 of its time outside of loops and 0.01 to 0.3 inside `lax.scan` (3x3 at
(8, 56, 56, 64 -> 64): 20 ms against 19 and 2,900); 1x1 with stride 2 at (8, 56, 56, 256 -> 512): 23 ms against 39;
32 groups at (8, 28, 28, 128 -> 128): 15 against 1,085; depthwise 3x3 at (1, 64, 64, 256): 16 against 146, forward
1.7 against 54. Tried and nowhere faster than these: shifted matmuls, im2col, space-to-depth for strides, a 1x1 kernel
as `dot_general`. The figures hold with XLA's own convolution fusion off (`xla_cpu_experimental_ynn_fusion_type`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, platform
from llmasos_xla.kernels.conv.geometry import Geometry
from llmasos_xla.kernels.conv.xla import FORMULATIONS, in_channels_last

Finish = Callable[[jax.Array], jax.Array]

_REASONS = {
    "depthwise multiply-adds": "one input channel a group: no library on this platform takes it",
    "strided pointwise": "the stride is taken before the convolution",
    "canonical by group": "grouped convolutions have no fast path on this platform",
    "canonical": "gradients that the platform's library takes, inside loops too",
    "lax": "takes everything",
}


def conv_candidates(x: Any, w: Any, g: Geometry, finish: Finish, out_sharding: object) -> list[Candidate]:
    """Every way to compute this convolution; `finish` adds bias and activation. Shapes do for arrays if none runs."""
    cannot = _cannot(g, out_sharding)
    slow = None if platform() == "cpu" else f"measured to pay on cpu only, this is {platform()}"

    def candidate(formulation: str, unfit: str | None) -> Candidate:
        run = partial(in_channels_last, FORMULATIONS[formulation], x, w, g)
        return _candidate(formulation, run, finish, cannot or unfit, slow)

    return [
        candidate("depthwise multiply-adds", _not_depthwise(g)),
        candidate("strided pointwise", _not_strided_pointwise(g)),
        candidate("canonical by group", "has one group" if g.groups == 1 else None),
        candidate("canonical", _grouped(g)),
        _candidate("lax", partial(FORMULATIONS["lax"], x, w, g, out_sharding), finish),
    ]


def transpose_candidates(x: Any, w: Any, g: Geometry, finish: Finish) -> list[Candidate]:
    """Every way to compute this transposed convolution, given as a convolution of a dilated input.

    Canonical on every platform: the kernel's gradient that lax derives dilates its input, which neither cuDNN nor
    XLA's CPU library has a fast path for.
    """
    run = partial(in_channels_last, FORMULATIONS["canonical"], x, w, g)
    return [
        _candidate("canonical", run, finish, _cannot(g, None)),
        _candidate("lax", partial(FORMULATIONS["lax"], x, w, g), finish),
    ]


def _candidate(
    formulation: str, run: Callable[[], jax.Array], finish: Finish, cannot: str | None = None, slow: str | None = None
) -> Candidate:
    return Candidate(
        "xla", formulation, lambda: finish(run()), cannot or slow, _REASONS[formulation], able=cannot is None
    )


def _cannot(g: Geometry, out_sharding: object) -> str | None:
    """Why only lax can compute this convolution, or None."""
    if g.batch_groups > 1:
        return f"batch_group_count={g.batch_groups}"
    if out_sharding is not None:
        return "out_sharding is given"
    if not jnp.issubdtype(g.dtype, jnp.floating):
        return f"operands are {g.dtype}"
    return None


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
