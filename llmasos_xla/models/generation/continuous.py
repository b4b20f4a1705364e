"""Continuous batching: rows come into one decode step and leave it between steps (Yu et al. 2022, "Orca").

All rows write into the same slot of their caches, so that a step stays one program with a scalar for its place. The
cache is a ring: after its last slot comes its first. A new row is read alone, into a ring that is as long as its
prompt, and then laid into the rows' ring so that its newest slot is the one that the others wrote last. A row that
holds no more ids than the ring has slots never meets its own beginning.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from llmasos_xla.core import Variables
from llmasos_xla.models.generation.protocol import Cache, Functions, Step
from llmasos_xla.models.generation.sampling import Sampling, draw
from llmasos_xla.models.generation.tokens import prompt_step


class Wanted(NamedTuple):
    """What each row asks for."""

    room: Int[Array, "rows"]
    """How many ids it may write."""
    ends: Int[Array, "rows ends"]
    """The ids that end it; -1 is none."""
    keys: Key[Array, "rows"]
    sampling: Sampling
    """[rows] each."""


class Rows(NamedTuple):
    """Rows between two steps."""

    cache: Cache
    index: Int[Array, ""]
    """The slot of the ring that the next step takes, in all rows."""
    seen: Bool[Array, "rows length"]
    """Which slots hold steps of the row."""
    last: Int[Array, "rows"]
    """The id written last, which the model has not read yet."""
    positions: Int[Array, "rows"]
    """Of `last`."""
    count: Int[Array, "rows"]
    """Ids written."""
    live: Bool[Array, "rows"]
    """Whether the row writes on."""
    stopped: Bool[Array, "rows"]
    """Whether one of its `ends` came, which is not among the ids written."""
    wanted: Wanted

    @property
    def length(self) -> int:
        """Slots of the ring."""
        return self.seen.shape[1]


def length_axes(functions: Functions) -> dict[str, int]:
    """Which axis of an array of the cache is the ring's; those without one are states, which have no length."""
    some, more = (jax.eval_shape(lambda n=n: functions.start(1, n, jnp.float32)) for n in (8, 16))
    axes = {}
    for name, a in some.items():
        differing = [i for i, (m, n) in enumerate(zip(a.shape, more[name].shape, strict=True)) if m != n]
        if differing:
            axes[name] = differing[0]
    return axes


