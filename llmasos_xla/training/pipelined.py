"""Training over a pipeline: the gradients of an objective, computed stage by stage."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from llmasos_xla.models.stages import Stage
from llmasos_xla.sharding.pipeline import one_f_one_b
from llmasos_xla.training.step import Gradients, Objective, rows


def pipelined(
    objective: Objective, stages: Sequence[Stage], mesh: Mesh, microbatches: int, **options: Any
) -> Gradients:
    """The objective's gradients over the mesh axis "pipe", for `make_train_step(..., gradients_of=)`.

    `stages` are the objective's model, as `models.stages.split` cuts it; `options` go to `one_f_one_b`. With one
    micro-batch the numbers are those of one device; with more, batch statistics are those of a micro-batch, and each
    micro-batch has random numbers of its own.
    """
    compute = one_f_one_b(
        [_in_precision(objective, stage) for stage in stages],
        [stage.owned for stage in stages],
        stages[0].stacked,
        lambda carry, batch: objective.sums(carry[0], batch),
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
