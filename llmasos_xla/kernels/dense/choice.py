"""Which formulation of a dense layer runs: by platform, dtype and static shape, in the order of preference.

MEASURED
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, platform
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
    cannot = f"runs on cpu, this is {platform()}" if platform() != "cpu" else onednn.cannot(p)
    slow = cannot or onednn.slower(onednn.spec_of(p))
    reason = "oneDNN's 16-bit and int8 products, bias and activation fused; so are both gradients"
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
