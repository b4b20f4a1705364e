"""Attention over a cache of fixed shape.

Keys and values lie as [batch, heads, length, dim]: a step's products then read each head's part from its first byte to
its last, and nothing is transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from llmasos_xla.models.generation.protocol import Cache, Step


def slots(batch: int, length: int, heads: int, dim: int, dtype: Any) -> Cache:
    """Empty keys and values of one layer, "key" and "value"; `heads` are those of keys and values."""
    shape = (batch, heads, length, dim)
    return {name: jnp.zeros(shape, dtype) for name in ("key", "value")}


def part(cache: Cache, number: int) -> Cache:
    """The arrays of layer `number`, which are called "<number>/..." in the whole cache."""
    first = f"{number}/"
    return {name.removeprefix(first): a for name, a in cache.items() if name.startswith(first)}


def with_part(cache: Cache, number: int, new: Cache) -> Cache:
    """The cache with new arrays of layer `number`."""
    return {**cache, **{f"{number}/{name}": a for name, a in new.items()}}


def lie(x: Float[Array, "batch time heads dim"]) -> Float[Array, "batch heads time dim"]:
    """Keys or values as a cache and a memory hold them."""
    return x.transpose(0, 2, 1, 3)


def to_cache(
    query: Float[Array, "batch time heads dim"],
    key: Float[Array, "batch time kv_heads dim"],
    value: Float[Array, "batch time kv_heads dim"],
    cache: Cache,
    step: Step,
    *,
    scale: float | None = None,
    bias: Float[Array, "_ heads time length"] | None = None,
) -> tuple[Float[Array, "batch time heads dim"], Cache]:
    """Puts keys and values into the cache; what the queries see of it: their own step and the real ones before.

    Args:
        query: of these steps.
        key: of these steps.
        value: of these steps.
        cache: "key" and "value" of this layer, as `slots` makes them.
        step: where they stand.
        scale: of the scores; dim ** -0.5 if None.
        bias: added to the scores, for all slots of the cache (T5's relative positions).
    """
    time, length = query.shape[1], cache["key"].shape[2]
    zero = jnp.zeros((), jnp.int32)
    at = (zero, zero, jnp.asarray(step.index, jnp.int32), zero)
    cache = {
        name: lax.dynamic_update_slice(cache[name], lie(a).astype(cache[name].dtype), at)
        for name, a in (("key", key), ("value", value))
    }
    if isinstance(step.index, int) and step.index == 0:
        # A prompt sees itself only: what it has just been asked with is all there is.
        keys, values, length = lie(key), lie(value), time
        bias = None if bias is None else bias[..., :time]
    else:
        keys, values = cache["key"], cache["value"]
    seen = step.seen[:, None, :length]
    if time > 1:
        own = step.index + jnp.arange(time, dtype=jnp.int32)
        causal = jnp.arange(length, dtype=jnp.int32)[None, :] <= own[:, None]
        seen = jnp.broadcast_to(causal[None], (query.shape[0], time, length)) & seen
    # A single step sees all that has been seen: in a ring (`continuous`) what came before it may lie behind it.
    return over(query, keys, values, seen, scale=scale, bias=bias), cache


def over(
    query: Float[Array, "batch time heads dim"],
    keys: Float[Array, "batch kv_heads length dim"],
    values: Float[Array, "batch kv_heads length dim"],
    seen: Bool[Array, "batch time length"] | None = None,
    *,
    scale: float | None = None,
    bias: Float[Array, "_ heads time length"] | None = None,
) -> Float[Array, "batch time heads dim"]:
    """softmax(scale q k^T + bias) v over keys and values as they lie in a cache or a memory; softmax is float32.

    `heads` is a multiple of `kv_heads`. Cross-attention asks a memory so, with keys and values that `lie` has put there
    once. A query that sees nothing (padding) gets the mean of the values.
    """
    batch, time, heads, dim = query.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    dtype = query.dtype
    # Queries that share a head of keys stand side by side, as rows of one product.
    query = query.reshape(batch, time, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, dim)
    keys, values = keys.astype(dtype), values.astype(dtype)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, keys, preferred_element_type=jnp.float32)
    scores = scores * (dim**-0.5 if scale is None else scale)
    scores = scores.reshape(batch, heads, time, length)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias.astype(jnp.float32), scores.shape)
    if seen is not None:
        scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(dtype).reshape(batch, kv_heads, -1, length)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, values)
    mixed = mixed.reshape(batch, kv_heads, -1, time, dim).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, time, heads, dim)
