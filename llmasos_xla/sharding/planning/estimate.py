"""One layout judged: its bytes, operations, messages and time, by formula or from the compiled program."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import jax
import numpy as np

from llmasos_xla.compiling import compiler_options
from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.pipeline import bubble, default_microbatches
from llmasos_xla.sharding.placement import Placement, like
from llmasos_xla.sharding.planning import table
from llmasos_xla.sharding.planning.collectives import Collective, Links, sent_by_axes
from llmasos_xla.sharding.planning.flops import traced_flops
from llmasos_xla.sharding.planning.formula import messages
from llmasos_xla.sharding.planning.memory import Memory, device_bytes, exhausted, host_bytes, memory_of
from llmasos_xla.sharding.planning.program import collectives
from llmasos_xla.sharding.planning.topology import Topology, uncached


class Efficiency(NamedTuple):
    """What is reached of a device's figures."""

    compute: float = 0.5
    """Of its operations a second, in products of the sizes that models have."""
    memory: float = 0.8
    """Of its memory's bytes a second."""
    links: float = 0.8
    """Of its links' bytes a second."""
    overlap: float = 0.5
    """Share of the messages that hides behind computing, as long as that takes."""


EFFICIENCY = Efficiency()


class Step(NamedTuple):
    """A training step before any array exists."""

    arrays: Mapping[str, jax.ShapeDtypeStruct]
    """Parameters by name."""
    state: Any
    """The train state, abstract; what is not a parameter counts as the optimizer's."""
    batch: Callable[[int], Any]
    """`batch(rows)`: an abstract batch, {"x": ..., "y": ..., "weight": ..., "count": ...}."""
    trace: Callable[[Placement, int], Any]
    """`trace(placement, rows)`: the jitted step traced for it, a `jax.stages.Traced`."""
    stacked: tuple[str, ...] = ()
    """Beginnings of the names of arrays whose first axis counts layers."""
    units: int = 1
    """Tokens in a row, or 1."""
    unit: str = "samples"
    statistics: bool = False
    """Whether the model takes statistics over the batch, which a pipeline may then not cut into micro-batches."""
    under_way: int = 0
    """Batches that a fit holds beside the one that a step reads: ready, or passed to steps that wait their turn."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One layout.

    Attributes:
        spec: the layout.
        compiled: whether the figures are the compiler's; by formula, bytes are those without intermediate values.
        fits: whether it fits, as far as is known.
        why: why it does not.
        memory: bytes on one device.
        flops: operations of one step on one device.
        sent: mesh axes -> bytes that each device sends in one step.
        seconds: predicted time of a step.
        per_second: samples or tokens a second, of all devices.
        took: seconds that it took to trace and compile.
    """

    spec: MeshSpec
    compiled: bool
    fits: bool
    why: str
    memory: Memory
    flops: float
    sent: Mapping[str, float]
    seconds: float
    per_second: float
    took: float = 0.0


