"""Layer normalization inside of an LSTM: what a caller says of it, and the normalization itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ARRAYS = ("input_scale", "recurrent_scale", "cell_scale", "cell_offset")


class LayerNorm(NamedTuple):
    """Layer normalization inside of `lstm` (Ba, Kiros and Hinton 2016): of x W, of h U and of the memory c.

    N(a) = (a - mean) / sqrt(variance + epsilon), over all 4 * hidden columns of x W and of h U, and over c's hidden
    units. The bias of the gates is the offset of the first two. An array that is None is all ones, `cell_offset` zeros.

    A tree of four arrays to `jax.tree`; epsilon is no leaf of it, so that no optimizer moves it.

    Attributes:
        input_scale: what multiplies N(x W), `[4 * hidden]` in the gates' order.
        recurrent_scale: what multiplies N(h U), `[4 * hidden]`.
        cell_scale: what multiplies N(c) on its way into h, `[hidden]`.
        cell_offset: what is added to it there, `[hidden]`.
        epsilon: keeps the division from zero, positive.

    >>> jax.tree.map(jnp.shape, LayerNorm(cell_scale=jnp.ones(3), epsilon=1e-3))
    LayerNorm(input_scale=None, recurrent_scale=None, cell_scale=(3,), cell_offset=None, epsilon=0.001)
    """

    input_scale: Any = None
    recurrent_scale: Any = None
    cell_scale: Any = None
    cell_offset: Any = None
    epsilon: float = 1e-5


jax.tree_util.register_pytree_with_keys(
    LayerNorm,
    lambda n: ([(jax.tree_util.GetAttrKey(name), getattr(n, name)) for name in _ARRAYS], n.epsilon),
    lambda epsilon, arrays: LayerNorm(*arrays, epsilon=epsilon),
)


def normalize(
    a: jax.Array,
    epsilon: float,
    scale: jax.Array | None = None,
    offset: jax.Array | None = None,
    real: np.ndarray | None = None,
) -> jax.Array:
    """scale * N(a) + offset over the last axis, in the dtype of `a`.

    `real` says which columns count, the others being zeros.
    """
    columns = a.shape[-1] if real is None else int(real.sum())
    centered = a - jnp.sum(a, axis=-1, keepdims=True) / columns
    if real is not None:
        centered = jnp.where(jnp.broadcast_to(real, a.shape), centered, jnp.zeros_like(a))
    variance = jnp.sum(centered * centered, axis=-1, keepdims=True) / columns
    out = centered * lax.rsqrt(variance + epsilon)
    if scale is not None:
        out = out * jnp.broadcast_to(scale.astype(a.dtype), a.shape)
    return out if offset is None else out + jnp.broadcast_to(offset.astype(a.dtype), a.shape)
