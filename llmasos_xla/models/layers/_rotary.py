"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "batch time heads dim"],
    positions: Int[Array, "time"] | Int[Array, "batch time"],
    base: float = 10000.0,
) -> Float[Array, "batch time heads dim"]:
    """Turns each pair of features by an angle that grows with the position (Su et al. 2021).

    The pair (x_i, x_{i + dim / 2}) turns by position * base^(-2 i / dim), so that the product of a query and a key
    depends on how far they are apart, and not on where. Halves are paired, as in Hugging Face's Llama; weights of
    sources that pair neighbors (2 i, 2 i + 1) are reordered once when they are read.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> [round(float(value), 4) for value in rotate(x, jnp.array([1])).ravel()]
    [0.5403, 0.8415]
    """
    half = x.shape[-1] // 2
    # float32 here: bf16 cannot tell position 256 from 257.
    frequencies = jnp.asarray(base, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / half)
    positions = positions if positions.ndim == 2 else positions[None]
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