@final
class Estimator:
    """Judges layouts of one step on one topology."""

    def __init__(self, step: Step, batch_size: int, topology: Topology, limit: int, efficiency: Efficiency):
        self.step, self.batch_size, self.topology = step, batch_size, topology
        self.limit, self.efficiency = limit, efficiency
        self.number = {device: i for i, device in enumerate(topology.devices)}
        self.counted: dict[str, float] = {}
        """Operations of a step on all devices, once one has been traced."""

    def by_formula(self, spec: MeshSpec) -> Row:
        """From the shapes alone; without intermediate values, so that what does not fit so does not fit at all."""
        placement = self._placement(spec)
        try:
            weights, optimizer, batch = self._parts(placement)
            sent = messages(self.step.arrays, placement, self.batch_size * self.step.units, self._group)
        except ValueError as error:
            return Row(spec, False, False, str(error), Memory(0, 0, 0, 0), 0.0, {}, math.inf, 0.0)
        # Gradients live beside the weights, once.
        held = Memory(weights + optimizer + batch, 0, 0, weights, parts=_named(weights, optimizer, batch))
        flops = self.counted or {
            "bfloat16": 6.0 * self.batch_size * self.step.units * sum(a.size for a in self.step.arrays.values())
        }
        return self._row(spec, False, held, flops, sent)

    def by_compiling(self, spec: MeshSpec) -> Row:
        """From the compiled program."""
        began = time.perf_counter()
        placement = self._placement(spec)
        traced = self.step.trace(placement, self.batch_size)
        self.counted = traced_flops(traced)
        weights, optimizer, batch = self._parts(placement)
        parts = _named(weights, optimizer, batch)
        try:
            with uncached(self.topology):
                compiled = traced.lower().compile(compiler_options=compiler_options(self.topology.compiles_for))
        except jax.errors.JaxRuntimeError as error:
            needed = exhausted(error)
            if needed is None:
                raise
            held = Memory(weights + optimizer + batch, 0, 0, max(needed - sum(parts.values()), 0), parts=parts)
            row = self._row(spec, True, held, self.counted, [])
            why = f"the compiler refuses it: {table.size(needed)} needed" if needed else str(error)[:80]
            return dataclasses.replace(row, fits=False, why=why, took=time.perf_counter() - began)
        text = compiled.as_text()
        held = dataclasses.replace(memory_of(compiled), parts=parts)
        beside = self.step.under_way * batch
        if self.topology.platform == "cpu":
            beside += host_bytes(text, self._placed(placement)[1], held.temporary, len(self.topology))
        held = dataclasses.replace(held, beside=beside)
        groups = [self._group(device) for device in np.ravel(placement.mesh.devices)]
        found = collectives(text, dict(placement.mesh.shape), groups)
        row = self._row(spec, True, held, self.counted, found)
        return dataclasses.replace(row, took=time.perf_counter() - began)

    def _row(
        self, spec: MeshSpec, compiled: bool, held: Memory, flops: Mapping[str, float], sent: Sequence[Collective]
    ) -> Row:
        device, reached = self.topology.hardware, self.efficiency
        own = {dtype: count / spec.devices for dtype, count in flops.items()}
        compute = sum(count / (device.flops_of(dtype) * reached.compute) for dtype, count in own.items())
        # A pipeline's stages wait while it fills and drains.
        if spec.pipe > 1:
            whole = self.step.statistics
            pieces = spec.microbatches or default_microbatches(whole, self.batch_size, spec.pipe, spec.batch_parts)
            compute /= 1 - bubble(spec.pipe, pieces)
        # Each byte of weights, optimizer and intermediate values is written once and read once.
        traffic = 2 * (held.arguments + held.temporary) / (device.bandwidth * reached.memory)
        links = Links(device.link * reached.links, device.network * reached.links)
        talking = sum(c.seconds(links) for c in sent)
        busy = max(compute, traffic)
        seconds = busy + talking - reached.overlap * min(talking, busy)
        fits = held.peak <= self.limit
        why = "" if fits else f"needs {table.size(held.peak)} of {table.size(self.limit)}"
        return Row(
            spec, compiled, fits, why, held, sum(own.values()), sent_by_axes(sent), seconds,
            self.batch_size * self.step.units / seconds if seconds else math.inf,
        )  # fmt: skip

    def _placement(self, spec: MeshSpec) -> Placement:
        return Placement(spec, spec.mesh(self.topology.devices[: spec.devices]), self.step.stacked)

    def _placed(self, placement: Placement) -> tuple[Any, Any]:
        batch = self.step.batch(self.batch_size)
        return (
            like(self.step.state, placement.shardings(self.step.state, self.step.arrays)),
            like(batch, placement.batch(batch, axis=0)),
        )

    def _parts(self, placement: Placement) -> tuple[int, int, int]:
        state, batch = self._placed(placement)
        arrays = dict(self.step.arrays)
        weights = device_bytes(like(arrays, placement.shardings(arrays, arrays)))
        return weights, device_bytes(state) - weights, device_bytes(batch)

    def _group(self, device: Any) -> int:
        """Which of the groups that are joined by fast links a device is in."""
        return self.number[device] // self.topology.per_group


def _named(weights: int, optimizer: int, batch: int) -> dict[str, int]:
    return {"weights": weights, "optimizer": optimizer, "batch": batch}
