"""`lm.plan`: what a model's training needs on some devices, and how to lay it out there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.api._checks import check_whole
from llmasos_xla.api.door import Door
from llmasos_xla.api.learner import Learner
from llmasos_xla.api.recipe import Recipe, default_loss
from llmasos_xla.sharding import plan as planning
from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.plan import Plan
from llmasos_xla.sharding.planning.estimate import Step
from llmasos_xla.sharding.planning.topology import Topology
from llmasos_xla.sharding.planning.topology import topology as topology_of
from llmasos_xla.training.losses import Loss
from llmasos_xla.training.pipelined import pipeline_of
from llmasos_xla.training.planned import planned_step
from llmasos_xla.training.step import Objective

MOST_OBJECTS = 100
"""Objects that a picture is taken to have at most: COCO's limit."""


def plan(
    model: Door,
    batch_size: int | str = "auto",
    topology: str | Topology | None = None,
    *,
    shard: Any = None,
    time: int | None = None,
    compile_on: str | None = None,
    most: int = 4,
    margin: float = planning.MARGIN,
) -> Plan:
    """Which layouts of the model's training fit some devices, how fast each should be, and what it sends.

    Layouts are compiled ahead of time; nothing is trained, and the devices need not be here. Printed, the plan is a
    table; `plan.best.spec` goes into `fit(shard=)`.

    Args:
        model: with its input shape and, if it is compiled, its optimizer, loss and precision; Adam otherwise.
        batch_size: rows of a step, over all devices; "auto" finds the largest that fits the first layout that does.
        topology: None for the devices that are here, or "cpu:8", "h100:16", "v5p:8x8x4" (`sharding.planning.topology`).
        shard: one layout to judge rather than the usual ones ("auto"): a strategy's name, or a `MeshSpec`.
        time: steps of a sequence, where the model leaves them open.
        compile_on: "cpu" where the compiler of the devices' platform is not installed: an estimate.
        most: how many layouts to compile.
        margin: share of a device's memory to leave free.

    >>> from llmasos_xla import Sequential, layers
    >>> model = Sequential([layers.Dense(32, activation="relu", input_shape=(8,)), layers.Dense(2)])
    >>> plan(model, batch_size=64, topology="cpu:2", shard="data").best.spec
    MeshSpec(data=2)
    """
    if isinstance(batch_size, str) and batch_size != "auto":
        raise ValueError(f'plan: batch_size wants a whole number or "auto", got {batch_size!r}')
    check_whole("plan", most=most, **({} if batch_size == "auto" else {"batch_size": batch_size}))
    if not 0 <= margin < 1:
        raise ValueError(f"plan: margin wants a share of a device's memory, 0 <= margin < 1, got {margin!r}")
    where = topology if isinstance(topology, Topology) else topology_of(topology, compile_on=compile_on)
    step = step_of(model.learner, where, time)
    specs = None if shard is None or shard == "auto" else [MeshSpec.of(shard).over(len(where))]
    if isinstance(batch_size, str):
        spec = specs[0] if specs else MeshSpec.of("fsdp").over(len(where))
        batch_size = planning.largest_batch(step, spec, where, margin=margin)
    return planning.plan(step, batch_size, where, specs=specs, most=most, margin=margin)


def step_of(learner: Learner, topology: Topology, time: int | None = None) -> Step:
    """The model's training step as `sharding.plan` takes it; `time` stands for sizes that its shapes leave open."""
    spec, seen = learner.spec, learner.preprocessing
    several = seen is not None and isinstance(seen.input, tuple)
    names = tuple(seen.shape) if seen is not None and several else spec.fit_inputs
    known, open_shapes = spec.known_shape(), [spec.input_shapes()[name] for name in names] or [spec.known_shape()]
    if time is None and seen is not None:
        # As large as the data were.
        shapes = [seen.shape[name] for name in names] if several else [seen.shape]
        known = shapes[0]
        lengths = [n for shape, wanted in zip(shapes, open_shapes) for n, m in zip(shape, wanted) if m is None]
        time = max(lengths, default=None)
    if time is None and (unknown := [shape for shape in open_shapes if None in shape]):
        picture = len(unknown[0]) == 3
        how = "large: input_shape=(224, 224, 3) of the configuration" if picture else "long: plan(time=2048)"
        raise ValueError(f"plan: the model's input shape {unknown[0]} leaves a size open; say how {how}")
    length = time or 1
    first = spec.known_shape()[:1]
    recipe = learner.recipe or Recipe.of("adam", *default_loss(spec.head, classes=True))
    objective = Objective(
        learner.tuning.net(spec.net()), recipe.loss, recipe.metrics, spec.head, precision=recipe.precision
    )
    abstract = jax.eval_shape(objective.net.init, jax.random.key(0))
    sized = dataclasses.replace(spec, input_shape=tuple(length if n is None else n for n in known))
    output = tuple(length if n is None else n for n in sized.output_shape())
    y_shape, y_dtype = _targets(recipe.loss, output)

    def batch(rows: int) -> dict[str, Any]:
        return {
            "x": sized.abstract(rows, length, names or None),
            "y": jax.ShapeDtypeStruct((rows, *y_shape), y_dtype),
            "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
            "count": jax.ShapeDtypeStruct((), jnp.int32),
        }

    tokens = int(first[0] or length) if spec.tokens and first else 1
    return planned_step(
        objective,
        learner.tuning.transformation(recipe.transformation(spec.stacked)),
        batch,
        topology,
        ema=recipe.ema,
        stacked=spec.stacked,
        units=tokens,
        unit="tokens" if spec.tokens else "samples",
        pipeline=lambda placement, rows: pipeline_of(spec, objective, abstract, placement, rows),
    )


def _targets(loss: Loss, output: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of one sample's targets; of rows that are padded, a length that they may well have."""
    if loss.targets == "labels":
        return (max(1, output[0] // 2),), jnp.int32
    if loss.targets == "boxes":
        return (min(output[0], MOST_OBJECTS), 5), jnp.float32
    return (output[:-1], jnp.int32) if "sparse" in loss.name else (output, jnp.float32)
