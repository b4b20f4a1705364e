"""Messages between devices: how many bytes each kind sends, how long that takes, and which a compiled program holds.

Formulas are those of ring algorithms (Thakur, Rabenseifner and Gropp 2005), which move the fewest bytes there can be:
with n devices and `whole` bytes in all, an all-gather and a reduce-scatter send whole (n - 1) / n from each device, an
all-reduce twice that. Devices that are joined by fast links in groups send between the groups side by side.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmasos_xla.errors import unknown

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute")

# One message's start within a host or slice, and between them; of a tree of messages, not a ring, where they are small.
_LATENCY = 1e-6
_NETWORK_LATENCY = 5e-6


def sent(kind: str, whole: int | float, devices: int) -> float:
    """Bytes that each of `devices` devices sends.

    Args:
        kind: one of `KINDS`.
        whole: bytes of what is gathered, scattered or summed, put together; for "all-to-all" and "permute" the bytes
            that one device holds.
        devices: how many take part.

    >>> sent("all-reduce", 800.0, 8), sent("all-gather", 800.0, 8), sent("permute", 100.0, 8)
    (1400.0, 700.0, 100.0)
    """
    if kind not in KINDS:
        raise unknown("sent", "collective", kind, KINDS)
    if devices == 1:
        return 0.0
    share = (devices - 1) / devices
    return {"all-reduce": 2 * share, "permute": 1.0}.get(kind, share) * whole


class Links(NamedTuple):
    """How fast devices reach each other."""

    link: float
    """Bytes a second that a device sends within its group."""
    network: float
    """Bytes a second that a device sends to other groups."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of message in a program.

    Attributes:
        kind: one of `KINDS`.
        whole: bytes put together, as `sent` takes it.
        devices: how many take part in each.
        axes: the mesh axes along which they lie.
        groups: in how many groups of fast links they lie.
        times: how often it is sent in one run of the program.
        exact: False where `times` is a lower bound, since a loop's length is not in the program.
    """

    kind: str
    whole: int
    devices: int
    axes: tuple[str, ...] = ()
    groups: int = 1
    times: int = 1
    exact: bool = True

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one run of the program."""
        return self.times * sent(self.kind, self.whole, self.devices)

    def seconds(self, links: Links) -> float:
        """How long all of them take one after the other, nothing else using the links.

        The slower of what goes along the group's own links and what goes between groups, where each device of a group
        has a network link of its own.
        """
        if self.devices == 1:
            return 0.0
        within = sent(self.kind, self.whole, self.devices) / links.link
        between = 0.0
        if self.groups > 1:
            side_by_side = 1 if self.kind in ("permute", "all-to-all") else max(self.devices // self.groups, 1)
            between = sent(self.kind, self.whole, self.groups) / (links.network * side_by_side)
        start = math.ceil(math.log2(self.devices)) * _LATENCY
        start += math.ceil(math.log2(self.groups)) * _NETWORK_LATENCY if self.groups > 1 else 0.0
        return self.times * (max(within, between) + start)

    def __str__(self) -> str:
        over = " x ".join(self.axes) or "?"
        bound = "" if self.exact else " at least"
        return f"{self.kind} of {self.whole:,} bytes over {over} ({self.devices}),{bound} {self.times} times"


def merged(found: Sequence[Collective]) -> list[Collective]:
    """Equal messages as one that is sent several times, those that send most first."""
    times: dict[Collective, int] = {}
    for c in found:
        key = dataclasses.replace(c, times=1)
        times[key] = times.get(key, 0) + c.times
    return sorted((dataclasses.replace(c, times=n) for c, n in times.items()), key=lambda c: -c.sent)


def sent_by_axes(found: Sequence[Collective]) -> dict[str, float]:
    """Bytes that each device sends along "fsdp", "data x fsdp", ... in one run."""
    total: dict[str, float] = {}
    for c in found:
        over = " x ".join(c.axes) or "?"
        total[over] = total.get(over, 0.0) + c.sent
    return total


def axes_of(group: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which those devices, numbered in the mesh's order, differ.

    >>> axes_of([0, 2, 4, 6], {"data": 4, "tensor": 2})
    ('data',)
    """
    found, stride = [], math.prod(mesh.values())
    for name, size in mesh.items():
        stride //= size
        if len({device // stride % size for device in group}) > 1:
            found.append(name)
    return tuple(found)
