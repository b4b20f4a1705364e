"""What the planner is told and what it answers: jobs' claims, nodes, rules, and the plan."""

import dataclasses
import math
from collections.abc import Mapping

Place = tuple[str, int]
"""A device: its node's name, and its number on that node."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one job wants, what it has, and since when.

    Attributes:
        name: unlike any other's.
        priority: points; who has more goes first.
        sizes: the numbers of devices that it can run on, its legal world sizes; the smallest is its minimum.
        device_bytes: bytes of a device by size, as compiled; empty where nobody knows, and then it shares no device. On
            devices without memory of their own they are the host's.
        host_bytes: bytes of host memory by size, of the whole gang, besides `device_bytes`; divided evenly over its
            devices. Empty counts as none.
        speed: steps a second by size, in any unit; empty counts as proportional to the size.
        together: whether its gang has to be on one node.
        user: whose job it is.
        waiting: seconds that it has waited for devices in all since it was queued. They are not forgotten when it
            starts nor when it is preempted: they stand still while it runs.
        size: how many devices it has now; 0 if it does not run.
        places: those devices.
        running: seconds since its size or its places last changed. A job that a plan has given places counts as running
            from then on, at 0 seconds, even if it still waits for others to leave.

    Raises ValueError for what cannot be meant.
    """

    name: str
    priority: float | int = 0
    sizes: tuple[int, ...] = (1,)
    device_bytes: Mapping[int, int] = dataclasses.field(default_factory=dict)
    host_bytes: Mapping[int, int] = dataclasses.field(default_factory=dict)
    speed: Mapping[int, float | int] = dataclasses.field(default_factory=dict)
    together: bool = False
    user: str = ""
    waiting: float | int = 0.0
    size: int = 0
    places: tuple[Place, ...] = ()
    running: float | int = 0.0

    def __post_init__(self):
        who = f"Claim {self.name!r}"
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"{who}: sizes are whole numbers >= 1, at least one of them; got {self.sizes!r}")
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))
        for field in ("device_bytes", "host_bytes", "speed"):
            told: Mapping[int, float] = getattr(self, field)
            if told and (missing := [k for k in self.sizes if k not in told]):
                raise ValueError(
                    f"{who}: {field} says nothing of {missing[0]} devices, one of its sizes {self.sizes}; measure that "
                    f"size, take it out of sizes, or leave {field} empty"
                )
            if wrong := [f"{k}: {v!r}" for k, v in told.items() if v < 0 or (field == "speed" and v == 0)]:
                raise ValueError(f"{who}: {field} {{{wrong[0]}}} wants a number {'>' if field == 'speed' else '>='} 0")
        if self.size and self.size not in self.sizes:
            raise ValueError(f"{who}: runs on {self.size} devices, which is none of its sizes {self.sizes}")
        if len(self.places) != self.size or len(set(self.places)) != self.size:
            raise ValueError(
                f"{who}: runs on {self.size} devices, and has places {self.places!r}; name each of them once"
            )
        if min(self.waiting, self.running) < 0:
            raise ValueError(f"{who}: seconds are >= 0; got waiting={self.waiting!r}, running={self.running!r}")

    @property
    def minimum(self) -> int:
        """The smallest of its sizes."""
        return self.sizes[0]

    def pace(self, size: int) -> float:
        """Its speed at a size, in devices' worth of what it does at its smallest.

        >>> Claim("a", sizes=(2, 4), speed={2: 10.0, 4: 15.0}).pace(4)
        3.0
        """
        return float(self.speed[size] / self.speed[self.minimum] * self.minimum) if self.speed else float(size)


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine: the bytes of each of its devices, and of its memory.

    Devices of 0 bytes have no memory of their own, as CPU slots: what lies on them is the host's. A node has devices of
    one of both sorts.
    """

    name: str
    devices: tuple[int, ...]
    memory: int

    def __post_init__(self):
        if self.memory < 0 or any(count < 0 for count in self.devices):
            raise ValueError(
                f"Node {self.name!r}: bytes are >= 0; got devices={self.devices!r}, memory={self.memory!r}"
            )
        if 0 in self.devices and any(self.devices):
            raise ValueError(
                f"Node {self.name!r}: some of its devices have memory of their own, some none: {self.devices!r}; name "
                "two nodes, one of each sort, and divide the host's memory between them"
            )


@dataclasses.dataclass(frozen=True)
class Rules:
    """How jobs are weighed against each other.

    Attributes:
        aging: seconds of waiting that count as much as one point of priority.
        least_run: seconds that a job runs at least before it may be resized, moved or preempted.
        hysteresis: a running job is resized for a gain in speed only if it is at least this part of it.
        margin: points by which a waiting job must be ahead of a running one to preempt it.
        fairness: points that a job loses when the jobs of its user that go before it already want all devices; in
            proportion when they want less.
        sharing: whether a device may hold several jobs whose bytes fit it together. Only minimums share, where a job
            would otherwise wait or preempt.
    """

    aging: float | int = 10800.0
    least_run: float | int = 120.0
    hysteresis: float | int = 0.1
    margin: float | int = 1.0
    fairness: float | int = 1.0
    sharing: bool = False

    def __post_init__(self):
        if not self.aging > 0:
            raise ValueError(f"Rules: aging wants seconds > 0, got {self.aging!r}; math.inf switches it off")
        for field in ("least_run", "hysteresis", "margin", "fairness"):
            value = getattr(self, field)
            if not (0 <= value < math.inf):
                raise ValueError(f"Rules: {field} wants a number >= 0, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be.

    Attributes:
        sizes: devices of each job; 0 for those that wait.
        places: those devices, for jobs that have some.
        reasons: why a job waits, is preempted, starts, shrinks, grows or moves. A job that runs on as it is has none.
    """

    sizes: Mapping[str, int]
    places: Mapping[str, tuple[Place, ...]]
    reasons: Mapping[str, str]
