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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, elsewhere
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.conv import onednn, triton
from llmasos_xla.kernels.conv.geometry import Geometry
from llmasos_xla.kernels.conv.xla import FORMULATIONS, UNFIT, in_channels_last, slow

LIBRARY = "library"
DEPTHWISE, FIRST_LAYER = "depthwise kernel", "first layer kernel"

_REASONS = {
    DEPTHWISE: "each element is loaded once for a whole column of taps; bias and activation fused",
    FIRST_LAYER: "the window's own elements are the depth of one product; bias and activation fused",
    LIBRARY: "oneDNN's kernels, bias and activation fused; measured fastest on this platform",
    "depthwise multiply-adds": "one input channel a group: no library on this platform takes it",
    "strided pointwise": "the stride is taken before the convolution",
    "canonical by group": "grouped convolutions have no fast path on this platform",
    "phases": "the input gradient of a stride and the kernel gradient of a dilation as cuDNN takes them",
    "canonical": "gradients that the platform's library takes, inside loops too",
    "lax": "takes everything",
}


class Epilogue(NamedTuple):
    """What follows the sums: a scale (of integer sums) and a bias, `[cout]` or None; an activation by name or None."""

    scale: Any = None
    bias: Any = None
    activation: str | None = None

    def apply(self, y: jax.Array, channel: int) -> jax.Array:
        """Bias and activation of a result whose channels are on axis `channel`."""
        row = tuple(-1 if axis == channel else 1 for axis in range(y.ndim))
        if self.scale is not None:
            y = y.astype(jnp.float32) * self.scale.astype(jnp.float32).reshape(row)
        if self.bias is not None:
            y = y + self.bias.astype(y.dtype).reshape(row)
        return activation_named(self.activation, axis=channel)(y)


def conv_candidates(
    x: Any, w: Any, g: Geometry, epilogue: Epilogue, out_sharding: object, named: bool = False
) -> list[Candidate]:
    """Every way to compute this convolution. Shapes do for arrays if none runs."""
    cannot = _cannot(g, out_sharding)

    def candidate(formulation: str, unfit: Callable[[Geometry], str | None]) -> Candidate:
        run = partial(in_channels_last, FORMULATIONS[formulation], x, w, g)
        return _candidate(formulation, run, epilogue, g, cannot or unfit(g), slow(formulation, g))

    return [
        _triton(DEPTHWISE, triton.DEPTHWISE, x, w, g, epilogue, out_sharding, named),
        _triton(FIRST_LAYER, triton.FIRST_LAYER, x, w, g, epilogue, out_sharding, named),
        _library(x, w, g, epilogue, out_sharding, named),
        *(candidate(formulation, unfit) for formulation, unfit in UNFIT.items()),
        _candidate("lax", partial(FORMULATIONS["lax"], x, w, g, out_sharding), epilogue, g),
    ]


def transpose_candidates(x: Any, w: Any, g: Geometry, epilogue: Epilogue, named: bool = False) -> list[Candidate]:
    """Every way to compute this transposed convolution, given as a convolution of a dilated input.

    Of the XLA formulations canonical on every platform: the kernel's gradient that lax derives dilates its input, which
    neither cuDNN nor XLA's CPU library has a fast path for.
    """
    run = partial(in_channels_last, FORMULATIONS["canonical"], x, w, g)
    return [
        _library(x, w, g, epilogue, None, named),
        _candidate("canonical", run, epilogue, g, _cannot(g, None)),
        _candidate("lax", partial(FORMULATIONS["lax"], x, w, g), epilogue, g),
    ]


def _triton(
    formulation: str,
    kind: triton.Kind,
    x: Any,
    w: Any,
    g: Geometry,
    epilogue: Epilogue,
    out_sharding: object,
    named: bool,
) -> Candidate:
    def run() -> jax.Array:
        def computed(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
            return kind.conv(x, w, epilogue.bias, g, epilogue.activation, named)

        return in_channels_last(computed, x, w, g)

    cannot = elsewhere("gpu") or _cannot(g, out_sharding) or kind.cannot(g, x, w)
    if cannot is not None:
        return Candidate("triton", formulation, run, cannot, _REASONS[formulation])
    reason = f"{_REASONS[formulation]}; {kind.origin(g)}"
    return Candidate("triton", formulation, run, kind.slower(g), reason, able=True)


def _library(x: Any, w: Any, g: Geometry, epilogue: Epilogue, out_sharding: object, named: bool) -> Candidate:
    def run() -> jax.Array:
        computed = partial(_library_channels_last, epilogue=epilogue, named=named)
        return in_channels_last(computed, x, w, g)

    last, (scale, bias, activation) = g.with_channels_last(), epilogue
    if scale is not None:
        last = last._replace(preferred=jnp.dtype(jnp.float32))
    cannot = elsewhere("cpu")
    if cannot is None and (g.batch_groups > 1 or out_sharding is not None):
        cannot = _cannot(g, out_sharding)
    elif cannot is None:
        cannot = onednn.cannot(last, x, scale is not None, bias is not None, activation)
    return Candidate("onednn", LIBRARY, run, cannot, _REASONS[LIBRARY])


def _library_channels_last(x: jax.Array, w: jax.Array, g: Geometry, epilogue: Epilogue, named: bool) -> jax.Array:
    if epilogue.scale is not None:
        g = g._replace(preferred=jnp.dtype(jnp.float32))
    return onednn.conv(x, w, epilogue.scale, epilogue.bias, g, epilogue.activation, named)


def _candidate(
    formulation: str,
    run: Callable[[], jax.Array],
    epilogue: Epilogue,
    g: Geometry,
    cannot: str | None = None,
    slow: str | None = None,
) -> Candidate:
    return Candidate(
        "xla",
        formulation,
        lambda: epilogue.apply(run(), g.numbers.out_spec[1]),
        cannot or slow,
        _REASONS[formulation],
        able=cannot is None,
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
