"""Pipelines: the layers of a model in stages on different devices, micro-batches passing through them.

The schedule is 1F1B with a flush (Narayanan et al. 2019, "PipeDream"; 2021, "Efficient Large-Scale Language Model
Training on GPU Clusters"): every stage alternates one forward with one backward, so that the micro-batches under way
are as many as the stages allow, however many make the batch. All devices run one program, tick by tick: at tick t
stage s of S runs the forward of micro-batch t - s, then the backward of micro-batch t - 2 (S - 1) + s, if they exist.

    tick       0   1   2     3     4     5   6   7
    stage 0    f0  f1  f2    f3    b0 .. b1  b2  b3       (S = 3, M = 4)
    stage 1        f0  f1    f2b0  f3b1  b2  b3
    stage 2            f0b0  f1b1  f2b2  f3b3
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from llmasos_xla.sharding.pipeline.check import check_arrays, check_batch
from llmasos_xla.sharding.pipeline.flat import AXIS, Arrangement, Held, Part, constrained
from llmasos_xla.sharding.pipeline.stages import Plan, Sums, batch_rows, cut, microbatch
from llmasos_xla.sharding.pipeline.waiting import waits_for_all as waits_for_all


def bubble(stages: int, microbatches: int) -> float:
    """The share of the time that a stage waits: (S - 1) / (M + S - 1), all stages being equally long.

    >>> bubble(4, 1), bubble(4, 9), bubble(1, 3)
    (0.75, 0.25, 0.0)
    """
    return (stages - 1) / (microbatches + stages - 1)


def default_microbatches(has_batch_statistics: bool, batch: int, pipe: int, shards: int = 1) -> int:
    """How many micro-batches a batch is cut into unless told.

    One for a model that takes statistics over the batch, as they would be those of a micro-batch; otherwise the largest
    divisor of the rows that each of `shards` data shards has, up to four times the stages (a bubble of a fifth).

    >>> default_microbatches(False, 128, pipe=4), default_microbatches(False, 36, pipe=2, shards=2)
    (16, 6)
    >>> default_microbatches(True, 128, pipe=4)
    1
    """
    if has_batch_statistics:
        return 1
    rows = max(batch // shards, 1)
    return max(m for m in range(1, min(4 * pipe, rows) + 1) if rows % m == 0)


def one_f_one_b(
    stages: Sequence[Callable[..., Any]],
    owned: Sequence[Sequence[Part]],
    stacked: Sequence[str],
    finish: Callable[[Any, Any], tuple[jax.Array, Any]],
    mesh: Mesh,
    microbatches: int,
    *,
    kinds: Sequence[Hashable] | None = None,
    draws: Sequence[int] | None = None,
    specs: Mapping[str, P] | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp", "expert"),
    weight_axes: Sequence[str] = ("fsdp",),
    uniform: bool = False,
) -> Callable[..., tuple[tuple[jax.Array, tuple[Any, dict[str, jax.Array]]], dict[str, jax.Array]]]:
    """The loss of a batch and its gradient, stage by stage over the mesh axis "pipe".

    The result is `fn(params, state, batch, key) -> ((loss_sum, (sums, new_state)), gradients)`, to be jitted. `batch`
    holds "x", the input of stage 0; its arrays with a leading axis of rows are cut into micro-batches, micro-batch m
    being the rows m, m + M, ..., so that the rows of a data shard stay where they are; other arrays go to every
    micro-batch. With one micro-batch `key` is what a stage gets, with more it is `fold_in(key, m)`.

    Losses and sums are added up over micro-batches; gradients are those of `loss_sum`, added up in float32. State is
    updated by one micro-batch after the other. A stage's backward computes its forward again from the stage's input,
    so that of a micro-batch under way only inputs are kept.

    Args:
        stages: `stages[s](params, state, carry, key) -> (carry, new_state)`. Stage 0 is given `batch["x"]`, the others
            the carry of the one before: any tree of arrays whose first axis is the micro-batch.
        owned: for each stage the arrays (parameters and state) that it uses, or `Rows` of them. They are packed into a
            buffer that lies on the stage's devices alone. A parameter that several stages name gets the sum of their
            gradients.
        stacked: arrays [layers, ...] whose rows are split evenly over the stages, without being copied.
        finish: `finish(carry, batch) -> (sum of losses, tree of sums)` of a micro-batch, on the last stage.
        mesh: has the axis "pipe", of as many devices as there are stages; its other axes are left to XLA.
        microbatches: how many micro-batches, M; a divisor of the batch.
        kinds: what is equal for stages that compute the same of arrays in the same order; these share one branch of
            the program and are called by the first one's names. By default that holds for stages of one function.
        draws: a number for each stage, which is then given the pair (key, number) for its key: how many random keys the
            stages before it have drawn.
        specs: how arrays lie over the mesh, by name; what is not named is left to XLA.
        batch_axes: the mesh axes over which rows lie.
        weight_axes: the mesh axes over which what a stage owns is stored; it is gathered when the stage computes.
        uniform: every device computes every branch at every tick and keeps what is its own. That costs a multiple, and
            is for programs of which `waits_for_all` finds something.

    Raises ValueError if stages, arrays, batch and mesh do not fit each other.
    """
    if len(stages) != mesh.shape.get(AXIS) or len(owned) != len(stages):
        raise ValueError(
            f"pipeline: got {len(stages)} stages, arrays of {len(owned)} stages and the mesh {dict(mesh.shape)}; one "
            f"stage for each device of the mesh axis {AXIS!r} is wanted"
        )
    rows_over = tuple(axis for axis in batch_axes if mesh.shape.get(axis, 1) > 1)
    stored = tuple(axis for axis in weight_axes if mesh.shape.get(axis, 1) > 1)

    def fn(params: Mapping[str, Any], state: Mapping[str, Any], batch: Any, key: Any) -> Any:
        check_arrays(owned, stacked, params, state)
        check_batch(batch_rows(batch), microbatches, math.prod(mesh.shape[axis] for axis in rows_over))
        plan = Plan.make(
            stages,
            stages if kinds is None else kinds,
            finish,
            Arrangement.of(params, owned, stacked, specs or {}, stored, math.prod(mesh.shape[axis] for axis in stored)),
            Arrangement.of(state, owned, stacked, specs or {}, (), 1),
            microbatches,
            P(rows_over or None),
            batch,
            key if key is None or draws is None else (key, jnp.uint32(0)),
        )
        ticks = functools.partial(_ticks, plan, draws, uniform)

        def run(number: jax.Array, params: Any, state: Any, batch: Any, key: Any) -> Any:
            weights, carried = (a.hold(held, number[0]) for a, held in ((plan.params, params), (plan.state, state)))
            sums = ticks(number[0], weights, carried, batch, key)
            # Only the last stage has any.
            loss, more = jax.lax.psum((sums.loss, sums.sums), AXIS)
            return loss, more, plan.state.give(sums.state), plan.params.give(sums.gradients)

        loss, sums, new, gradients = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(AXIS), plan.params.at_rest, plan.state.at_rest, P(), P()),
            out_specs=(P(), P(), plan.state.at_rest, plan.params.at_rest),
            axis_names={AXIS},
            check_vma=False,
        )(
            # The stage's number comes as data: XLA cannot partition a program that asks a device where it stands.
            jnp.arange(len(stages), dtype=jnp.int32),
            dict(params),
            dict(state),
            cut(batch, microbatches),
            key,
        )
        return (loss, (sums, new)), {name: gradients[name].astype(a.dtype) for name, a in params.items()}

    return fn


def _ticks(
    plan: Plan,
    draws: Sequence[int] | None,
    uniform: bool,
    number: jax.Array,
    weights: Held,
    state: Held,
    batch: Any,
    key: Any,
) -> Sums:
    """All ticks of one stage."""
    last, count = len(plan.stages) - 1, plan.microbatches
    carrier, firsts, rows = plan.carrier, plan.firsts(), plan.carrier.lies
    # Branch 0 is to do nothing. The last stage's forward is part of its backward, which comes in the same tick.
    forwards = jnp.array([0 if s == last else 1 + b for s, b in enumerate(plan.branches)], jnp.int32)[number]
    backwards = jnp.array([1 + b for b in plan.branches], jnp.int32)[number]

    def choose(branch: jax.Array, branches: Sequence[Callable[..., Any]], *arguments: Any) -> Any:
        if not uniform:
            return jax.lax.switch(branch, branches, *arguments)
        results = [run(*arguments) for run in branches]
        return jax.tree.map(lambda *values: jax.lax.select_n(branch, *values), *results)

    def of(m: jax.Array) -> tuple[Any, Any]:
        own = key if count == 1 or key is None else jax.random.fold_in(key, m)
        drawn = None if key is None or draws is None else jnp.array(draws, jnp.uint32)[number]
        return microbatch(batch, m, count), own if drawn is None else (own, drawn)

    def tick(t: jax.Array, carry: Any) -> Any:
        inbox, cotangent, inputs, states, sums = carry
        m, there = _existing(t - number, count)
        inputs = _write(inputs, m, inbox, there)
        states = jax.tree.map(lambda ring, a: _write(ring, m, a, there), states, sums.state)

        def forward(stage: int) -> Any:
            return plan.forward(stage, weights, sums.state, inbox, *of(m))

        out, new = choose(
            jnp.where(there, forwards, 0),
            [lambda: (jnp.zeros_like(inbox), sums.state), *(lambda s=s: forward(s) for s in firsts if s != last)],
        )
        sums = sums._replace(state=new)
        m, there = _existing(t - 2 * last + number, count)
        then, before = _read(inputs, m), jax.tree.map(lambda ring: _read(ring, m), states)

        def backward(stage: int, sums: Sums) -> Any:
            return plan.backward(stage, weights, before, then, cotangent, *of(m), sums)

        back, sums = choose(
            jnp.where(there, backwards, 0),
            [
                lambda sums: (jnp.zeros_like(cotangent), sums),
                *(lambda sums, s=s: backward(s, sums) for s in firsts),
            ],
            sums,
        )
        inbox = jax.lax.ppermute(out, AXIS, [(s, s + 1) for s in range(last)])
        cotangent = jax.lax.ppermute(back, AXIS, [(s + 1, s) for s in range(last)])
        return inbox, cotangent, inputs, states, sums

    zeros = [jnp.zeros(a.shape, a.dtype) for a in jax.tree.leaves(plan.ends)]
    loss, more = jax.tree.unflatten(jax.tree.structure(plan.ends), zeros)
    under_way = min(count, max(2 * last - 1, 1))
    start = (
        # Said aloud, or XLA may hold all rows on each device.
        constrained(jnp.zeros((plan.rows, carrier.width), carrier.word), rows),
        constrained(jnp.zeros((plan.rows, carrier.float_width), carrier.float), rows),
        # Stage 0 reads its inputs from the batch; stage 1 has 2 S - 3 micro-batches under way, later ones fewer.
        constrained(jnp.zeros((under_way, plan.rows, carrier.width), carrier.word), P(None, *rows)),
        jax.tree.map(lambda a: jnp.zeros((min(count, 2 * last + 1), *a.shape), a.dtype), state),
        Sums(state, plan.params.zeros(), loss.astype(jnp.float32), more),
    )
    return jax.lax.fori_loop(0, count + 2 * last, tick, start)[-1]


def _existing(number: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """A micro-batch's number, and whether there is one; if not, a number that may be read at."""
    return jnp.clip(number, 0, count - 1), (number >= 0) & (number < count)


def _write(ring: jax.Array, number: jax.Array, value: jax.Array, there: jax.Array) -> jax.Array:
    value = jnp.where(there, value, _read(ring, number))
    return jax.lax.dynamic_update_index_in_dim(ring, value, number % ring.shape[0], 0)


def _read(ring: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(ring, number % ring.shape[0], keepdims=False)
