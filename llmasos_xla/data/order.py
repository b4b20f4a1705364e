"""Which rows a step takes: the order of an epoch and how its end is padded."""

import math
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Rows, batches and groups of an epoch: pure functions of five numbers."""

    rows: int
    batch_size: int
    seed: int
    shuffle: bool
    group: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(self.rows / self.batch_size)

    def fingerprint(self) -> dict[str, int | bool]:
        """What must agree for a saved position to mean the same rows."""
        return {"rows": self.rows, "batch_size": self.batch_size, "seed": self.seed, "shuffle": self.shuffle}

    def order(self, epoch: int) -> np.ndarray | None:
        """A permutation of the rows, or None for their own order."""
        if not self.shuffle:
            return None
        # Sorting the generator's raw bits, since only those are the same in every version of NumPy.
        bits = np.random.Philox(key=[self.seed % 2**64, epoch]).random_raw(self.rows)
        return np.argsort(bits, kind="stable")

    def slots(self, order: np.ndarray | None, first: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """`[group * batch]` rows for the steps from `first`, and `[group]` how many of each step's are real."""
        start = first * self.batch_size
        size = steps * self.batch_size
        places = np.arange(start, start + size)
        real = np.clip(self.rows - (np.arange(first, first + self.group) * self.batch_size), 0, self.batch_size)
        real[steps:] = 0
        # Past the end, the epoch's first rows: real ones keep batch statistics sane.
        places %= self.rows
        rows = places if order is None else order[places]
        if steps < self.group:
            last = rows[-self.batch_size :]
            rows = np.concatenate([rows, np.tile(last, self.group - steps)])
        return rows, real.astype(np.int32)
