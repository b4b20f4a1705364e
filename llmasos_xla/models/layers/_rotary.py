"""Rotary position embedding."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "batch time heads dim"],
    positions: Int[Array, "time"] | Int[Array, "batch time"],
    base: float = 10000.0,
    scaling: tuple[float, ...] | None = None,
) -> Float[Array, "batch time heads dim"]:
    """Turns each pair of features by an angle that grows with the position (Su et al. 2021).

    The pair (x_i, x_{i + dim / 2}) turns by position * base^(-2 i / dim), so that the product of a query and a key
    depends on how far they are apart, and not on where. Halves are paired, as in Hugging Face's Llama; weights of
    sources that pair neighbors (2 i, 2 i + 1) are reordered once when they are read. `scaling` is that of
    `frequencies`.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> [round(float(value), 4) for value in rotate(x, jnp.array([1])).ravel()]
    [0.5403, 0.8415]
    """
    half = x.shape[-1] // 2
    # float32 here: bf16 cannot tell position 256 from 257.
    turns = jnp.asarray(frequencies(half, base, scaling), jnp.float32)
    positions = positions if positions.ndim == 2 else positions[None]
    angles = positions.astype(jnp.float32)[..., None] * turns[None, None]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def frequencies(half: int, base: float, scaling: tuple[float, ...] | None = None) -> np.ndarray:
    """By which angle each pair of features turns from a step to the next, [half] in float64.

    Scaling stretches them over more steps than a model was trained on. One number divides them all. Four, (factor,
    low, high, context), are Llama 3.1's: pairs that turn fewer than `low` times within `context` steps are divided by
    the factor, those that turn more than `high` times are kept, and between the two it goes from one to the other.

    >>> frequencies(2, 100.0, (8.0,)).tolist()
    [0.125, 0.0125]
    """
    turns = base ** (-np.arange(half, dtype=np.float64) / half)
    if scaling is None:
        return turns
    if len(scaling) == 1:
        return turns / scaling[0]
    factor, low, high, context = scaling
    kept = np.clip((context * turns / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return turns * (kept + (1 - kept) / factor)
