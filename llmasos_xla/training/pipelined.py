"""Training over a pipeline: the gradients of an objective, computed stage by stage."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmasos_xla.core import Variables
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.models.stages import Stage, split
from llmasos_xla.sharding.pipeline import default_microbatches, one_f_one_b, waits_for_all
from llmasos_xla.sharding.placement import Placement
from llmasos_xla.sharding.rules import axes_in
from llmasos_xla.training.step import Gradients, Objective, rows


class DeadlockError(Exception):
    """A compiled pipeline has messages between devices of different stages inside of a stage."""


def refuse_deadlock(program: jax.stages.Compiled) -> None:
    """Raises DeadlockError for a pipeline whose stages would wait for each other for ever."""
    if waits_for_all(program.as_text() or ""):
        raise DeadlockError


def pipeline_of(
    spec: StackSpec, objective: Objective, variables: Variables, placement: Placement, batch_size: int
) -> Callable[[bool], Gradients] | None:
    """`pipeline(uniform)`: a model's gradients in stages, as its placement says; None without stages.

    Raises ValueError if the model has fewer layers than there are stages.
    """
    mesh = placement.spec
    if mesh.pipe == 1:
        return None
    stages = split(spec, mesh.pipe)
    # Statistics of a micro-batch would be other numbers than those of the batch.
    count = mesh.microbatches or default_microbatches(bool(variables.state), batch_size, mesh.pipe, mesh.batch_parts)
    specs = {name: _in_stage(placement, name, a) for name, a in {**variables.params, **variables.state}.items()}

    def gradients(uniform: bool) -> Gradients:
        return pipelined(
            objective,
            stages,
            placement.mesh,
            count,
            specs=specs,
            batch_axes=placement.batch_axes,
            uniform=uniform,
        )

    return gradients


def _in_stage(placement: Placement, name: str, a: Any) -> PartitionSpec:
    """Where an array lies at rest, but whole over what it is gathered from before it is used."""
    found = placement.layout(name, a.shape)
    used = {"pipe", "fsdp", *(axis for entry in found.used for axis in axes_in(entry))}
    kept = [tuple(axis for axis in axes_in(entry) if axis in used) for entry in found.stored]
    return PartitionSpec(*(entry or None for entry in kept))


def pipelined(
    objective: Objective, stages: Sequence[Stage], mesh: Mesh, microbatches: int, **options: Any
) -> Gradients:
    """The objective's gradients over the mesh axis "pipe", for `make_train_step(..., gradients_of=)`.

    `stages` are the objective's model, as `models.stages.split` cuts it; `options` go to `one_f_one_b`. With one
    micro-batch the numbers are those of one device; with more, batch statistics are those of a micro-batch, and each
    micro-batch has random numbers of its own.
    """

    def finish(carry: Any, batch: Any) -> Any:
        # Whole over features: where only some axes are XLA's, its partitioner ends the process at the loss's gather.
        logits, mesh = carry[0], jax.sharding.get_abstract_mesh()
        if not mesh.empty:
            lies = NamedSharding(mesh, PartitionSpec(options.get("batch_axes") or None))
            logits = jax.lax.with_sharding_constraint(logits, lies)
        return objective.sums(logits, batch)

    compute = one_f_one_b(
        [_in_precision(objective, stage) for stage in stages],
        [stage.owned for stage in stages],
        stages[0].stacked,
        finish,
        mesh,
        microbatches,
        kinds=[stage.kind for stage in stages],
        draws=[stage.draws for stage in stages],
        **options,
    )

    def gradients(params: dict[str, jax.Array], state: dict[str, jax.Array], batch: Any, key: Any) -> Any:
        (loss, (sums, new)), summed = compute(params, state, batch, key)
        count = rows(batch)
        return (loss / count, (loss, sums, new)), {name: (g / count).astype(g.dtype) for name, g in summed.items()}

    return gradients


def _in_precision(objective: Objective, stage: Stage) -> Callable[..., Any]:
    def run(params: dict[str, jax.Array], state: dict[str, jax.Array], carry: Any, key: Any) -> Any:
        if stage.number == 0:
            carry = objective.in_precision(objective.prepare(carry))
        carry, new = stage(objective.in_precision(params), state, carry, key)
        return carry, {name: a.astype(state[name].dtype) for name, a in new.items()}

    return run
