"""Plans: which layout of a step on some devices fits and is fastest, found without running it.

Candidates are first judged by formula, from their arrays' shapes alone: bytes of weights and optimizer, messages, time.
Those that may fit are compiled ahead of time, best first; then bytes are the compiler's, messages are those in the
program. Operations are counted in the traced step. No figure is a measurement.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence

from llmasos_xla.sharding.mesh import MeshSpec, divided
from llmasos_xla.sharding.planning import table
from llmasos_xla.sharding.planning.estimate import EFFICIENCY, Efficiency, Estimator, Row, Step
from llmasos_xla.sharding.planning.hardware import usable
from llmasos_xla.sharding.planning.topology import Topology

MARGIN = 0.1
"""Share of a device's memory that is left free: for the allocator's fragments and the library's own buffers."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found; printing it shows a table.

    Attributes:
        topology: the devices' name and kind, in words.
        batch_size: rows of a step, over all devices.
        memory: bytes of a device that may be used, the margin taken off.
        rows: the layouts; those that fit first, those that are compiled before the others, then by time.
        unit: what `per_second` counts.
        seconds: how long planning took.
    """

    topology: str
    batch_size: int
    memory: int
    rows: tuple[Row, ...]
    unit: str
    seconds: float

    @property
    def best(self) -> Row:
        """The fastest that is known to fit; raises ValueError if none does."""
        for row in self.rows:
            if row.fits and row.compiled:
                return row
        nearest = min(self.rows, key=lambda row: row.memory.peak or math.inf)
        raise ValueError(
            f"plan: no layout of a batch of {self.batch_size} fits {self.topology}; the nearest, {nearest.spec!r}: "
            f"{nearest.why or 'judged by formula alone'}; use more devices or a smaller batch"
        )

    def to_json(self) -> str:
        """All figures as JSON."""
        rows = [{**dataclasses.asdict(row), "spec": repr(row.spec), "peak": row.memory.peak} for row in self.rows]
        return json.dumps({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "rows": rows})

    def __str__(self) -> str:
        return table.text(self)


def plan(
    step: Step,
    batch_size: int,
    topology: Topology,
    *,
    specs: Sequence[MeshSpec] | None = None,
    most: int = 4,
    margin: float = MARGIN,
    efficiency: Efficiency = EFFICIENCY,
) -> Plan:
    """Judges layouts of a step.

    Args:
        step: what is to run.
        batch_size: rows of a step, over all devices.
        topology: the devices.
        specs: the layouts; by default `candidates`.
        most: how many of them that fit to compile, and at most twice as many in all.
        margin: share of a device's memory to leave free.
        efficiency: what is reached of the hardware's figures.

    Raises:
        ValueError: if there is no layout for that batch on so many devices.
    """
    began = time.perf_counter()
    limit = int(usable(topology.hardware) * (1 - margin))
    specs = candidates(topology, batch_size) if specs is None else specs
    if not specs:
        parts = sorted({spec.batch_parts for spec in candidates(topology, batch_size=0)})
        raise ValueError(
            f"plan: a batch of {batch_size} rows does not divide into {' or '.join(map(str, parts))} parts, as layouts "
            f"of {len(topology)} devices want; pass another batch_size, or a MeshSpec of your own as shard="
        )
    for spec in specs:
        divided(batch_size, spec.over(len(topology)))
    estimator = Estimator(step, batch_size, topology, limit, efficiency)
    rows = [estimator.by_formula(spec.over(len(topology))) for spec in specs]
    rows.sort(key=lambda row: (not row.fits, row.seconds))
    for i in range(len(rows)):
        row = rows[i]
        tried = [r for r in rows if r.compiled]
        if row.fits and sum(r.fits for r in tried) < most and len(tried) < 2 * most:
            rows[i] = estimator.by_compiling(row.spec)
            # The step's operations are known now: what is judged by formula is judged anew.
            if estimator.counted and i == 0:
                rows[1:] = sorted(
                    (estimator.by_formula(r.spec) for r in rows[1:]), key=lambda r: (not r.fits, r.seconds)
                )
    rows.sort(key=lambda row: (not row.fits, not row.compiled, row.seconds))
    return Plan(str(topology), batch_size, limit, tuple(rows), step.unit, time.perf_counter() - began)


def largest_batch(
    step: Step, spec: MeshSpec, topology: Topology, *, margin: float = MARGIN, most: int = 1 << 20, compiles: int = 6
) -> int:
    """The largest batch of a layout that fits, over all devices, found by a few compiles.

    Bytes grow with the rows in a straight line, but for what the compiler arranges anew: each compile tries what the
    line through those before promises. Rows are a multiple of what the layout divides them into, of 8 times that where
    there are as many.

    Raises ValueError if not even one row a device fits.
    """
    limit = int(usable(topology.hardware) * (1 - margin))
    spec = spec.over(len(topology))
    estimator = Estimator(step, 0, topology, limit, EFFICIENCY)
    parts = spec.batch_parts * (spec.microbatches or spec.pipe)

    def peak(rows: int) -> int:
        estimator.batch_size = rows * parts
        return estimator.by_compiling(spec).memory.peak

    found = _largest(peak, limit, max(most // parts, 1), compiles)
    if found == 0:
        raise ValueError(
            f"plan: not even one row a device fits: {spec!r} needs {table.size(peak(1))} of "
            f"{table.size(limit)} a device; split the model over more devices"
        )
    return found * parts


def _largest(peak: Callable[[int], int], limit: int, most: int, tries: int) -> int:
    """The most rows whose peak is within the limit, a multiple of 8 beyond 8, in about so many tries; 0 if none are.

    >>> _largest(lambda rows: 1000 + 10 * rows, limit=5000, most=10_000, tries=4)
    400
    """
    fits, over = (0, 0), (most + 1, math.inf)
    slope = math.inf
    rows = min(64, most)
    for _ in range(tries):
        needed = peak(rows)
        if needed <= limit:
            if fits[0]:
                slope = (needed - fits[1]) / (rows - fits[0])
            fits = (rows, needed)
        else:
            over = (rows, needed)
        if fits[0] == most or over[0] - fits[0] <= (1 if fits[0] < 8 else 8):
            break
        if over[1] < math.inf and fits[0]:
            # Between what fits and what does not.
            promised = fits[0] + (limit - fits[1]) / (over[1] - fits[1]) * (over[0] - fits[0])
        elif 0 < slope < math.inf:
            promised = fits[0] + (limit - fits[1]) / slope
        else:
            # One point: the line through nothing promises too little of what fits, too much of what does not.
            promised = rows * limit / max(needed, 1)
        rows = int(min(max(promised, fits[0] + 1), over[0] - 1, most))
        rows = rows // 8 * 8 if rows > 8 else rows
        if rows <= fits[0]:
            break
    if fits[0] == 0 and over[0] > 1 and peak(1) <= limit:
        return 1
    return fits[0]


def candidates(topology: Topology, batch_size: int) -> list[MeshSpec]:
    """Layouts worth judging: data, fsdp and tensor and their products, with tensor inside of what is joined by fast
    links. Stages, parts of time and experts are judged where they are asked for.

    >>> from llmasos_xla.sharding.planning.topology import topology
    >>> candidates(topology("cpu:4"), batch_size=8)[:2]
    [MeshSpec(data=4), MeshSpec(fsdp=4)]
    """
    devices, group = len(topology), topology.per_group
    found = []
    for tensor in (t for t in (1, 2, 4, 8, 16) if t <= group and devices % t == 0):
        rest = devices // tensor
        inner = [rest] if rest <= group or group // tensor <= 1 else [rest, group // tensor]
        for fsdp in {1: None, **dict.fromkeys(inner)}:
            if rest % fsdp == 0:
                found.append(MeshSpec(data=rest // fsdp, fsdp=fsdp, tensor=tensor))
    return [spec for spec in dict.fromkeys(found) if batch_size % spec.batch_parts == 0]
