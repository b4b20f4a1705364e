"""The newest rows of a table of numbers, in memory of a fixed size."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np


@final
class Ring:
    """The newest `size` rows; an older one makes room for each that comes.

    Args:
        columns: their names.
        size: how many rows are kept.

    >>> ring = Ring(["time", "cpu"], size=2)
    >>> for second in range(3):
    ...     ring.add({"time": float(second), "cpu": 0.5})
    >>> ring.table()["time"]
    array([1., 2.])
    """

    def __init__(self, columns: Sequence[str], size: int):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"monitor: size wants a number of rows >= 1, got {size!r}")
        self.columns = tuple(columns)
        # Zeros take no memory until they are written over.
        self._rows = np.zeros((size, len(self.columns)))
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._rows))

    def add(self, row: Mapping[str, float]) -> None:
        """Adds a row; columns that it lacks are NaN."""
        self._rows[self._added % len(self._rows)] = [row.get(name, math.nan) for name in self.columns]
        self._added += 1

    def table(self) -> dict[str, np.ndarray]:
        """Columns by name [rows], the oldest row first."""
        rows = self._rows[: len(self)]
        if self._added > len(rows):
            rows = np.roll(rows, -(self._added % len(rows)), axis=0)
        return {name: rows[:, i].copy() for i, name in enumerate(self.columns)}
