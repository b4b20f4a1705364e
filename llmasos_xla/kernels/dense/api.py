"""The dense layer: documentation, dispatch."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._rows import Rows
from llmasos_xla.kernels.dense import choice
from llmasos_xla.kernels.dense.problem import problem


def _axes(arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    return (0, 0) if np.ndim(arguments["x"]) > 1 else None


def _candidates(
    x: Any,
    w: Any,
    bias: Any = None,
    activation: str | None = None,
    *,
    scale: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    p = problem(x, w, bias, activation, scale, transpose_kernel, precision, preferred_element_type)
    return choice.candidates(p, implementation is not None)


@_dispatch.op(_candidates, Rows(("x",), _axes))
def dense(
    x: Any,
    w: Any,
    bias: Any = None,
    activation: str | None = None,
    *,
    scale: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    implementation: str | None = None,
) -> jax.Array:
    """A dense layer: `activation(x @ w + bias)` over the last axis.

    In bfloat16 and float16 the product's sums are float32. Where they are rounded depends on what runs
    (`kernels.explain` tells): oneDNN adds the bias and applies most activations to the sums and rounds the result once;
    XLA rounds the product, then the sum with the bias, then the activation. With `preferred_element_type=jnp.float32`
    nothing is rounded on either path, and the bias may be float32 too.

    Args:
        x: `[..., cin]`.
        w: `[cin, cout]`, of x's dtype.
        bias: `[cout]`, of x's dtype or the result's.
        activation: a name in `kernels.ACTIVATIONS`.
        scale: `[cout]` or a scalar, for int8 operands: the sums are int32, the result is float32 and is `scale` times
            them before bias and activation. Quantized operands of scales s and t have `scale = s * t`.
        transpose_kernel: if True w is `[cout, cin]`, as of an embedding table that is the output layer too. For a
            single row on CPU, `x @ w.T` copies the table first; this does not.
        precision: as in lax.
        preferred_element_type: dtype of the sums and of the result; integers narrower than 32 bits need one.
        implementation: None chooses; "onednn" or "xla" must run.

    Raises:
        ValueError: if shapes disagree or a name is unknown.
        TypeError: if dtypes differ or narrow integers would overflow.

    >>> import jax.numpy as jnp
    >>> dense(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.full(4, -5.0), "relu").tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    candidates = _candidates(
        x, w, bias, activation, scale=scale, transpose_kernel=transpose_kernel, precision=precision,
        preferred_element_type=preferred_element_type, implementation=implementation,
    )  # fmt: skip
    return _dispatch.run(dense, candidates, implementation)
