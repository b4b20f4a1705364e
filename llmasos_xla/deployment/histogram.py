"""Latencies as Prometheus counts them."""

import bisect
from typing import final


@final
class Histogram:
    """How many values lie below each of a few bounds, and their sum."""

    BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    def __init__(self) -> None:
        self._counts = [0] * (len(self.BOUNDS) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts one."""
        self._counts[bisect.bisect_left(self.BOUNDS, value)] += 1
        self._sum += value

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        """(bound, how many lie at or below it), the last for all, and the sum."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.BOUNDS), "+Inf"), tuple(self._counts), strict=True):
            total += count
            found.append((bound, float(total)))
        return found, self._sum
