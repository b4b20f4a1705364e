"""A matrix product in plain JAX: the formulations, and the product of two matrices as they lie in memory."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels.dense.problem import Problem


def dot(p: Problem) -> jax.Array:
    """`lax.dot_general`: the oracle."""
    preferred = p.sums if p.sums != p.x.dtype else None
    return _dot(p, preferred)


def wide_dot(p: Problem) -> jax.Array:
    """16-bit operands with float32 sums, rounded once: the product that XLA's CPU library takes to AMX."""
    return _dot(p, jnp.dtype(jnp.float32)).astype(p.sums)


def _dot(p: Problem, preferred: Any) -> jax.Array:
    contract = (((p.x.ndim - 1,), (int(p.transpose_kernel),)), ((), ()))
    return lax.dot_general(p.x, p.w, contract, precision=p.precision, preferred_element_type=preferred)


def product(a: jax.Array, b: jax.Array, a_transposed: bool, b_transposed: bool, out_dtype: Any) -> jax.Array:
    """`a @ b` of matrices with or without one leading batch axis, either of them transposed."""
    batch = tuple(range(a.ndim - 2))
    contract = (a.ndim - 2 if a_transposed else a.ndim - 1,), (b.ndim - 1 if b_transposed else b.ndim - 2,)
    wide = jnp.int32 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.float32
    y = lax.dot_general(a, b, (contract, (batch, batch)), preferred_element_type=wide)
    return y.astype(out_dtype)


def outer(a: jax.Array, b: jax.Array, a_transposed: bool, b_transposed: bool, out_dtype: Any) -> jax.Array:
    """`product` where the contracted axis has size one: a multiplication, which XLA fuses with what follows."""
    column = a.swapaxes(-2, -1) if a_transposed else a
    row = b.swapaxes(-2, -1) if b_transposed else b
    shape = (*a.shape[:-2], column.shape[-2], row.shape[-1])
    column, row = (jnp.broadcast_to(v, shape).astype(jnp.float32) for v in (column, row))
    return (column * row).astype(out_dtype)
