"""Which formulation of a convolution runs: by platform and static shape, in the order of preference."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, platform
from llmasos_xla.kernels.conv import xla
from llmasos_xla.kernels.conv.geometry import Geometry


def candidates(
    x: jax.Array, w: jax.Array, g: Geometry, finish: Callable[[jax.Array], jax.Array], out_sharding: object
) -> list[Candidate]:
    """Every way to compute this convolution; `finish` adds bias and activation."""

    def candidate(name: str, function: Callable, reason: str, cannot: str | None, slow: str | None) -> Candidate:
        def run() -> jax.Array:
            return finish(function(x, w, g))

        return Candidate("xla", name, run, cannot or slow, reason, able=cannot is None)

    cannot = _not_canonical(g, out_sharding)
    depthwise = g.groups > 1 and g.groups == g.cin
    one_group = None if g.groups == 1 else "has more than one group"
    cpu = None if platform() == "cpu" else f"measured faster on cpu only, this is {platform()}"
    return [
        candidate(
            "taps multiply", xla.taps_multiply, "one channel a group", cannot or (None if depthwise else "not depthwise"), cpu
        ),
        candidate("taps matmul", xla.taps_matmul, "small", cannot or one_group, cpu or "slow"),
        candidate("patches matmul", xla.patches_matmul, "small", cannot or one_group, cpu or "slow"),
        candidate("lax", partial(xla.lax_conv, out_sharding=out_sharding), "", None, None),
    ]


def _not_canonical(g: Geometry, out_sharding: object) -> str | None:
    """Why only lax can compute this convolution, or None."""
    if not g.channels_last:
        return "takes channels-last arrays"
    if any(d > 1 for d in g.lhs_dilation):
        return "lhs_dilation"
    if g.batch_groups > 1:
        return "batch_group_count"
    if out_sharding is not None:
        return "out_sharding"
    if not jnp.issubdtype(g.dtype, jnp.floating):
        return f"takes floating point, not {g.dtype}"
    return None
