"""Batch normalization with the statistics of the batch: checks, documentation, dispatch."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.conv.geometry import as_array
from llmasos_xla.kernels.norm import choice
from llmasos_xla.kernels.norm.xla import statistics_dtype


def _candidates(
    x: Any,
    scale: Any,
    offset: Any,
    *,
    residual: Any = None,
    activation: str | None = None,
    epsilon: float = 1e-3,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    x = as_array(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"batch_norm: x is {x.dtype}; cast it to float32")
    if x.ndim == 0:
        raise ValueError("batch_norm: x must be [..., channels], got a scalar")
    if not isinstance(epsilon, numbers.Real) or not 0 < epsilon < math.inf:
        raise ValueError(f"batch_norm: epsilon={epsilon!r} must be a positive number")
    scale, offset = (_per_channel(x, name, a) for name, a in (("scale", scale), ("offset", offset)))
    if residual is not None:
        residual = as_array(residual)
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"batch_norm: residual is {residual.dtype} {tuple(residual.shape)}; it is added to x and must be "
                f"{x.dtype} {tuple(x.shape)}"
            )
    activation_named(activation, "batch_norm")
    after = choice.After(residual, activation.lower() if activation else None)
    return choice.candidates(x, scale, offset, after, float(epsilon), implementation is not None)


@_dispatch.op(_candidates)
def batch_norm(
    x: Any,
    scale: Any,
    offset: Any,
    *,
    residual: Any = None,
    activation: str | None = None,
    epsilon: float = 1e-3,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes each channel by the batch's mean and variance (Ioffe and Szegedy 2015), as in training.

    `y = (x - mean) / sqrt(variance + epsilon) * scale + offset`, with mean and variance over all axes but the last; the
    variance is the biased one, a mean of squares. All three results are differentiable. What follows a normalization
    in a residual network, the sum with the shortcut and the ReLU, can be done in the same pass over memory:
    `y = activation(... + residual)`.

    Args:
        x: `[..., channels]`, floating point. Statistics are taken in float32 where it is narrower.
        scale: `[channels]`, or None for 1.
        offset: `[channels]`, or None for 0.
        residual: of x's shape and dtype, added before the activation; None for nothing.
        activation: a name in `kernels.ACTIVATIONS`.
        epsilon: what is added to the variance; positive.
        implementation: None chooses; "onednn" or "xla" must run.

    Returns:
        y in x's shape and dtype; mean and variance, `[channels]`, in float32 or x's dtype if that is wider.

    Raises:
        ValueError: if shapes disagree, epsilon is not positive, or a name is unknown.
        TypeError: if x, scale or offset is not floating point.

    >>> import jax.numpy as jnp
    >>> y, mean, variance = batch_norm(jnp.array([[1.0], [3.0]]), None, jnp.array([5.0]), epsilon=1e-12)
    >>> y[:, 0].tolist(), mean.tolist(), variance.tolist()
    ([4.0, 6.0], [2.0], [1.0])
    """
    candidates = _candidates(
        x, scale, offset, residual=residual, activation=activation, epsilon=epsilon, implementation=implementation
    )
    return _dispatch.run(batch_norm, candidates, implementation)


def _per_channel(x: Any, name: str, given: Any) -> Any:
    """A scale or an offset in the dtype of the statistics, checked."""
    if given is None:
        return None
    given = as_array(given)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"batch_norm: {name} is {given.dtype}; cast it to float32")
    if given.shape != x.shape[-1:]:
        raise ValueError(
            f"batch_norm: {name} has shape {tuple(given.shape)}, x [..., channels] {tuple(x.shape)} "
            f"wants {tuple(x.shape[-1:])}"
        )
    high = statistics_dtype(x.dtype)
    return jax.ShapeDtypeStruct(given.shape, high) if isinstance(given, jax.ShapeDtypeStruct) else given.astype(high)
