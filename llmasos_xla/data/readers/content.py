"""What every reader returns: inputs, labels and what is known about them."""

import dataclasses
from typing import Any

import numpy as np

ARRAY, TABLE, TEXT, IMAGE, AUDIO, PAIRS = KINDS = ("array", "table", "text", "image", "audio", "pairs")


@dataclasses.dataclass(frozen=True)
class Content:
    """The inputs and labels that a reader found, not yet preprocessed."""

    kind: str
    """One of `KINDS`: arrays, a table with named columns, text, image files, audio files, (x, y) pairs."""
    x: Any
    """An array, a dict of arrays, or a `Lazy`."""
    y: np.ndarray | None
    """Labels of all rows, or None; a `pairs` source holds them itself."""
    name: str
    """What the data are read from, for `repr` and for errors."""
    columns: tuple[str, ...] | None = None
    """The names of a table's columns, in order."""
    classes: tuple[str, ...] | None = None
    """The names of class ids 0, 1, ..., where the source has them (folders, a standard set)."""
    pixel_max: int = 255
    """The largest value a pixel can take; the scanned digits of `named` have 16."""
    categories: tuple[str, ...] = ()
    """A table's columns that hold categories though they look like numbers."""


def require_as_many(labels: np.ndarray | None, rows: int, what: str) -> None:
    """Raises ValueError unless there is a label for each row."""
    if labels is not None and len(labels) != rows:
        raise ValueError(f"Dataset: {what}, and labels= has {len(labels)}; they must be equally many")