def empty(functions: Functions, rows: int, length: int, dtype: Any, ends: int) -> Rows:
    """Rows that nobody writes in; a row has room for so many `ends`."""

    def zeros(dtype: Any) -> jax.Array:
        return jnp.zeros((rows,), dtype)

    sampling = Sampling(zeros(jnp.float32), zeros(jnp.int32), jnp.ones((rows,), jnp.float32))
    keys = jnp.broadcast_to(jax.random.key(0), (rows,))
    wanted = Wanted(zeros(jnp.int32), jnp.full((rows, ends), -1, jnp.int32), keys, sampling)
    return Rows(
        functions.start(rows, length, dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((rows, length), bool),
        zeros(jnp.int32),
        zeros(jnp.int32),
        zeros(jnp.int32),
        zeros(bool),
        zeros(bool),
        wanted,
    )


def read(
    functions: Functions,
    variables: Variables,
    ids: Int[Array, "1 time"],
    real: Bool[Array, "1 time"],
    wanted: Wanted,
    *,
    dtype: Any,
) -> Rows:
    """One row in a ring as long as its prompt, which lies at the right of `ids`, with its first id written."""
    step = prompt_step(ids, real, ids.shape[1])
    logits, cache = functions.decode(variables, step, functions.start(1, ids.shape[1], dtype), {})
    found = empty(functions, 1, ids.shape[1], dtype, wanted.ends.shape[1])
    found = found._replace(cache=cache, seen=real, positions=step.positions[:, -1], wanted=wanted)
    return _written(found._replace(live=jnp.ones((1,), bool)), logits)


def join(functions: Functions, rows: Rows, new: Rows, at: Int[Array, ""]) -> Rows:
    """The rows with the one that was read as number `at`; its ring may be as long as theirs, or shorter."""
    # Behind its own slots, then turned, so that the newest one is ahead of the slot that comes next.
    turn = rows.index - new.length

    def laid(old: jax.Array, a: jax.Array, axis: int | None) -> jax.Array:
        if axis is not None:
            more = [(0, old.shape[i] - n if i == axis else 0) for i, n in enumerate(a.shape)]
            a = jnp.roll(jnp.pad(a, more), turn, axis)
        return lax.dynamic_update_slice_in_dim(old, a.astype(old.dtype), at, axis=0)

    axes = length_axes(functions)
    cache = {name: laid(a, new.cache[name], axes.get(name)) for name, a in rows.cache.items()}
    seen = laid(rows.seen, new.seen, 1)
    plain = {name: getattr(new, name) for name in ("last", "positions", "count", "live", "stopped", "wanted")}
    plain = {name: jax.tree.map(lambda a, b: a.at[at].set(b[0]), getattr(rows, name), b) for name, b in plain.items()}
    return rows._replace(cache=cache, seen=seen, **plain)


def advance(
    functions: Functions,
    variables: Variables,
    rows: Rows,
    keep: Bool[Array, "rows"],
    steps: Int[Array, ""],
    *,
    most: int,
) -> tuple[Rows, Int[Array, "rows most"]]:
    """Up to `steps` ids more in each row, `most` at most; -1 where a row has written none.

    Rows that are not to be kept write no more. It ends when no row is live.
    """

    def body(state: tuple[Rows, jax.Array, jax.Array]) -> tuple[Rows, jax.Array, jax.Array]:
        rows, ids, step = state
        seen = lax.dynamic_update_slice_in_dim(rows.seen, rows.live[:, None], rows.index, axis=1)
        read = Step(rows.last[:, None], rows.positions[:, None], rows.live[:, None], rows.index, seen)
        logits, cache = functions.decode(variables, read, rows.cache, {})
        new = _written(rows._replace(cache=cache, seen=seen, index=(rows.index + 1) % rows.length), logits)
        wrote = jnp.where(new.count > rows.count, new.last, -1)
        return new, lax.dynamic_update_slice_in_dim(ids, wrote[:, None], step, axis=1), step + 1

    def going(state: tuple[Rows, jax.Array, jax.Array]) -> jax.Array:
        return (state[2] < jnp.minimum(steps, most)) & jnp.any(state[0].live)

    rows = rows._replace(live=rows.live & keep)
    nothing = jnp.full((rows.live.shape[0], most), -1, jnp.int32)
    rows, ids, _ = lax.while_loop(going, body, (rows, nothing, jnp.zeros((), jnp.int32)))
    return rows, ids


def rearranged(functions: Functions, rows: Rows, of: Int[Array, "new"], *, length: int) -> Rows:
    """The rows number `of`, -1 for one that nobody writes in, in a ring of another length.

    Of a shorter one the newest slots stay: rows must hold no more ids than that.
    """
    there, of = of >= 0, jnp.maximum(of, 0)

    def turned(a: jax.Array, axis: int | None) -> jax.Array:
        a = a[of]
        if axis is None:
            return a
        a = jnp.roll(a, -rows.index, axis)
        if length < a.shape[axis]:
            return lax.slice_in_dim(a, a.shape[axis] - length, a.shape[axis], axis=axis)
        return jnp.pad(a, [(0, length - n if i == axis else 0) for i, n in enumerate(a.shape)])

    axes = length_axes(functions)
    cache = {name: turned(a, axes.get(name)) for name, a in rows.cache.items()}
    names = ("last", "positions", "count", "stopped", "wanted")
    plain = {name: jax.tree.map(lambda a: a[of], getattr(rows, name)) for name in names}
    index = jnp.asarray(min(rows.length, length) % length, jnp.int32)
    seen = turned(rows.seen, 1) & there[:, None]
    return Rows(cache=cache, index=index, seen=seen, live=rows.live[of] & there, **plain)


def _written(rows: Rows, logits: jax.Array) -> Rows:
    """The live rows with one more id each, drawn of the logits that follow `last`."""
    wanted = rows.wanted
    drawn = draw(logits, wanted.keys, rows.count, wanted.sampling)
    ended = rows.live & jnp.any(drawn[:, None] == wanted.ends, axis=1)
    wrote = rows.live & ~ended
    count = rows.count + wrote.astype(jnp.int32)
    return rows._replace(
        last=jnp.where(wrote, drawn, 0),
        positions=rows.positions + rows.live.astype(jnp.int32),
        count=count,
        live=wrote & (count < wanted.room),
        stopped=rows.stopped | ended,
    )
