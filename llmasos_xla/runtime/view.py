"""The queue and its machine at one moment: what `llmasos top` and the page draw."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_xla.progress import EXIT_SAVED, Progress
from llmasos_xla.runtime.jobs import Job, Place
from llmasos_xla.runtime.launchers.protocol import how_it_ended
from llmasos_xla.runtime.store import Event

_TOLD = ("pid", "since", "devices", "memory")


class Curve:
    """The losses of a job by its steps: all of its life, in points that grow sparser as they grow many.

    Args:
        most: points that are kept, at most.

    >>> curve = Curve(most=4)
    >>> for step in range(1, 10):
    ...     curve.add(step, 1 / step)
    >>> [step for step, _ in curve.points]
    [1, 5, 9]
    """

    def __init__(self, most: int = 240):
        self._most, self._apart, self._seen = most, 1, 0
        self._points: list[tuple[int, float]] = []
        self._newest: tuple[int, float] | None = None

    def add(self, step: int, loss: float) -> None:
        """Adds what a fit has told; a step that was there already takes all behind it back."""
        if self._newest is not None and step == self._newest[0]:
            return
        if self._newest is not None and step < self._newest[0]:
            # Started again from an earlier step.
            self._points = [point for point in self._points if point[0] < step]
            self._seen = 0
        if self._seen % self._apart == 0:
            self._points.append((step, loss))
        self._newest, self._seen = (step, loss), self._seen + 1
        if len(self._points) > self._most:
            self._points = self._points[::2]
            self._apart, self._seen = 2 * self._apart, 1

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """(step, loss), steps ascending; the newest is always among them."""
        kept = tuple(self._points)
        return kept if self._newest is None or kept[-1:] == (self._newest,) else (*kept, self._newest)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU; what its driver does not tell is NaN."""

    name: str
    use: float
    memory: float
    memory_total: float
    watts: float
    celsius: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine of whoever looks; what it does not tell is NaN."""

    cpu: float
    """Share of its CPU time that is used, 0 to 1."""
    cpus: int
    memory: float
    memory_total: float
    watts: float
    watts_are: str
    """measured, estimated or absent."""
    gpus: tuple[Gpu, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slot:
    """A device, and the numbers of the jobs on it."""

    node: str
    device: int
    jobs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A job. Neither its command nor its environment, where passwords stand."""

    number: int
    name: str
    user: str
    state: str
    asked: str | None
    priority: int
    places: tuple[Place, ...]
    """The devices that it has now."""
    least: int
    most: int
    step: int | None
    epoch: int | None
    loss: float | None
    losses: tuple[tuple[int, float], ...]
    """(step, loss), of all its life or as long as somebody looks."""
    cpu: float | None
    """CPUs that it keeps busy."""
    memory: float | None
    """Resident bytes."""
    needed: int | None
    """Bytes of memory that it was said, or found, to need on the devices that it has, or on its fewest."""
    attempt: int
    failures: int
    status: int | None
    seconds: float
    """Since its state changed."""
    waited: float
    """Seconds that it has waited for devices, in all."""
    reason: str


@dataclasses.dataclass(frozen=True)
class Happened:
    """An event, in words."""

    at: float
    job: int
    name: str
    what: str


@dataclasses.dataclass(frozen=True)
class View:
    """The moment."""

    at: float
    """Seconds since 1970."""
    engine: Mapping[str, Any] | None
    """pid, since, devices, memory (bytes for jobs); empty where it has just begun, None where none runs."""
    machine: Machine | None
    why_no_machine: str
    slots: tuple[Slot, ...]
    rows: tuple[Row, ...]
    counts: Mapping[str, int]
    """Of all jobs, shown or not, by state."""
    events: tuple[Happened, ...]
    """The newest last."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: what is not known is None, and a loss that is no number any more is its name."""
        return _plain(dataclasses.asdict(self))


def picture(
    jobs: Sequence[Job],
    events: Sequence[Event] = (),
    *,
    now: float,
    engine: Mapping[str, Any] | None = None,
    progress: Mapping[int, Mapping[int, Progress]] | None = None,
    curves: Mapping[int, Curve] | None = None,
    usage: Mapping[int, tuple[float, float]] | None = None,
    counts: Mapping[str, int] | None = None,
    machine: Machine | None = None,
    why_no_machine: str = "",
) -> View:
    """The moment, from what was read of it.

    Args:
        jobs: those to show, in order.
        events: what happened last.
        now: seconds since 1970.
        engine: what it says of itself.
        progress: what the ranks of a job told last, by job and rank.
        curves: losses by job.
        usage: CPUs and bytes by job.
        counts: of all jobs by state; those of `jobs` if None.
        machine: its figures, or
        why_no_machine: why there are none.
    """
    names = {job.number: job.spec.name for job in jobs}
    rows = tuple(
        _row(job, now, (progress or {}).get(job.number, {}), (curves or {}).get(job.number), (usage or {}))
        for job in jobs
    )
    told = None if engine is None else {key: engine[key] for key in _TOLD if key in engine}
    happened = tuple(Happened(e.at, e.job, names.get(e.job, ""), _words(e)) for e in events)
    counted = dict(collections.Counter(job.state for job in jobs)) if counts is None else counts
    return View(now, told, machine, why_no_machine, _slots(engine, jobs), rows, counted, happened)


