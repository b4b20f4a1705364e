"""What a Dataset hands out: rows of inputs, labels and weights, and how rows are picked from what holds them."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Rows(NamedTuple):
    """Rows as the source has them, before any preprocessing."""

    x: Any
    """`[rows, ...]`: an array, or a dict of arrays by column or input name; text is an object array of str."""
    y: np.ndarray | None
    """`[rows, ...]` labels as the source has them, or None."""
    weight: np.ndarray | None
    """`[rows]` float32 sample weights, or None where every row counts 1."""


@runtime_checkable
class Lazy(Protocol):
    """Inputs that are read when they are asked for: images and audio in files, another library's data set."""

    threads: int
    """How many threads may read at once, with profit: above 1 only where decoding lets go of the interpreter lock."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Reads the rows at `indices`: their inputs and, where the source holds both together, their labels."""
        ...


def take(x: Any, indices: np.ndarray) -> Any:
    """Picks rows of an array or of each array in a dict."""
    if isinstance(x, dict):
        return {name: take(column, indices) for name, column in x.items()}
    return np.take(x, indices, axis=0)


def count(x: Any) -> int:
    """The number of rows of an array, a dict of arrays or a lazy source."""
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
