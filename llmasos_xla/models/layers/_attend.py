"""Self-attention over the devices that there are."""

import jax

from llmasos_xla.sharding import placement
from llmasos_xla.sharding.ring import ring_attention, shared_out


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, causal: bool) -> jax.Array:
    """softmax(q k^T / sqrt(dim)) v: q [batch, time, heads, dim], k and v [batch, time, kv_heads, dim] -> like q.

    `heads` is a multiple of `kv_heads`. Keys at False of the mask [batch, time] are not seen; softmax is float32. Where
    time is split over devices this is ring attention.
    """
    here = placement.current()
    if here is not None and here.spec.seq > 1:
        return ring_attention(query, key, value, mesh=here.mesh, causal=causal, mask=mask, batch_axes=here.batch_axes)
    heads, split = query.shape[2], 1 if here is None else here.spec.tensor
    if heads % split == 0:
        # Otherwise XLA would put whole queries together on each device, to meet keys that it cannot split.
        key, value = shared_out(key, value, heads, split)
    seen = None if mask is None else mask[:, None, None]
    # Its own arithmetic mixes bfloat16 and float32, which a user's strict mode would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, mask=seen, is_causal=causal)