def ago(seconds: float | int) -> str:
    """So many seconds, in the unit that suits.

    >>> ago(59), ago(5400)
    ('59 s', '2 h')
    """
    for unit, long in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= long:
            return f"{seconds / long:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _row(job: Job, now: float, seen: Mapping[int, Progress], curve: Curve | None, usage: Mapping[int, Any]) -> Row:
    points = curve.points if curve is not None else ()
    step, loss = points[-1] if points else (None, None)
    if seen:
        # The slowest rank is as far as the job is.
        step = min(each.step for each in seen.values())
        loss = seen[min(seen)].loss
    cpu, memory = usage.get(job.number, (None, None))
    waiting = max(now - job.queued, 0.0) if job.state == "queued" else 0.0
    return Row(
        number=job.number,
        name=job.spec.name,
        user=job.spec.user,
        state=job.state,
        asked=job.asked,
        priority=job.spec.priority,
        places=_having(job),
        least=job.spec.legal[0],
        most=job.spec.legal[-1],
        step=step,
        epoch=max((each.epoch for each in seen.values()), default=None),
        loss=loss,
        losses=points,
        cpu=cpu,
        memory=memory,
        needed=_needed(job),
        attempt=job.attempt,
        failures=job.failures,
        status=job.status,
        seconds=max(now - job.changed, 0.0),
        waited=job.waited + waiting,
        reason=job.reason,
    )


def _needed(job: Job) -> int | None:
    if job.spec.memory is not None:
        return job.spec.memory
    found = job.need.get("host", {}).get(str(job.size or job.spec.legal[0]))
    return None if found is None else int(found)


def _slots(engine: Mapping[str, Any] | None, jobs: Sequence[Job]) -> tuple[Slot, ...]:
    """The engine's devices, and those that jobs have beyond them: nodes that came after it had told of itself."""
    told = dict(engine.get("nodes") or {"local": engine.get("devices", 0)}) if engine else {}
    # Slurm tells on which node, and not on which of its cores.
    counted = engine is not None and engine.get("launcher") == "slurm"
    sitting: dict[Place, list[int]] = {(node, device): [] for node, count in told.items() for device in range(count)}
    for job in jobs:
        for node, device in _having(job):
            if counted:
                device = next(number for number in itertools.count() if not sitting.get((node, number)))
            sitting.setdefault((node, device), []).append(job.number)
    return tuple(Slot(node, device, tuple(found)) for (node, device), found in sorted(sitting.items()))


def _having(job: Job) -> tuple[Place, ...]:
    """The devices that a job has, and not those that it waits for in others' queue, whose nodes nobody knows yet."""
    return tuple(place for place in job.places if place[0]) if job.size else ()


def _words(event: Event) -> str:
    more = event.more
    if event.what == "starting":
        return f"starts on {_devices(more['devices'])}"
    if event.what == "draining":
        return f"makes room: {more['why']}" if more.get("why") else "makes room"
    if event.what == "admitted":
        return f"may begin: {more['host'] / 2**30:.2f} GiB of memory are its own"
    if event.what == "requeued":
        return f"is begun anew: {more['why']}"
    if event.what == "stuck":
        return f"is stuck: rank {more['rank']} at step {more['step']}"
    if event.what == "priority":
        return f"has priority {more['now']} instead of {more['before']}"
    if event.what == "queued" and more.get("status") == EXIT_SAVED:
        return "has saved itself and is queued"
    if event.what in ("failed", "queued") and more.get("status") is not None:
        return f"is {event.what}: {how_it_ended(more['status'])}"
    known = {"queued": "is queued", "waiting": "waits for other jobs", "running": "runs", "done": "is done"}
    return known.get(event.what, f"is {event.what}" if event.what in ("failed", "cancelled") else event.what)


def _devices(count: int) -> str:
    return f"{count} device{'s' if count != 1 else ''}"


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, key) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no such numbers; of a loss it is news, of a figure it means that nobody knows.
        return str(value) if key == "loss" else None
    return value
