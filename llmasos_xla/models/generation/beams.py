"""Beam search: the likeliest texts among those that begin with one of the likeliest beginnings."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from llmasos_xla.core import Variables
from llmasos_xla.models.generation.protocol import Cache, Functions, Memory, Step
from llmasos_xla.models.generation.tokens import Adjust, prompt_step

_LOW = -1e9
"""Score of what must not win: finite, so that sums and quotients of it stay numbers."""


class Written(NamedTuple):
    """The best texts of each row, best first."""

    ids: Int[Array, "batch beams new"]
    lengths: Int[Array, "batch beams"]
    """How many ids each has, the one that ended it left out."""
    scores: Float[Array, "batch beams"]
    """Sum of the ids' log probabilities / length ** length_penalty."""


class _State(NamedTuple):
    cache: Cache
    count: Int[Array, ""]
    ids: Int[Array, "batch beams new"]
    scores: Float[Array, "batch beams"]
    best: Written
    full: Bool[Array, "batch"]
    """Whether a row has as many ended texts as it has beams."""
    hopeful: Bool[Array, "batch"]
    """Whether a beam of the row may still do better than its worst ended text."""
    seen: Bool[Array, "rows length"]
    positions: Int[Array, "rows"]


def search(
    functions: Functions,
    adjust: Adjust,
    variables: Variables,
    memory: Memory,
    ids: Int[Array, "batch time"],
    real: Bool[Array, "batch time"],
    ends: Int[Array, "_"],
    until: Int[Array, "batch"],
    length_penalty: Float[Array, ""],
    early_stopping: Bool[Array, ""],
    *,
    beams: int,
    new: int,
    dtype: Any,
) -> Written:
    """The best `beams` continuations of each prompt, of at most `until` ids, by the rules of Hugging Face's `generate`.

    Each step keeps the `beams` likeliest unended beginnings; those among the likeliest that end go to the ended ones,
    scored by length. A row is done when its likeliest beginning, scored at its present length, is worse than its worst
    ended text; with `early_stopping` as soon as it has `beams` of these.

    Args:
        functions: the model's.
        adjust: the model's.
        variables: the model's.
        memory: what its encoder gave.
        ids: prompts, at the right.
        real: False at padding.
        ends: the ids that end a text, at least one; -1 for none.
        until: the most ids of each row's text.
        length_penalty: above 0 favors long texts, below 0 short ones.
        early_stopping: see above.
        beams: how many beginnings are kept.
        new: how many ids there is room for, at least the most of `until`.
        dtype: of the cache.
    """
    batch, time = ids.shape
    length, rows = time + new, batch * beams
    step = prompt_step(ids, real, length)
    # The prompt is read once a row and then copied to its beams.
    logits, cache = functions.decode(variables, step, functions.start(batch, length, dtype), memory)
    cache, memory = (jax.tree.map(lambda a: jnp.repeat(a, beams, axis=0), tree) for tree in (cache, memory))
    empty = Written(
        jnp.zeros((batch, beams, new), jnp.int32),
        jnp.zeros((batch, beams), jnp.int32),
        jnp.full((batch, beams), _LOW, jnp.float32),
    )
    # All beams are the same at first: only the first one counts.
    first = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, _LOW)[None], (batch, beams)).astype(jnp.float32)
    state = _State(
        cache,
        count=jnp.zeros((), jnp.int32),
        ids=empty.ids,
        scores=first,
        best=empty,
        full=jnp.zeros((batch,), bool),
        hopeful=jnp.ones((batch,), bool),
        seen=jnp.repeat(step.seen, beams, axis=0),
        positions=jnp.repeat(step.positions[:, -1], beams, axis=0),
    )

    def written(state: _State, logits: jax.Array) -> _State:
        return _written(state, adjust, logits, ends, until, length_penalty, early_stopping)

    def body(state: _State) -> _State:
        index = time - 1 + state.count
        last = lax.dynamic_slice_in_dim(state.ids, state.count - 1, 1, axis=2).reshape(rows, 1)
        column = jnp.ones((rows, 1), bool)
        seen = lax.dynamic_update_slice_in_dim(state.seen, column, index, axis=1)
        at = Step(last, state.positions[:, None], column, index, seen)
        logits, cache = functions.decode(variables, at, state.cache, memory)
        return written(state._replace(cache=cache, seen=seen), logits)

    def going(state: _State) -> jax.Array:
        open_rows = ~(jnp.all(state.full) & early_stopping)
        return jnp.any((state.count < until) & state.hopeful) & open_rows

    state = written(state, jnp.repeat(logits, beams, axis=0))
    return lax.while_loop(going, body, state).best


def _written(
    state: _State,
    adjust: Adjust,
    logits: jax.Array,
    ends: jax.Array,
    until: jax.Array,
    length_penalty: jax.Array,
    early_stopping: jax.Array,
) -> _State:
    """The state with one more id in each beam."""
    batch, beams, new = state.ids.shape
    vocab, count = logits.shape[-1], state.count + 1
    scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    scores = jnp.maximum(adjust(scores, state.ids.reshape(batch * beams, new), state.count), _LOW)
    scores = scores.reshape(batch, beams, vocab) + state.scores[..., None]
    # Enough candidates that `beams` unended ones are among them, even if each beam ends in every possible way.
    candidates = max(2, 1 + ends.shape[0]) * beams
    scores, places = lax.top_k(scores.reshape(batch, -1), candidates)
    parents, drawn = places // vocab, places % vocab
    ids = jnp.take_along_axis(state.ids, parents[..., None], axis=1)
    ids = lax.dynamic_update_slice_in_dim(ids, drawn[..., None].astype(jnp.int32), state.count, axis=2)
    ended_by_id = jnp.any(drawn[..., None] == ends[None, None], axis=-1)
    ended = ended_by_id | (count >= until)[:, None]

    kept_scores, kept = lax.top_k(jnp.where(ended, scores + _LOW, scores), beams)
    kept_ids = jnp.take_along_axis(ids, kept[..., None], axis=1)
    kept_parents = jnp.take_along_axis(parents, kept, axis=1)

    # Only the first `beams` candidates may end; the others are there so that enough go on.
    may_end = ended & (jnp.arange(candidates) < beams)[None] & state.hopeful[:, None]
    may_end &= ~(state.full & early_stopping)[:, None]
    by_length = scores / count.astype(jnp.float32) ** length_penalty
    lengths = jnp.broadcast_to(count, ended.shape) - ended_by_id.astype(jnp.int32)
    both = jax.tree.map(
        lambda old, more: jnp.concatenate([old, more], axis=1),
        state.best,
        Written(ids, lengths, jnp.where(may_end, by_length, _LOW)),
    )
    best_scores, best = lax.top_k(both.scores, beams)
    best_ids = jnp.take_along_axis(both.ids, best[..., None], axis=1)
    found = Written(best_ids, jnp.take_along_axis(both.lengths, best, axis=1), best_scores)
    full = jnp.all(best_scores > _LOW, axis=1)

    worst = jnp.where(full, best_scores[:, -1], _LOW)
    reachable = kept_scores[:, 0] / count.astype(jnp.float32) ** length_penalty
    # Where all candidates have ended none is left to go on with.
    hopeful = state.hopeful & (reachable > worst) & (kept_scores[:, 0] > _LOW / 2)
    rows = (kept_parents + beams * jnp.arange(batch)[:, None]).reshape(-1)
    return state._replace(
        cache=jax.tree.map(lambda a: a[rows], state.cache),
        count=count,
        ids=kept_ids,
        scores=kept_scores,
        best=found,
        full=full,
        hopeful=hopeful,
        positions=state.positions + 1,
    )
