"""Greedy decoding and sampling: the prompt in one step, then token after token inside one loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from llmasos_xla.core import Variables
from llmasos_xla.models.generation.protocol import Cache, Functions, Memory, Step
from llmasos_xla.models.generation.sampling import Sampling, draw

Adjust = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`Generative.adjust`"""


class State(NamedTuple):
    """Between two steps."""

    cache: Cache
    last: Int[Array, "batch"]
    """The id written last, which the model has not read yet."""
    ids: Int[Array, "batch new"]
    """What has been written, from slot 0."""
    count: Int[Array, ""]
    """How many have been written in each row, those after its end included."""
    lengths: Int[Array, "batch"]
    """How many of them belong to the row: up to the id that ended it, without it."""
    done: Bool[Array, "batch"]
    seen: Bool[Array, "batch length"]
    positions: Int[Array, "batch"]
    """Of `last`."""
    index: Int[Array, ""]
    """Slot of the cache that `last` will take."""


def prompt_step(ids: Int[Array, "batch time"], real: Bool[Array, "batch time"], length: int) -> Step:
    """The step that reads a prompt which lies at the right of `ids`, into a cache of `length` slots."""
    positions = jnp.maximum(jnp.cumsum(real.astype(jnp.int32), axis=1) - 1, 0)
    seen = jnp.pad(real, ((0, 0), (0, length - real.shape[1])))
    return Step(jnp.where(real, ids, 0), positions, real, 0, seen)


def prefill(
    functions: Functions,
    adjust: Adjust,
    variables: Variables,
    memory: Memory,
    ids: Int[Array, "batch time"],
    real: Bool[Array, "batch time"],
    keys: Key[Array, "batch"],
    sampling: Sampling,
    ends: Int[Array, "_"],
    *,
    new: int,
    dtype: Any,
) -> State:
    """Reads the prompt and writes the first id; `new` is how many there is room for."""
    batch, time = ids.shape
    length = time + new
    step = prompt_step(ids, real, length)
    logits, cache = functions.decode(variables, step, functions.start(batch, length, dtype), memory)
    state = State(
        cache,
        last=jnp.zeros((batch,), jnp.int32),
        ids=jnp.zeros((batch, new), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        lengths=jnp.zeros((batch,), jnp.int32),
        done=jnp.zeros((batch,), bool),
        seen=step.seen,
        positions=step.positions[:, -1],
        index=jnp.asarray(time - 1, jnp.int32),
    )
    return _written(state, adjust, logits, keys, sampling, ends)


def advance(
    functions: Functions,
    adjust: Adjust,
    variables: Variables,
    memory: Memory,
    state: State,
    keys: Key[Array, "batch"],
    sampling: Sampling,
    ends: Int[Array, "_"],
    until: Int[Array, ""],
) -> State:
    """Writes until `until` ids stand in each row or all rows are done."""

    def body(state: State) -> State:
        seen = lax.dynamic_update_slice_in_dim(state.seen, jnp.ones_like(state.done)[:, None], state.index, axis=1)
        column = state.done[:, None]
        step = Step(state.last[:, None], state.positions[:, None], jnp.ones_like(column), state.index, seen)
        logits, cache = functions.decode(variables, step, state.cache, memory)
        return _written(state._replace(cache=cache, seen=seen), adjust, logits, keys, sampling, ends)

    return lax.while_loop(lambda state: (state.count < until) & ~jnp.all(state.done), body, state)


def _written(
    state: State, adjust: Adjust, logits: jax.Array, keys: jax.Array, sampling: Sampling, ends: jax.Array
) -> State:
    """The state with one more id, drawn of the logits that follow `state.last`."""
    logits = adjust(logits, state.ids, state.count)
    drawn = draw(logits, keys, state.count, sampling)
    ended = jnp.any(drawn[:, None] == ends[None, :], axis=1)
    done = state.done | ended
    # What stands behind the end of a row means nothing; 0 is a valid id to go on with.
    last = jnp.where(done, 0, drawn)
    return state._replace(
        last=last,
        ids=lax.dynamic_update_slice_in_dim(state.ids, last[:, None], state.count, axis=1),
        count=state.count + 1,
        lengths=state.lengths + (~done).astype(jnp.int32),
        done=done,
        positions=state.positions + 1,
        index=state.index + 1,
    )
