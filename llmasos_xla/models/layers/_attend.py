"""Attention over the devices that there are."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmasos_xla.sharding import placement
from llmasos_xla.sharding.ring import ring_attention, shared_out


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
    causal: bool,
    scale: float | None = None,
    bias: jax.Array | None = None,
    dropped: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """softmax(scale q k^T + bias) v, softmax in float32.

    Where time is split over devices this is ring attention, which has neither bias nor dropout.

    Args:
        query: [batch, time, heads, dim].
        key: [batch, keys, kv_heads, dim]; `heads` is a multiple of `kv_heads`.
        value: as `key`.
        mask: [batch, keys]; keys at False are not seen.
        causal: whether a step sees itself and earlier ones only.
        scale: of the scores; dim ** -0.5 if None.
        bias: added to the scores, [1 or batch, heads, time, keys].
        dropped: what happens to the attention weights in training.
    """
    here = placement.current()
    if here is not None and here.spec.seq > 1:
        if bias is not None or dropped is not None or scale is not None or query.shape[1] != key.shape[1]:
            raise ValueError(
                f"attention: with time over seq={here.spec.seq} devices there is no bias, no scale of one's own, no "
                "dropout of attention weights and no attention to another row; shard by data or tensor"
            )
        return ring_attention(query, key, value, mesh=here.mesh, causal=causal, mask=mask, batch_axes=here.batch_axes)
    heads, split = query.shape[2], 1 if here is None else here.spec.tensor
    if heads % split == 0:
        # Otherwise XLA would put whole queries together on each device, to meet keys that it cannot split.
        key, value = shared_out(key, value, heads, split)
    seen = None if mask is None else mask[:, None, None]
    # Its own arithmetic mixes bfloat16 and float32, which a user's strict mode would refuse.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        if dropped is None:
            return jax.nn.dot_product_attention(query, key, value, bias, seen, scale=scale, is_causal=causal)
        return _dropping(query, key, value, seen, causal, scale, bias, dropped)


def _dropping(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array | None,
    causal: bool,
    scale: float | None,
    bias: jax.Array | None,
    dropped: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The same with the weights at hand, which no fused attention shows."""
    groups = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(a, groups, axis=2) if groups > 1 else a for a in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = scores if bias is None else scores + bias.astype(scores.dtype)
    allowed = jnp.ones((1, 1, *scores.shape[2:]), bool)
    allowed = jnp.tril(allowed) if causal else allowed
    allowed = allowed if seen is None else allowed & seen
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(scores.dtype).min), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", dropped(weights.astype(value.dtype)), value)
