"""What every contestant is held against: the operations and their gradients in float64.

Pooling and recurrence are the plain lax functions. Convolutions are products of matrices, one for each position of the
kernel: another algorithm than all that is compared, and one that is fast enough in float64.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from side_by_side.kernels import inputs
from side_by_side.kernels.contestants import jax_programs, plain_lax
from side_by_side.kernels.problem import Problem

jax.config.update("jax_enable_x64", True)


def write(problem: dict[str, Any], folder: str) -> dict[str, Any]:
    """Writes a cotangent of the result, and what each part of the problem gives."""
    # The compiled programs of earlier problems would only hold memory.
    jax.clear_caches()
    read, where = Problem.from_json(problem), Path(folder)
    arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in inputs.read(read, where)]
    values = tuple(jnp.asarray(a) for a in arrays)
    function = _CONVOLUTIONS[read.op](read.options) if read.op in _CONVOLUTIONS else plain_lax.function_of(read)
    shape = jax.eval_shape(function, *values).shape
    drawn = inputs.rounded(np.random.default_rng(0).standard_normal(shape, np.float32), read.dtype)
    np.save(inputs.cotangent(where), drawn)
    dy = jnp.asarray(drawn, jnp.float64)
    for part in read.parts:
        program, arguments = jax_programs.jitted(function, part, values, dy, {})
        inputs.write_results(where, part.name, [np.asarray(a) for a in jax.tree.leaves(program(*arguments))])
    return {}


def _conv(o: dict[str, Any]) -> jax_programs.Function:
    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        return _convolved(x, w, o["stride"], o["pads"], o["lhs_dilation"], o["rhs_dilation"], o["groups"])

    return function


def _conv_transpose(o: dict[str, Any]) -> jax_programs.Function:
    def function(x: jax.Array, w: jax.Array) -> jax.Array:
        rank = w.ndim - 2
        if o["transpose_kernel"]:
            w = jnp.swapaxes(jnp.flip(w, range(rank)), -1, -2)
        return _convolved(x, w, (1,) * rank, o["pads"], o["strides"], o["rhs_dilation"], 1)

    return function


_CONVOLUTIONS = {"conv": _conv, "conv_transpose": _conv_transpose}


def _convolved(
    x: jax.Array,
    w: jax.Array,
    stride: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """y[i] = sum_k x[stride * i + dilation * k - low] w[k], group by group."""
    *kernel, cin, cout = w.shape
    edges = ((0, 0, 0), *((low, high, b - 1) for (low, high), b in zip(pads, lhs_dilation)), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    batch, *sizes, _ = x.shape
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(sizes, kernel, rhs_dilation, stride)]
    spans = [(n - 1) * s + 1 for n, s in zip(out, stride)]

    # Checkpointed: what every position sees, kept for the gradient, would be the input many times.
    @jax.checkpoint
    def add(y: jax.Array, position: Any) -> Any:
        start, wk = position
        zero = jnp.zeros((), start.dtype)
        seen = lax.dynamic_slice(x, (zero, *start, zero), (batch, *spans, cin * groups))
        seen = seen[(slice(None), *(slice(None, None, s) for s in stride))].reshape(-1, groups, cin)
        if groups == 1:
            part = seen[:, 0] @ wk
        elif cin == 1:
            part = seen * wk.reshape(1, groups, -1)
        else:
            part = jnp.einsum("ngi,igo->ngo", seen, wk.reshape(cin, groups, -1))
        return y + part.reshape(y.shape), None

    starts = np.array(list(itertools.product(*map(range, kernel)))) * np.array(rhs_dilation)
    positions = jnp.asarray(starts), w.reshape(math.prod(kernel), cin, cout)
    y, _ = lax.scan(add, jnp.zeros((batch, *out, cout), x.dtype), positions)
    return y
