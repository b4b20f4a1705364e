"""Operations of a computation, counted in its equations: a loop as often as it runs, where XLA counts its body once."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as extend_core

from llmasos_xla.compiling import FLOPS

_MOVES = {"reshape", "broadcast_in_dim", "transpose", "squeeze", "slice", "convert_element_type", "copy", "pad", "rev"}


def count_operations(function: Callable, *arguments: Any) -> float:
    """Floating point operations of one call: two for each product of a dot or a convolution, one for any other value.

    The arguments may be `jax.ShapeDtypeStruct`. A loop of unknown length counts once, of branches the longest counts.

    >>> x, w = jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((8, 2), "float32")
    >>> count_operations(lambda x, w: x @ w, x, w)
    128.0
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: extend_core.Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns), 0.0)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name in FLOPS:
        return FLOPS[name](**params)
    values = float(sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars))
    if name == "dot_general":
        shape = equation.invars[0].aval.shape
        return 2.0 * values * math.prod(shape[axis] for axis in params["dimension_numbers"][0][0])
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2.0 * values * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    inner = [_count(jaxpr) for jaxpr in extend_core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    if inner:
        return sum(inner) * params.get("length", 1)
    return 0.0 if name in _MOVES else values
