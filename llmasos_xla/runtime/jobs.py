"""Jobs: what somebody submits, and what has become of it."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from llmasos_xla.runtime.claims import Place as Place

State = Literal["waiting", "queued", "starting", "running", "draining", "done", "failed", "cancelled"]
"""waiting: for jobs that come before it. queued: for devices. draining: it was told to save and to end."""
STATES: tuple[State, ...] = get_args(State)
ON_DEVICES: tuple[State, ...] = ("starting", "running", "draining")
"""A job in one of these has processes, or may have."""
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
Layout = Literal["devices", "processes"]
LONGEST_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
MOST_DEVICES = 1 << 14
_MOST_PRIORITY = 10**9
_MOST_BYTES = 1 << 60
_LONGEST_SECONDS = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """A job as it was submitted.

    Attributes:
        name: what it is called in the queue.
        command: what to run, an argument each; "{devices}" in them becomes the number of devices.
        folder: where to run it.
        priority: larger goes first.
        devices: the least and the most that it can use.
        sizes: numbers of devices that it can run on, if not all between those two.
        layout: "devices": one process that sees them all; "processes": `llmasos launch` with one process a device.
        memory: bytes of the machine's memory that it needs on any number of devices; measured if None.
        retries: how often it may fail and is started again.
        after: the numbers of jobs that have to be done before it.
        preemptible: whether it may be ended for another and started again; None: once a `fit` in it saves itself.
        grace: seconds from SIGTERM to SIGKILL when it is to make room.
        stuck_after: seconds without a step after which it counts as stuck, and is started again; None: never.
        environment: its variables, all of them; the engine's if empty.
        user: whose it is.
    """

    name: str
    command: tuple[str, ...]
    folder: str
    priority: int = 0
    devices: tuple[int, int] = (1, 1)
    sizes: tuple[int, ...] = ()
    layout: Layout = "devices"
    memory: int | None = None
    retries: int = 3
    after: tuple[int, ...] = ()
    preemptible: bool | None = None
    grace: float | int = 60.0
    stuck_after: float | int | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    user: str = ""

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"submit: a name is of letters, digits, . _ and -, {self.name!r} came")
        if not self.command:
            raise ValueError("submit: there is nothing to run; give a script or a command")
        if len(self.devices) != 2:
            raise ValueError(f"submit: devices are the least and the most, two numbers, {self.devices!r} came")
        least, most = self.devices
        for what, numbers in (("devices", self.devices), ("sizes", self.sizes), ("after", self.after)):
            for number in numbers:
                _whole(what, number)
        for what, number in (("retries", self.retries), ("memory", self.memory or 1)):
            _whole(what, number)
        if reason := why_no_priority(self.priority):
            raise ValueError(f"submit: {reason}")
        for what, value in (("grace", self.grace), ("stuck_after", self.stuck_after)):
            # What is no number, or has no end, is none in JSON either.
            if value is not None and not -_LONGEST_SECONDS <= value <= _LONGEST_SECONDS:
                raise ValueError(f"submit: {what} is a number of seconds, up to {_LONGEST_SECONDS:g}, {value} came")
        if (self.memory or 0) > _MOST_BYTES:
            raise ValueError(f"submit: memory is at most {_MOST_BYTES} bytes, {str(self.memory)[:40]} came")
        if not 1 <= least <= most <= MOST_DEVICES:
            raise ValueError(
                f"submit: devices are the least and the most, from 1 to {MOST_DEVICES}, {least} to {most} came"
            )
        if wrong := [n for n in self.sizes if not least <= n <= most]:
            raise ValueError(f"submit: a size of {wrong[0]} devices is not within {least} to {most}")
        if self.layout not in get_args(Layout):
            raise ValueError(f"submit: layout is one of {', '.join(get_args(Layout))}, {self.layout!r} came")
        for what, value, lowest in (("retries", self.retries, 0), ("grace", self.grace, 0), ("memory", self.memory, 1)):
            if value is not None and value < lowest:
                raise ValueError(f"submit: {what} is at least {lowest}, {value} came")
        if self.stuck_after is not None and self.stuck_after <= 0:
            raise ValueError(f"submit: stuck_after is above 0 seconds, {self.stuck_after} came")

    @property
    def legal(self) -> tuple[int, ...]:
        """Numbers of devices that it can run on, the smallest first."""
        return tuple(sorted(set(self.sizes))) or tuple(range(self.devices[0], self.devices[1] + 1))

    def to_json(self) -> str:
        """As the store keeps it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`."""
        return _spec(text)


# An engine reads those of all jobs again and again.
@functools.lru_cache(maxsize=1024)
def _spec(text: str) -> Spec:
    found = json.loads(text)
    tuples = {name: tuple(found[name]) for name in ("command", "devices", "sizes", "after")}
    return Spec(**{**found, **tuples})


def why_no_priority(wanted: object) -> str:
    """Why something cannot be a priority; nothing if it can."""
    if isinstance(wanted, int) and not isinstance(wanted, bool) and abs(wanted) <= _MOST_PRIORITY:
        return ""
    return f"a priority is a whole number within {_MOST_PRIORITY} of 0, {repr(wanted)[:40]} came"


def _whole(what: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"submit: {what} wants whole numbers, {number!r} came")


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as the store has it; moments are seconds since 1970."""

    number: int
    spec: Spec
    state: State
    submitted: float
    queued: float
    """Since when it waits for devices, or waited for those that it has."""
    waited: float
    """Seconds that it waited before that."""
    attempt: int
    """How often it was started."""
    token: str | None
    """Of the attempt that may run now."""
    handle: str | None
    """By which the launcher finds that attempt."""
    failures: int
    places: tuple[Place, ...]
    """The devices that it has; those that it had last, where it has none."""
    changed: float
    """When its state changed last."""
    not_before: float
    """It is not started again earlier."""
    status: int | None
    """Its exit code, once it has ended."""
    reason: str
    """Why it waits, or how it ended."""
    asked: Literal["cancel", "drain"] | None
    """What somebody has asked for."""
    need: Mapping[str, Any]
    """Bytes by number of devices: host and device as its fits asked for, held as they were seen."""

    @property
    def size(self) -> int:
        """How many devices it has."""
        return len(self.places) if self.state in ON_DEVICES else 0

    @property
    def ended(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.state in ENDED
