"""This package's public functions, each choosing for itself, under the package's own compiler options."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from llmasos_xla import kernels
from llmasos_xla.compiling import compiler_options
from side_by_side.kernels.bench import Program
from side_by_side.kernels.contestants import jax_programs
from side_by_side.kernels.problem import Problem

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def programs(problem: Problem, arrays: list[np.ndarray], cotangent: np.ndarray) -> Iterator[Program]:
    """The problem's parts; the variant says what the function chooses."""

    def function(*values: jax.Array) -> jax.Array:
        public, given, options = _call(problem, values)
        result = public(*given, **options)
        # A recurrence returns its last states too, a normalization its statistics.
        return result[0] if isinstance(result, tuple) else result

    public, given, options = _call(problem, jax_programs.entered(problem, arrays))
    chosen = kernels.explain(public, *given, **options).chosen
    variant = f"{chosen.implementation}: {chosen.formulation}"
    return jax_programs.programs(function, problem, arrays, cotangent, variant, compiler_options=compiler_options())


def _call(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    """The public function and its arguments."""
    return _OPS[problem.op](problem, values)


def _conv(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    o = problem.options
    space = "DHW"[3 - len(o["stride"]) :]
    return kernels.conv, values, {
        "window_strides": o["stride"],
        "padding": o["pads"],
        "lhs_dilation": o["lhs_dilation"],
        "rhs_dilation": o["rhs_dilation"],
        "dimension_numbers": (f"N{space}C", f"{space}IO", f"N{space}C"),
        "feature_group_count": o["groups"],
    }  # fmt: skip


def _conv_transpose(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    o = problem.options
    named = {"rhs_dilation": o["rhs_dilation"], "transpose_kernel": o["transpose_kernel"]}
    return kernels.conv_transpose, (*values, o["strides"], o["pads"]), named


def _pool(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    o = problem.options
    return getattr(kernels, problem.op), (*values, o["window"], o["strides"], o["pads"]), {}


def _dense(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    return kernels.dense, values, {"transpose_kernel": problem.options["transpose_kernel"]}


def _batch_norm(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    return kernels.batch_norm, values, {"epsilon": problem.options["epsilon"], "activation": "relu"}


def _recurrence(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    o = problem.options
    rest = list(values[3:])
    lengths = rest.pop() if o["lengths"] is not None else None
    named = {"lengths": lengths, "reverse": o["reverse"]}
    if len(rest) == 2:
        named["recurrent_bias"] = rest.pop()
    return getattr(kernels, problem.op), (*values[:3], rest[0] if rest else None), named


def _linear_scan(problem: Problem, values: tuple[jax.Array, ...]) -> Call:
    return kernels.linear_scan, values, {"reverse": problem.options["reverse"]}


_OPS = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
    "dense": _dense,
    "batch_norm": _batch_norm,
    "lstm": _recurrence,
    "gru": _recurrence,
    "rnn": _recurrence,
    "linear_scan": _linear_scan,
}
