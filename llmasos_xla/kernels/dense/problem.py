"""What a dense layer is asked to compute, checked once."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.conv.geometry import as_array, at_least_float32


class Problem(NamedTuple):
    """`activation(scale * (x @ w) + bias)`; arrays or `jax.ShapeDtypeStruct`."""

    x: Any
    w: Any
    scale: Any
    bias: Any
    activation: str | None
    transpose_kernel: bool
    precision: Any
    sums: Any
    """The dtype of the product: the preferred one, or that of the operands."""

    @property
    def rows(self) -> int:
        """How many vectors are multiplied."""
        return math.prod(self.x.shape[:-1])

    @property
    def cin(self) -> int:
        """The size of each of them."""
        return self.x.shape[-1]

    @property
    def cout(self) -> int:
        """The size of each result."""
        return self.w.shape[0 if self.transpose_kernel else 1]

    @property
    def result(self) -> Any:
        """The dtype of the result."""
        return self.sums if self.scale is None else jnp.dtype(jnp.float32)

    def finish(self, y: jax.Array) -> jax.Array:
        """Scale, bias and activation of the product."""
        if self.scale is not None:
            y = y.astype(self.result) * jnp.broadcast_to(self.scale.astype(self.result), y.shape)
        if self.bias is not None:
            y = y + rows_of(self.bias, y)
        return activation_named(self.activation)(y)


def rows_of(bias: jax.Array, y: jax.Array) -> jax.Array:
    """The bias in each row of y. Widened in between, so that its gradient is summed in float32 at least."""
    if jnp.issubdtype(y.dtype, jnp.floating):
        bias = bias.astype(at_least_float32(y.dtype))
    return jnp.broadcast_to(bias, y.shape).astype(y.dtype)


def problem(
    x: Any,
    w: Any,
    bias: Any,
    activation: str | None,
    scale: Any,
    transpose_kernel: bool,
    precision: Any,
    preferred_element_type: Any,
) -> Problem:
    """The problem, or a complaint about it."""
    x, w = as_array(x), as_array(w)
    if w.ndim != 2:
        raise ValueError(f"dense: w must be {_spelled(transpose_kernel)}, got shape {tuple(w.shape)}")
    if x.ndim < 1 or x.shape[-1] != w.shape[int(transpose_kernel)]:
        raise ValueError(
            f"dense: x has shape {tuple(x.shape)}, w takes {w.shape[int(transpose_kernel)]} channels on its last axis "
            f"(w {tuple(w.shape)} = {_spelled(transpose_kernel)})"
        )
    if x.dtype != w.dtype:
        raise TypeError(f"dense: x is {x.dtype}, w is {w.dtype}; cast one of them")
    if scale is not None and preferred_element_type is None:
        preferred_element_type = jnp.int32
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4 and preferred_element_type is None:
        raise TypeError(f"dense: sums of {x.dtype} overflow; pass preferred_element_type=jnp.int32 or a scale")
    sums = jnp.dtype(preferred_element_type or x.dtype)
    p = Problem(x, w, _array_or_none(scale), _array_or_none(bias), None, transpose_kernel, precision, sums)
    if p.scale is not None:
        _check_scale(p)
    if p.bias is not None and tuple(p.bias.shape) != (p.cout,):
        raise ValueError(f"dense: bias has shape {tuple(p.bias.shape)}, expected ({p.cout},) = (cout,)")
    if p.bias is not None and p.bias.dtype not in (x.dtype, p.result):
        raise TypeError(f"dense: bias is {p.bias.dtype}, the operands are {x.dtype}; cast the bias")
    activation_named(activation, "dense")
    if activation is not None and not jnp.issubdtype(p.result, jnp.inexact):
        raise TypeError(f"dense: activation={activation!r} needs floating point, the result is {p.result}")
    return p._replace(activation=activation.lower() if activation else None)


def _array_or_none(a: Any) -> Any:
    return None if a is None else as_array(a)


def _spelled(transpose_kernel: bool) -> str:
    return "[cout, cin]" if transpose_kernel else "[cin, cout]"


def _check_scale(p: Problem) -> None:
    if tuple(p.scale.shape) not in ((), (p.cout,)):
        raise ValueError(f"dense: scale has shape {tuple(p.scale.shape)}, expected () or ({p.cout},) = (cout,)")
    if not jnp.issubdtype(p.scale.dtype, jnp.floating):
        raise TypeError(f"dense: scale is {p.scale.dtype}, expected floating point")
    if not jnp.issubdtype(p.x.dtype, jnp.integer) or p.sums != jnp.int32:
        raise TypeError(
            f"dense: scale is for int8 operands summed in int32, the operands are {p.x.dtype}; multiply w by it instead"
        )
