"""Rows of ids in batches of few shapes: a program is compiled for each shape, and texts come in all lengths."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

SHORTEST = 16
MOST_ROWS = 32


class Bucket(NamedTuple):
    """A batch, and where its rows stood."""

    places: list[int]
    ids: np.ndarray
    """int32 [rows, length], padded at the right; rows beyond `places` repeat the first."""
    mask: np.ndarray
    """int32 [rows, length], 1 where a step is real."""


def buckets(
    rows: Sequence[Sequence[int]], *, fill: int = 0, most: int = MOST_ROWS, longest: int | None = None
) -> Iterator[Bucket]:
    """Batches of at most `most` rows of like length: powers of 2 in both directions, and `longest` at most.

    >>> [(b.places, b.ids.shape) for b in buckets([[1] * 5, [1] * 40, [1] * 9])]
    [([0, 2], (2, 16)), ([1], (1, 64))]
    """
    by_length: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        length = power_of_two(max(len(row), SHORTEST))
        by_length.setdefault(min(length, longest or length), []).append(place)
    for length, places in sorted(by_length.items()):
        for start in range(0, len(places), most):
            part = places[start : start + most]
            ids = np.full((min(power_of_two(len(part)), most), length), fill, np.int32)
            mask = np.zeros_like(ids)
            for at, place in enumerate(part):
                row = rows[place]
                ids[at, : len(row)], mask[at, : len(row)] = row, 1
            ids[len(part) :], mask[len(part) :] = ids[0], mask[0]
            yield Bucket(part, ids, mask)


def power_of_two(n: int) -> int:
    """The smallest power of 2 that is not below n."""
    return 1 << (n - 1).bit_length()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares along the last axis, in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
