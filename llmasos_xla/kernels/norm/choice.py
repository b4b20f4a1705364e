"""Which formulation of a batch normalization runs: by platform, dtype and static shape, in the order of preference.

Measured on a 4-core x86-64 CPU with AVX-512, jax 0.10.2, in training with a ReLU, against the formula in plain JAX;
medians in ms of `python benchmarks/kernels.py --op batch_norm`. The smallest of the cases is the least that a call was
measured for.

                                   float32                            bfloat16
                       forward    XLA gradients    XLA   forward    XLA gradients    XLA
    (64, 32, 32, 16)     0.287   1.38       0.4   2.94     0.236   1.21     0.316   2.58
    (64, 32, 32, 64)      1.15   2.55      1.13   19.7     0.662   3.62     0.786   23.2
    (64, 16, 16, 128)    0.378   1.75     0.627   5.08      0.48    2.2     0.624   4.75
    (64, 8, 8, 256)      0.238  0.759     0.358   2.19     0.286    1.1     0.438   2.37
    (64, 4, 4, 512)      0.155  0.442     0.217   1.21     0.167  0.615     0.214    1.2
    (8, 56, 56, 256)      1.03   5.32      2.36     35       1.2   6.02      1.53   39.6
    (128, 256)           0.042 0.0468    0.0607  0.105    0.0478 0.0701    0.0449 0.0942
    (8, 1024, 64)         0.16  0.409     0.146   1.14     0.125  0.542     0.157   1.07

A call passes once over memory for the statistics and once for the rest, and twice for the gradients; XLA once more for
the variance, and its sums over rows are the slow part of it.
"""

import math
from typing import Any, NamedTuple

from llmasos_xla.kernels._dispatch import Candidate, elsewhere
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.norm import onednn, xla

LIBRARY = "library"
PLAIN = "sums"

_LEAST = 32_768


class After(NamedTuple):
    """What follows the normalization: a sum with an array of x's shape or None; an activation by name or None."""

    residual: Any = None
    activation: str | None = None

    def __call__(self, moments: xla.Moments) -> xla.Moments:
        """Does it."""
        y, mean, variance = moments
        y = y if self.residual is None else y + self.residual
        return activation_named(self.activation)(y), mean, variance


def candidates(x: Any, scale: Any, offset: Any, after: After, epsilon: float, named: bool = False) -> list[Candidate]:
    """Every way to compute it. Shapes do for arrays if none runs. `named`: an implementation was asked for by name."""

    def plain() -> xla.Moments:
        return after(xla.batch_norm(x, scale, offset, epsilon))

    return [
        _library(x, scale, offset, after, epsilon, named),
        Candidate("xla", PLAIN, plain, None, "a derivative of two sums, one pass"),
    ]


def _library(x: Any, scale: Any, offset: Any, after: After, epsilon: float, named: bool) -> Candidate:
    *rows, channels = x.shape
    # Of what follows only the ReLU is in the call, and a sum only ahead of it.
    relu = after.activation == "relu"
    residual = after.residual if relu else None
    spec = onednn.Spec(
        math.prod(rows), channels, str(x.dtype), epsilon, scale is not None, offset is not None, relu,
        residual is not None,
    )  # fmt: skip

    def run() -> xla.Moments:
        moments = onednn.batch_norm(x, scale, offset, residual, spec, named)
        return moments if relu else after(moments)

    why = elsewhere("cpu") or onednn.cannot(x, residual, spec)
    reason = "statistics in one pass, what follows in the next; the gradients in another two"
    return Candidate("onednn", LIBRARY, run, why or _slower(spec), reason, able=why is None)


def _slower(spec: onednn.Spec) -> str | None:
    size = spec.rows * spec.channels
    return None if size >= _LEAST else f"{size} elements; a call pays from {_LEAST}"
