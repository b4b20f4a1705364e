"""Counting operations: the products in a traced program, loops as often as they run.

XLA's own analysis counts a loop's body once, knows nothing of calls into other libraries, and has no answer for devices
that are not here. What is traced is still whole: it names every product and its shapes. Counted are products
(multiply and add, two operations each) and what `compiling.FLOPS` tells of this package's own kernels. Single passes
over arrays are left out, since their time is that of memory, unless they are asked for: one operation a value.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core as extend_core

from llmasos_xla.compiling import FLOPS


def flops(function: Callable, *arguments: Any, passes: bool = False) -> dict[str, float]:
    """Operations of one call, by the dtype of the products' operands; of all devices together.

    `arguments` are arrays or `jax.ShapeDtypeStruct`; nothing is computed or compiled. A loop whose length is known
    only when it runs counts once, of the branches of a `cond` the one with most operations counts. With `passes` each
    value that is computed otherwise counts as one operation, but for those that are only moved.

    >>> import jax.numpy as jnp
    >>> def powers(x):
    ...     return jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=5)[0]
    >>> flops(powers, jnp.ones((8, 8)))
    {'float32': 5120.0}
    """
    return traced_flops(jax.jit(function).trace(*arguments), passes)


def traced_flops(traced: Any, passes: bool = False) -> dict[str, float]:
    """The same of what `jax.jit(...).trace(...)` returned, or of a jaxpr."""
    jaxpr = getattr(traced, "jaxpr", traced)
    return _count(getattr(jaxpr, "jaxpr", jaxpr), passes)


def _count(jaxpr: Any, passes: bool) -> dict[str, float]:
    total: dict[str, float] = {}
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in _PRODUCTS:
            found = {str(equation.invars[0].aval.dtype): float(_PRODUCTS[name](equation))}
        elif name in FLOPS:
            found = {str(equation.invars[0].aval.dtype): float(FLOPS[name](**params))}
        elif name == "cond":
            branches = [_count(branch.jaxpr, passes) for branch in params["branches"]]
            found = max(branches, key=lambda counted: sum(counted.values()))
        else:
            times = params["length"] if name == "scan" else _devices(params) if name == "shard_map" else 1
            inner = list(extend_core.jaxprs_in_params(params))
            found = _passes(equation) if passes and not inner else {}
            for jaxpr_inside in inner:
                found = _added(found, _count(jaxpr_inside, passes), times)
        total = _added(total, found)
    return total


def _passes(equation: Any) -> dict[str, float]:
    if equation.primitive.name in _MOVES:
        return {}
    found: dict[str, float] = {}
    for out in equation.outvars:
        if hasattr(out.aval, "shape"):
            found = _added(found, {str(out.aval.dtype): float(math.prod(out.aval.shape))})
    return found


def _added(a: Mapping[str, float], b: Mapping[str, float], times: int = 1) -> dict[str, float]:
    return {dtype: a.get(dtype, 0.0) + times * b.get(dtype, 0.0) for dtype in {**a, **b} if dtype in a or b[dtype]}


def _devices(params: Mapping[str, Any]) -> int:
    """How many devices run the body of a shard_map, each on its part."""
    mesh = params["mesh"]
    axes = params.get("newly_manual_axes", params.get("manual_axes", mesh.axis_names))
    return math.prod(mesh.shape[axis] for axis in axes)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _ragged_dot(equation: Any) -> float:
    """Each row is multiplied with one group's matrix."""
    left, right = (v.aval.shape for v in equation.invars[:2])
    numbers = equation.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    taken = {axis for pair in numbers for axis in pair[1]}
    groups = equation.params["ragged_dot_dimension_numbers"].rhs_group_dimensions
    columns = math.prod(n for axis, n in enumerate(right) if axis not in taken and axis not in groups)
    return 2.0 * math.prod(left) * columns


def _conv(equation: Any) -> float:
    """Each element of the output is a sum over the window and the input features of its group."""
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # input features of a group, then space
    # Of a transposed convolution's dilated input only one element in each dilation is not zero.
    holes = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * window / holes


_MOVES = {"reshape", "broadcast_in_dim", "transpose", "squeeze", "slice", "convert_element_type", "copy", "pad", "rev"}
_PRODUCTS: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
}
