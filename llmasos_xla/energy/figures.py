"""Joules, and how well they are known."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

Quality = Literal["measured", "estimated", "absent"]
_WORST: tuple[Quality, ...] = ("absent", "estimated", "measured")


class Energy(NamedTuple):
    """An amount of energy."""

    joules: float
    """NaN where it is absent."""
    quality: Quality
    """By a counter of the hardware, by a rule of thumb, or not known."""
    source: str
    """Which counter, which rule, or why it is not known."""

    def __str__(self) -> str:
        if self.quality == "absent":
            return f"energy unknown ({self.source})"
        return f"{self.joules:.4g} J {self.quality} ({self.source})"


class UnavailableError(Exception):
    """A source of joules is not there; the text says why. A normal state of a machine, which is told and not raised."""


class Counter(Protocol):
    """Something that has counted joules since it was made."""

    name: str
    """What it counts for: "cpu", "gpu0"."""

    def read(self) -> Energy:
        """Joules since it was made."""
        ...


def absent(reason: object) -> Energy:
    """What is not known, and why.

    >>> print(absent("no driver"))
    energy unknown (no driver)
    """
    return Energy(math.nan, "absent", str(reason))


def total(parts: Iterable[Energy]) -> Energy:
    """The sum, as well known as the worst of its parts; a sum that lacks a part is none.

    >>> total([Energy(2.0, "measured", "RAPL"), Energy(1.0, "estimated", "by CPU time")])
    Energy(joules=3.0, quality='estimated', source='RAPL + by CPU time')
    """
    found = tuple(parts)
    if not found:
        return absent("nothing is measured")
    quality: Quality = next(quality for quality in _WORST if any(part.quality == quality for part in found))
    if quality == "absent":
        return absent("; ".join(part.source for part in found if part.quality == "absent"))
    return Energy(math.fsum(part.joules for part in found), quality, " + ".join(part.source for part in found))
