"""Which formulation of a batch normalization runs: by platform, dtype and static shape, in the order of preference.

Measured on a 4-core x86-64 CPU with AVX-512 that others used too, jax 0.10.2: a training layer with ReLU, forward and
backward in one program, arrays donated, in turns; minima in ms. "autodiff" is JAX's derivative of the same formula.

    float32              autodiff   sums   oneDNN    bfloat16             autodiff   sums   oneDNN
    (64, 32, 32, 16)         2.99   2.78     2.27    (64, 32, 32, 16)         6.58   4.97     3.19
    (64, 32, 32, 64)         9.43   8.21     7.52    (64, 32, 32, 64)         38.3   27.8     7.43
    (64, 16, 16, 128)        4.32   3.51     3.07    (64, 16, 16, 128)        4.71   3.60     2.87
    (64, 8, 8, 256)          2.29   1.85     1.84    (64, 8, 8, 256)          2.96   2.16     1.55
    (64, 4, 4, 512)          1.37   1.09     1.07    (64, 4, 4, 512)          1.37   1.18     0.90
    (8, 56, 56, 256)         43.5   17.3     34.8    (64, 4, 4, 64)           0.29   0.22     0.19
    (128, 256)               0.11   0.10     0.21    (128, 256)               0.14   0.13     0.17

In float32 both move the same bytes: a call saves a pass of sums, XLA one by fusing the ReLU and its mask. Their medians
were within each other's spread; in a ResNet-18 step on busy cores oneDNN, with several parallel regions a call, was the
slower one. At 16 channels it took 0.73 to 0.86 of XLA's time in each of five runs of 262,144 elements and more.
"""

import math
from typing import Any, NamedTuple

from llmasos_xla.kernels._dispatch import Candidate, platform
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

    why = f"runs on cpu, this is {platform()}" if platform() != "cpu" else onednn.cannot(x, residual, spec)
    reason = "statistics in one pass, what follows in the next; the gradients in another two"
    return Candidate("onednn", LIBRARY, run, why or _slower(spec), reason, able=why is None)


def _slower(spec: onednn.Spec) -> str | None:
    size = spec.rows * spec.channels
    return None if size >= _LEAST else f"{size} elements; a call pays from {_LEAST}"
