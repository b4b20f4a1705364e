"""The planner on a trace of jobs, and other schedulers on the same trace: discrete events, no clock.

A job computes from `start` seconds after it has got its devices: programs are loaded and compiled, weights are read. A
job that is resized, moved or preempted goes on from where it is, but first all wait `drain` seconds until it has saved.
Time limits, which the planner does not know of, are counted with the start.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import final

from llmasos_xla.runtime.backfill import Runs, Scheduler, Waits
from llmasos_xla.runtime.claims import Claim, Node, Place, Rules
from llmasos_xla.runtime.planner import plan
from llmasos_xla.runtime.workload import Job

_MOMENT = 1e-6
"""Seconds that rounding may be wrong by."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds that a job takes to save itself and leave (`drain`), and to begin to compute (`start`)."""

    drain: float = 10.0
    start: float = 20.0


@dataclasses.dataclass(frozen=True)
class Fate:
    """What became of a job.

    Attributes:
        job: the job.
        waited: seconds without devices, in all.
        began: seconds after its arrival at which it first got devices.
        took: seconds from its arrival to its end.
        preempted: how often it lost all its devices.
        resized: how often it went on on other devices, or on more or fewer.
    """

    job: Job
    waited: float
    began: float
    took: float
    preempted: int
    resized: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a scheduler made of a trace.

    Attributes:
        fates: of the jobs, in the order of their arrival.
        devices: how many there are.
        makespan: seconds from the first arrival to the last end.
        busy: device-seconds in which jobs computed.
        plans: how often the scheduler was asked.
    """

    fates: tuple[Fate, ...]
    devices: int
    makespan: float
    busy: float
    plans: int

    @property
    def utilization(self) -> float:
        """The share of all device-seconds in which jobs computed."""
        return self.busy / (self.devices * self.makespan)


@final
@dataclasses.dataclass
class _Running:
    """A job on its way; times are those of the simulation."""

    job: Job
    left: float
    size: int = 0
    places: tuple[Place, ...] = ()
    changed: float = 0.0
    computes: float = 0.0
    began: float = math.nan
    waited: float = 0.0
    preempted: int = 0
    resized: int = 0
    since: float = 0.0
    busy: float = 0.0

    def advance(self, now: float) -> None:
        if self.size:
            seconds = max(now - max(self.since, self.computes), 0.0)
            self.left -= seconds * self.job.pace(self.size)
            self.busy += seconds * self.size
        else:
            self.waited += now - self.since
        self.since = now

    def fate(self, now: float) -> Fate:
        arrival = self.job.arrival
        return Fate(self.job, self.waited, self.began - arrival, now - arrival, self.preempted, self.resized)

    @property
    def end(self) -> float:
        return max(self.since, self.computes) + self.left / self.job.pace(self.size) if self.size else math.inf


Decision = Callable[[float, list[_Running]], dict[str, tuple[int, tuple[Place, ...]]]]
"""(now, the jobs that are there) -> size and places of each."""


def by_plan(nodes: Sequence[Node], rules: Rules = Rules(), *, elastic: bool = True) -> Decision:
    """Decides by `plan`; without `elastic` jobs have the size that they ask for, or none."""

    def decide(now: float, jobs: list[_Running]) -> dict[str, tuple[int, tuple[Place, ...]]]:
        found = plan([_claim(one, now, elastic) for one in jobs], nodes, rules)
        return {name: (size, found.places.get(name, ())) for name, size in found.sizes.items()}

    return decide


def _claim(one: _Running, now: float, elastic: bool) -> Claim:
    sizes = one.job.sizes if elastic else (one.job.asked,)
    return Claim(
        one.job.name,
        one.job.priority,
        sizes,
        speed={size: one.job.pace(size) for size in sizes},
        user=one.job.user,
        waiting=one.waited,
        size=one.size,
        places=one.places,
        running=now - one.changed if one.size else 0.0,
    )


def by_scheduler(
    scheduler: Scheduler, devices: int, costs: Costs = Costs(), *, aging: float = math.inf, priorities: bool = True
) -> Decision:
    """Decides by a scheduler of fixed sizes, told of jobs by priority and aging, or as they arrived."""

    def decide(now: float, jobs: list[_Running]) -> dict[str, tuple[int, tuple[Place, ...]]]:
        runs = [one for one in jobs if one.size]
        queue = [one for one in jobs if not one.size]
        if priorities:
            queue.sort(key=lambda one: (-(one.job.priority + one.waited / aging), one.job.arrival))
        ends = [Runs(one.size, max(one.changed + costs.start + one.job.limit - now, 0.0)) for one in runs]
        waiting = [Waits(one.job.name, one.job.asked, costs.start + one.job.limit) for one in queue]
        starts = set(scheduler(waiting, ends, devices))
        return {one.job.name: (one.job.asked if one.size or one.job.name in starts else 0, ()) for one in jobs}

    return decide


def simulate(
    jobs: Sequence[Job],
    devices: int,
    decide: Decision,
    costs: Costs = Costs(),
    *,
    tick: float = 300.0,
    frozen: float = 0.0,
) -> Outcome:
    """Runs a trace to its end.

    Args:
        jobs: the trace.
        devices: how many there are.
        decide: `by_plan` or `by_scheduler`.
        costs: of starts and resizes.
        tick: seconds after which who waits is asked about again, because it has grown older.
        frozen: the rules' `least_run`, at the end of which it is asked about again too.

    Raises ValueError for a job that asks for more devices than there are.
    """
    jobs = sorted(jobs, key=lambda job: (job.arrival, job.name))
    if wide := [job for job in jobs if job.asked > devices]:
        raise ValueError(
            f"simulate: {wide[0].name} asks for {wide[0].asked} devices, and there are {devices}: it would never "
            "start; leave it out, or simulate more devices"
        )
    coming, there, fates = list(reversed(jobs)), [], {}
    now, busy, plans = (jobs[0].arrival if jobs else 0.0), 0.0, 0
    began = now
    while coming or there:
        for one in there:
            one.advance(now)
        for one in [one for one in there if one.end <= now + _MOMENT]:
            there.remove(one)
            busy += one.busy
            fates[one.job.name] = one.fate(now)
        while coming and coming[-1].arrival <= now:
            there.append(_Running(coming[-1], coming.pop().seconds, since=now))
        _follow(decide(now, there), there, now, costs)
        plans += 1
        times = [one.end for one in there] + [job.arrival for job in coming[-1:]]
        times += [ripe for one in there if one.size and (ripe := one.changed + frozen + _MOMENT) > now]
        if any(not one.size for one in there):
            times.append(now + tick)
        now = min(times, default=now)
    return Outcome(tuple(fates[job.name] for job in jobs), devices, now - began, busy, plans)


def _follow(decided: dict[str, tuple[int, tuple[Place, ...]]], there: list[_Running], now: float, costs: Costs) -> None:
    """Starts, resizes and preempts. Who gets devices that others leave waits until they have saved."""
    changed = [one for one in there if decided[one.job.name] != (one.size, one.places)]
    left = {place for one in changed for place in one.places}
    for one in changed:
        size, places = decided[one.job.name]
        if not size:
            one.preempted += 1
        elif one.size:
            one.resized += 1
        elif math.isnan(one.began):
            one.began = now
        if size:
            drains = one.size > 0 or any(place in left for place in places)
            one.computes = now + costs.start + costs.drain * drains
        one.size, one.places, one.changed = size, places, now
