"""The linear recurrence: the public function, and JAX's own scans."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_xla import kernels
from llmasos_xla.kernels.scan import triton_spec
from llmasos_xla.kernels.scan.cases import GPU_BENCH, Case
from llmasos_xla.kernels.scan.cases import TESTS as CPU_TESTS
from side_by_side.gpu.problem import BOTH, DTYPES, FORWARD, Problem, Row, Trial, Work, normal
from side_by_side.gpu.programs import asked

CHOICE = triton_spec.CHOICE
# Some of the benchmark's cases have the same names.
TESTS = {Row("scan", f"tests:{c.name}", d): c for c in CPU_TESTS for d in ("float32", "bfloat16", "float16")}
BENCH = {Row("scan", c.name, c.dtype): c for c in GPU_BENCH}
TINY = [Row("scan", "tests:odd", "bfloat16"), Row("scan", "tests:gate-of-step", "float32")]
STRESS: list[Row] = []
# More launches than these take seconds.
_MOST_STEPS = 8192

_TRIED = [
    [{"segments": 1 << n} for n in range(8)],
    [{"vector": v, "ahead": a} for v in (1, 2, 4, 8) for a in (4, 8, 16, 32) if v * a <= 64],
    [{"fused": fused} for fused in (False, True)],
]


def problem(row: Row, case: Case) -> Problem:
    """The problem of a case."""
    shapes: dict[str, tuple[int, ...]] = {"a": case.a, "b": case.shape}
    if case.initial:
        shapes["h0"] = (case.batch, case.channels)
    names = tuple(shapes)
    structs = [jax.ShapeDtypeStruct(s, DTYPES[row.dtype][0]) for s in shapes.values()]

    def named(implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda *arrays: kernels.linear_scan(*arrays, reverse=case.reverse, implementation=implementation)

    ways = {
        "ours": named(None), "triton": named("triton"), "xla": named("xla"),
        "associative": _associative(case),
    }  # fmt: skip
    if case.time <= _MOST_STEPS:
        ways |= {"scan": _steps(case, 1), "scan-8": _steps(case, 8)}
    return Problem(
        row, names, shapes, _draw, ways,
        lambda: kernels.explain(kernels.linear_scan, *structs, reverse=case.reverse),
        lambda: _work(row, case), "PyTorch has no such function", True,
    )  # fmt: skip


def trials(row: Row, case: Any) -> Iterator[Trial]:
    """Segments, then loads, then whether one kernel makes all gradients."""
    for table, key in dict.fromkeys(asked(problem(row, case))):
        if table == triton_spec.TABLE:
            yield Trial(table, key, BOTH, _TRIED)


def _high(case: Case, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Gates for all steps, terms and the first state, in the dtype of states."""
    a, b, *start = arrays
    high = jnp.dtype(jnp.float32) if b.dtype.itemsize < 4 else b.dtype
    first = start[0].astype(high) if start else jnp.zeros((case.batch, case.channels), high)
    return jnp.broadcast_to(a, b.shape).astype(high), b.astype(high), first


def _associative(case: Case) -> Callable[..., tuple[jax.Array, ...]]:
    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        a, b, first = _high(case, arrays)
        at = case.time - 1 if case.reverse else 0
        b = b.at[:, at].add(a[:, at] * first)
        _, h = lax.associative_scan(
            lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), axis=1, reverse=case.reverse
        )
        h = h.astype(arrays[1].dtype)
        return h, h[:, 0 if case.reverse else case.time - 1]

    return function


def _steps(case: Case, unroll: int) -> Callable[..., tuple[jax.Array, ...]]:
    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        a, b, first = _high(case, arrays)

        def step(h: jax.Array, xs: Any) -> Any:
            h = xs[0] * h + xs[1]
            return h, h.astype(arrays[1].dtype)

        over_time = jnp.swapaxes(a, 0, 1), jnp.swapaxes(b, 0, 1)
        final, h = lax.scan(step, first, over_time, reverse=case.reverse, unroll=unroll)
        return jnp.swapaxes(h, 0, 1), final.astype(arrays[1].dtype)

    return function


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = normal(rng, shape)
    return 1 / (1 + np.exp(-drawn - 1)) if name == "a" else drawn


def _work(row: Row, case: Case) -> dict[str, Work]:
    size = jnp.dtype(DTYPES[row.dtype][0]).itemsize
    a, b = math.prod(case.a), math.prod(case.shape)
    return {
        FORWARD: Work(2.0 * b, size * (a + 2 * b)),
        # Backward reads a, the states and their cotangents, and writes both gradients.
        BOTH: Work(5.0 * b, size * (3 * a + 5 * b)),
    }
