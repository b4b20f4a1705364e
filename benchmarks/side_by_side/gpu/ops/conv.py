"""Convolution: the public functions, and lax's."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_xla import kernels
from llmasos_xla.kernels.conv import cases
from llmasos_xla.kernels.conv.cases import Case, TransposeCase
from side_by_side.gpu.problem import BOTH, DTYPES, FORWARD, Problem, Row, Trial, Work, normal
from side_by_side.gpu.programs import asked
from side_by_side.kernels.cases import OPS as READERS

CHOICE = "conv"


def _worth(case: Case | TransposeCase) -> int:
    """What XLA does badly comes first: groups, transposed convolution, few channels; then the control."""
    if isinstance(case, TransposeCase):
        return 1
    return 0 if case.groups > 1 else 2 if case.lhs[-1] <= 4 else 3


def _lists(ending: str) -> Iterator[tuple[str, Any]]:
    """The cases of all lists whose name ends so; "DEPTHWISE_TESTS" makes "depthwise:odd" of "odd"."""
    for name in sorted(n for n in dir(cases) if n.endswith(ending)):
        prefix = name.removesuffix(ending).strip("_").lower()
        for case in getattr(cases, name):
            yield f"{prefix}:{case.name}" if prefix else case.name, case


_MEASURED = [
    *getattr(cases, "GPU_BENCH", cases.BENCH),
    *getattr(cases, "GPU_TRANSPOSE_BENCH", cases.TRANSPOSE_BENCH),
]
TESTS = {Row("conv", n, d): c for n, c in _lists("TESTS") for d in ("float32", "bfloat16", "float16")}
TESTS |= {Row("conv", n, "float32-default"): c for n, c in _lists("TESTS") if n.startswith("first_layer:")}
BENCH = {Row("conv", c.name, "bfloat16"): c for c in sorted(_MEASURED, key=_worth)}
BENCH |= {Row("conv", c.name, "float32"): c for c in _MEASURED if _worth(c) == 0}
BENCH |= {Row("conv", c.name, "float32-default"): c for c in _MEASURED if _worth(c) == 2}
TINY = [Row("conv", "depthwise", "bfloat16"), Row("conv", "transpose:same", "float32")]
STRESS: list[Row] = []

# Fields of the kernels' blocks, by the table that keeps them; the blocks themselves are made for a shape.
_TRIED = {
    "depthwise forward": [[{"rows": n} for n in (1, 2, 4, 8)], [{"warps": 8}]],
    "depthwise input gradient": [[{"rows": n} for n in (2, 4, 8)], [{"warps": 8}]],
    "depthwise kernel gradient": [[{"rows": n} for n in (1, 2, 4, 8)], [{"programs": n} for n in (132, 264, 528)]],
    "depthwise gradient": [[{"rows": n} for n in (8, 16)], [{"programs": n} for n in (132, 264, 528)]],
    "first layer forward": [[{"block_m": n} for n in (32, 128)], [{"warps": 8}]],
    "first layer kernel gradient": [[{"block_m": n} for n in (32, 64, 128)], [{"programs": n} for n in (264, 528)]],
}


def problem(row: Row, case: Case | TransposeCase) -> Problem:
    """The problem of a case."""
    public, arguments, plain = _transposed(case) if isinstance(case, TransposeCase) else _direct(case)
    shapes = {"x": case.lhs, "w": case.rhs}

    def named(implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda x, w: (public(x, w, **arguments, implementation=implementation),)

    ways = {"ours": named(None), "xla": named("xla"), "lax": lambda x, w: (plain(x, w),)}
    if not isinstance(case, TransposeCase):
        ways["triton"] = named("triton")
    structs = [jax.ShapeDtypeStruct(s, DTYPES[row.dtype][0]) for s in shapes.values()]
    return Problem(
        row, tuple(shapes), shapes, _draw, ways, lambda: kernels.explain(public, *structs, **arguments),
        lambda: _work(row, case, jax.eval_shape(plain, *structs).shape), _torch(row, case), False,
    )  # fmt: skip


def trials(row: Row, case: Any) -> Iterator[Trial]:
    """Other blocks, where a kernel of ours asks for some."""
    for table, key in asked(problem(row, case)):
        if table in _TRIED:
            yield Trial(table, key, FORWARD if table.endswith("forward") else BOTH, _TRIED[table])


def _direct(case: Case) -> tuple[Callable[..., Any], dict[str, Any], Callable[..., Any]]:
    return kernels.conv, case.arguments, partial(lax.conv_general_dilated, **case.arguments_of_lax())


def _transposed(case: TransposeCase) -> tuple[Callable[..., Any], dict[str, Any], Callable[..., Any]]:
    arguments = {
        "strides": case.strides, "padding": case.padding, "rhs_dilation": case.rhs_dilation,
        "transpose_kernel": case.transpose_kernel,
    }  # fmt: skip
    rank = len(case.lhs) - 2
    spread = {
        n: (arguments[n],) * rank if isinstance(arguments[n], int) else arguments[n]
        for n in ("strides", "rhs_dilation")
    }
    return kernels.conv_transpose, arguments, partial(lax.conv_transpose, **arguments | spread)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return normal(rng, shape, 1 / math.sqrt(math.prod(shape[:-1])) if name == "w" else 1.0)


def _work(row: Row, case: Case | TransposeCase, out: tuple[int, ...]) -> dict[str, Work]:
    places = case.lhs if isinstance(case, TransposeCase) else out
    flops = 2.0 * math.prod(places[:-1]) * math.prod(case.rhs)
    elements = sum(math.prod(shape) for shape in (case.lhs, case.rhs, out))
    size = jnp.dtype(DTYPES[row.dtype][0]).itemsize * elements
    return {FORWARD: Work(flops, size), BOTH: Work(3 * flops, 2 * size)}


def _torch(row: Row, case: Case | TransposeCase) -> dict[str, Any] | str:
    op = "conv_transpose" if isinstance(case, TransposeCase) else "conv"
    (read,) = READERS[op][1](case, DTYPES[row.dtype][0])
    return {"kind": op, "problem": read.to_json()}
