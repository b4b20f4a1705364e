"""Multi-scale deformable attention (Zhu et al. 2020): each query reads a few points of each map, between pixels."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def deformable_attention(
    value: Float[Array, "batch positions heads dim"],
    sizes: Sequence[tuple[int, int]],
    points: Float[Array, "batch queries heads maps points 2"],
    weights: Float[Array, "batch queries heads maps points"],
) -> Float[Array, "batch queries heads dim"]:
    """sum over maps and points of weight x the map's value at the point, bilinear between the centers of its pixels.

    A map covers [0, 1] x [0, 1]; pixel i of n has its center at (i + 0.5) / n. Outside of the map values are 0 (what
    PyTorch's grid_sample calls align_corners=False with padding by zeros).

    Args:
        value: the maps' pixels, row by row, one map behind the other.
        sizes: (height, width) of each map.
        points: (x, y).
        weights: of the points; they need not add up to 1.

    Raises ValueError if the sizes do not add up to the positions.

    >>> pixels = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    >>> middle = jnp.full((1, 1, 1, 1, 1, 2), 0.5)
    >>> float(deformable_attention(pixels, [(2, 2)], middle, jnp.ones((1, 1, 1, 1, 1)))[0, 0, 0, 0])
    2.5
    """
    batch, positions, heads, dim = value.shape
    if sum(height * width for height, width in sizes) != positions or len(sizes) != points.shape[3]:
        raise ValueError(
            f"deformable_attention: the maps {list(sizes)} do not fit {positions} positions and points on "
            f"{points.shape[3]} maps"
        )
    indices, shares, start = [], [], 0
    for level, (height, width) in enumerate(sizes):
        x = points[:, :, :, level, :, 0] * width - 0.5
        y = points[:, :, :, level, :, 1] * height - 0.5
        left, top = jnp.floor(x), jnp.floor(y)
        # These carry the gradient to the points; floor has none.
        beyond, below = x - left, y - top
        for row, down in ((top, 1.0 - below), (top + 1.0, below)):
            for column, right in ((left, 1.0 - beyond), (left + 1.0, beyond)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                share = right * down
                shares.append(jnp.where(inside, share, 0.0) * weights[:, :, :, level])
                at = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
                indices.append(start + at.astype(jnp.int32))
        start += height * width
    # Heads ahead of queries: one gather of whole rows of `dim`, whose gradient is one sum into rows.
    index = jnp.concatenate(indices, axis=-1).transpose(0, 2, 1, 3)
    share = jnp.concatenate(shares, axis=-1).transpose(0, 2, 1, 3).astype(value.dtype)
    queries, read = index.shape[2:]
    rows = jnp.take_along_axis(
        value.transpose(0, 2, 1, 3), index.reshape(batch, heads, queries * read, 1), axis=2, mode="clip"
    )
    return jnp.einsum("bhqkd,bhqk->bqhd", rows.reshape(batch, heads, queries, read, dim), share)
