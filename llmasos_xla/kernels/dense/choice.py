"""Which formulation of a dense layer runs: by platform, dtype and static shape, in the order of preference.

Measured on a 4-core x86-64 CPU with AVX-512 and AMX, jax 0.10.2, rows x cin -> cout with bias and ReLU, oneDNN, wide
dot, dot (which is `x @ w`), forward / forward and all gradients, in ms:

    bfloat16  128 x 784 -> 128      0.12, 0.18, 0.38 / 0.34, 0.67, 1.0
              128 x 5408 -> 128     0.34, 0.40, 1.4  / 0.85, 2.5, 3.9
              2048 x 512 -> 512     0.81, 0.96, 3.9  / 3.4, 9.8, 12.7
              2048 x 512 -> 2048    3.9, 4.1, 12.5   / 13.8, 50, 54
              256 x 512 -> 32000    7.8, 9.3, 52     / 53, 156, 174
              8 x 25088 -> 4096     25, 45, 178      / 91, 295, 613
              1 x 4096 -> 4096      1.1, 26, 28      / 5.1, 50, 60
              1 x 512 -> 32000      0.95, 23, 24     / 5.1, 49, 50

In float32 XLA's products are as good (0.9 to 1.1 of oneDNN's time from 2^27 multiplications on and wherever the right
matrix lies transposed), but for few columns: 128 x 784 -> 128 forward 0.10 ms against 0.16, kernel's gradient 0.10
against 0.14; 128 x 5408 -> 128 forward 0.43 against 0.74, kernel's gradient 0.57 against 0.73. In a whole training
step of 784 -> 128 -> 10 that is 1.2 to 1.3 times, of 5408 -> 128 -> 10 1.1 to 1.4; with 512 columns and more single
products are still 1.1 to 1.6 times faster, the step is not. int8 pays for one row only: 1 x 4096 -> 4096 in 3.9 ms
against 47. A layout of oneDNN's own choice for the kernel lost everywhere to reading it as it lies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, elsewhere, platform
from llmasos_xla.kernels.dense import onednn, xla
from llmasos_xla.kernels.dense.problem import Problem

LIBRARY = "library"


def candidates(p: Problem, named: bool = False) -> list[Candidate]:
    """Every way to compute the problem. `named`: an implementation was asked for by name."""
    return [
        _library(p, named),
        _candidate("wide dot", xla.wide_dot, p, "sums in float32 reach the CPU's 16-bit products", _not_wide(p)),
        _candidate("dot", xla.dot, p, "takes everything"),
    ]


def _library(p: Problem, named: bool) -> Candidate:
    """oneDNN for each product, forward and backward, where it was measured to pay; by name for all of them."""
    cannot = elsewhere("cpu") or onednn.cannot(p)
    slow = cannot
    if cannot is None:
        reasons = [onednn.slower(s) for s in onednn.products(p)]
        slow = None if None in reasons else reasons[0]
    reason = "oneDNN for the products where it pays, bias and activation fused"
    return Candidate("onednn", LIBRARY, lambda: onednn.dense(p, named), slow, reason, able=cannot is None)


def _candidate(
    formulation: str, run: Callable[[Problem], jax.Array], p: Problem, reason: str, cannot: str | None = None
) -> Candidate:
    return Candidate("xla", formulation, lambda: p.finish(run(p)), cannot, reason)


def _not_wide(p: Problem) -> str | None:
    if platform() != "cpu":
        return f"measured to pay on cpu only, this is {platform()}"
    if not jnp.issubdtype(p.x.dtype, jnp.floating) or p.x.dtype.itemsize != 2:
        return f"operands are {p.x.dtype}"
    return None
