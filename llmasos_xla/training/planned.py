"""A training step as plans take it: nothing but shapes, traced for devices that need not be here."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llmasos_xla.data.batches import PREFETCH
from llmasos_xla.kernels import tracing_for
from llmasos_xla.sharding.placement import Placement, like
from llmasos_xla.sharding.planning.estimate import Step
from llmasos_xla.sharding.planning.topology import Topology
from llmasos_xla.training.loop import IN_FLIGHT
from llmasos_xla.training.placed import shardings_of, tracing
from llmasos_xla.training.step import Gradients, Objective, make_train_step, new_state, over_group


def planned_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Callable[[int], Any],
    topology: Topology,
    *,
    ema: float | None = None,
    stacked: tuple[str, ...] = (),
    units: int = 1,
    unit: str = "samples",
    pipeline: Callable[[Placement, int], Callable[[bool], Gradients] | None] = lambda placement, rows: None,
) -> Step:
    """The step that `loop.fit` compiles, one update a dispatch, for a plan on `topology`.

    Args:
        objective: network, loss and metrics.
        optimizer: the optax transformation.
        batch: `batch(rows)`: an abstract batch, {"x": ..., "y": ..., "weight": ..., "count": ...}.
        topology: the devices; ops choose the implementation that would run there.
        ema: momentum of the weights' average, or None.
        stacked: beginnings of the names of arrays whose first axis counts layers.
        units: tokens in a row, or 1.
        unit: what they are called.
        pipeline: of a placement and a batch's rows, the gradients in stages; see `training.pipelined.pipeline_of`.
    """
    with _elsewhere(topology):
        state = jax.eval_shape(lambda: new_state(objective.net.init(jax.random.key(0)), optimizer, ema))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def trace(placement: Placement, rows: int) -> Any:
        stages = pipeline(placement, rows)
        many = over_group(make_train_step(objective, optimizer, ema, stages and stages(False)))

        def train_step(state: Any, totals: Any, group: Any, steps: jax.Array, key: jax.Array) -> Any:
            return many((state, totals), group, steps, key)

        one = batch(rows)
        group = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), one)
        whole, of_state = placement.replicated, shardings_of(placement, state, state.variables)
        given = (of_state, whole, placement.batch(group, axis=1), whole, whole)
        with _elsewhere(topology), tracing(placement):
            totals = jax.eval_shape(objective.empty, one["y"], one["x"], state.variables)
            arguments = (state, totals, group, jax.ShapeDtypeStruct((), jnp.int32), key)
            jitted = jax.jit(train_step, donate_argnums=(0,), out_shardings=(of_state, whole))
            return jitted.trace(*like(arguments, given))

    # On the host also those that are made ready, and the one that is being made.
    under_way = IN_FLIGHT + (PREFETCH + 1 if topology.platform == "cpu" else 0)
    statistics = bool(state.variables.state)
    return Step(state.variables.params, state, batch, trace, stacked, units, unit, statistics, under_way)


@contextlib.contextmanager
def _elsewhere(topology: Topology) -> Iterator[None]:
    platform = topology.compiles_for
    with tracing_for(platform, topology.gpu if platform == "gpu" else None):
        yield
