"""From logits to the next id."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """How ids are drawn, as arrays: another temperature is not another program. One for all rows, or one a row."""

    temperature: Float[Array, "#batch"] | Float[Array, ""]
    """Logits are divided by it; 0 takes the most probable id."""
    top_k: Int[Array, "#batch"] | Int[Array, ""]
    """How many of the most probable ids are drawn from; 0 for all."""
    top_p: Float[Array, "#batch"] | Float[Array, ""]
    """The most probable ids that together have at least this probability are drawn from; 1 for all."""

    @classmethod
    def of(cls, temperature: float, top_k: int | None, top_p: float | None) -> "Sampling":
        """From plain numbers; None is no bound."""
        return cls(
            jnp.asarray(temperature, jnp.float32),
            jnp.asarray(top_k or 0, jnp.int32),
            jnp.asarray(1.0 if top_p is None else top_p, jnp.float32),
        )


def draw(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, "batch"],
    count: Int[Array, "batch"] | Int[Array, ""],
    sampling: Sampling,
) -> Int[Array, "batch"]:
    """The id number `count` of each row; a row's draw depends on that, its own key and its own logits alone.

    Bounds hold in the order temperature, top-k, top-p (Holtzman et al. 2020), as in Hugging Face's `generate`. Ids that
    tie with the last one kept are kept.
    """
    logits = logits.astype(jnp.float32)
    batch, vocab = logits.shape
    temperature, k, p = (jnp.broadcast_to(a, (batch,)) for a in sampling)

    def greedy() -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def sampled() -> jax.Array:
        warm = logits / jnp.maximum(temperature, 1e-6)[:, None]
        warm = lax.cond(jnp.any(k > 0), lambda: top_k(warm, jnp.where(k > 0, k, vocab)), lambda: warm)
        # A bound of 1 is none, however the probabilities are rounded.
        warm = lax.cond(jnp.any(p < 1), lambda: top_p(warm, jnp.where(p < 1, p, jnp.inf)), lambda: warm)
        steps = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(count, (batch,)))
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab,), jnp.float32))(steps)
        return jnp.where(temperature > 0, jnp.argmax(warm + noise, axis=-1).astype(jnp.int32), greedy())

    return lax.cond(jnp.any(temperature > 0), sampled, greedy)


def top_k(logits: Float[Array, "batch vocab"], k: Int[Array, "batch"] | Int[Array, ""]) -> Float[Array, "batch vocab"]:
    """-inf in the place of all but the k largest of each row.

    >>> top_k(jnp.array([[3.0, 1.0, 2.0]]), jnp.array(2)).tolist()
    [[3.0, -inf, 2.0]]
    """
    least = _largest(_ordered(logits), lambda kept: jnp.sum(kept, axis=-1) >= k)
    return jnp.where(_ordered(logits) >= least, logits, -jnp.inf)


def top_p(
    logits: Float[Array, "batch vocab"], p: Float[Array, "batch"] | Float[Array, ""]
) -> Float[Array, "batch vocab"]:
    """-inf in the place of all but the most probable ids of each row, as many as it takes for probability p.

    >>> top_p(jnp.log(jnp.array([[0.5, 0.2, 0.3]])), jnp.array(0.6)).tolist()[0][1]
    -inf
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    def enough(kept: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1) >= p

    least = _largest(_ordered(logits), enough)
    return jnp.where(_ordered(logits) >= least, logits, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """float32 as int32 in the same order."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _largest(values: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest int32 t of each row such that `enough(values >= t)`, [batch, 1]; the smallest int32 if there is none.

    Found bit by bit, 32 passes over the row: a sort of a vocabulary takes several times as long.
    """
    rows = values.shape[0]

    def bit(i: jax.Array, least: jax.Array) -> jax.Array:
        # Counted from the smallest int32, so that each bit adds.
        more = least + lax.shift_left(jnp.int32(1), jnp.int32(31) - i)
        return jnp.where(enough(values >= more[:, None]), more, least)

    smallest = jnp.full((rows,), jnp.iinfo(jnp.int32).min, jnp.int32)
    return lax.fori_loop(0, 32, bit, smallest)[:, None]
