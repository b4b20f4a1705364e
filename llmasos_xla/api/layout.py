"""`shard="auto"` and `batch_size="auto"`: what a fit stands on the plan for."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from llmasos_xla.sharding.agreement import of_first
from llmasos_xla.sharding.mesh import AXES, STRATEGIES, MeshSpec

if TYPE_CHECKING:
    from llmasos_xla.api.learner import Learner
    from llmasos_xla.training.report import Quiet

_COMPILED = 2
"""Layouts that are compiled before a fit: compiling them is time that the fit waits for."""


def settled(learner: "Learner", shard: Any, batch_size: Any, rows: int, report: "Quiet") -> tuple[Any, int]:
    """The strategy and the batch size, "auto" replaced by what the plan for the devices that are here says.

    Raises ValueError if no layout, or not even the smallest batch, fits.
    """
    if shard is None and learner.placement is None and jax.process_count() > 1:
        # Each process for itself would train as many models, and each on all rows.
        shard = "auto"
    if "auto" not in (shard, batch_size):
        return shard, batch_size
    if isinstance(shard, str) and shard not in (*STRATEGIES, "auto"):
        MeshSpec.of(shard)  # says what is known
    spec, batch = _planned(learner, shard, batch_size, rows)
    # Each process has its own idea of the memory that is free; the first one's holds.
    numbers = of_first([*spec.sizes.values(), batch])
    spec = dataclasses.replace(spec, **dict(zip(AXES, numbers[:-1], strict=True)))
    report.note(f"planned: {spec!r}, batch_size={numbers[-1]}")
    return spec, numbers[-1]


def _planned(learner: "Learner", shard: Any, batch_size: Any, rows: int) -> tuple[MeshSpec, int]:
    from llmasos_xla.api.planning import step_of
    from llmasos_xla.sharding import plan as planning
    from llmasos_xla.sharding.planning.topology import topology

    here = topology()
    if shard is None and learner.placement is not None:
        shard = learner.placement.spec
    specs = None if shard == "auto" else [MeshSpec() if shard is None else MeshSpec.of(shard).over(len(here))]
    if batch_size != "auto":
        if specs is not None or len(here) == 1:
            return (specs or [MeshSpec()])[0], batch_size
        return planning.plan(step_of(learner, here), batch_size, here, most=_COMPILED).best.spec, batch_size
    step = step_of(learner, here)
    spec = specs[0] if specs else MeshSpec.of("fsdp").over(len(here))
    batch = planning.largest_batch(step, spec, here, most=max(rows, spec.batch_parts))
    if specs is None and len(here) > 1:
        spec = planning.plan(step, batch, here, most=_COMPILED).best.spec
    return spec, batch
