"""Labels: text to class ids and back."""

import dataclasses
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.arrays import as_array

IGNORED = -100
"""The class id of what has no label: losses and metrics do not look there. The number is the field's own."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the labels of the training set were."""

    names: tuple[str, ...] | None = None
    """The class with id i is called `names[i]`; None if the labels were numbers already."""

    def encode(self, y: Any, who: str = "labels") -> np.ndarray:
        """Text to int32 class ids; whole numbers to int32; floats (targets, one-hot) to float32.

        `[rows, 1]` text or integers become `[rows]`; ids of -100 stand for no label. Raises ValueError for NaN, a label
        that training did not have, an id outside the named classes.
        """
        y = as_array(y, who)
        if y.ndim == 0:
            raise ValueError(f"{who}: a single label came ({y}); one a row is wanted: [rows]")
        if y.dtype.kind == "f":
            _require_finite(y, who)
            return y.astype(np.float32, copy=False)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.dtype.kind == "O":
            return self._ids(y, who)
        if y.size and (y.min() < np.iinfo(np.int32).min or y.max() > np.iinfo(np.int32).max):
            raise ValueError(f"{who}: {y.max()} does not fit int32; give class ids from 0, or floats")
        if self.names is not None and y.ndim == 1 and np.any(bad := outside(y, len(self.names))):
            row = int(np.argmax(bad))
            raise ValueError(
                f"{who}: label {y[row]} in row {row} is outside 0..{len(self.names) - 1}, the classes "
                f"{_list(self.names)}"
            )
        return y.astype(np.int32)

    def decode(self, ids: Any) -> np.ndarray:
        """Class ids to names, or the ids themselves where classes have no names."""
        ids = np.asarray(ids)
        if self.names is None:
            return ids
        if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(self.names)):
            raise ValueError(
                f"decode_labels: class ids from 0 to {len(self.names) - 1} are wanted, {ids.dtype} {ids} came"
            )
        return np.array(self.names)[ids]

    def _ids(self, y: np.ndarray, who: str) -> np.ndarray:
        if self.names is None:
            raise TypeError(f"{who}: text labels came ({y.flat[0]!r}); the model was trained on numbers")
        id_of = {name: i for i, name in enumerate(self.names)}
        try:
            return np.fromiter((id_of[value] for value in y.flat), np.int32, y.size).reshape(y.shape)
        except KeyError as error:
            raise errors.unknown(who, "label", error.args[0], self.names) from None


def outside(y: np.ndarray, classes: int) -> np.ndarray:
    """Which integer labels are neither of 0 .. classes - 1 nor -100, no label."""
    return ((y < 0) & (y != IGNORED)) | (y >= classes)


def _require_finite(y: np.ndarray, who: str) -> None:
    bad = ~np.isfinite(y)
    if bad.any():
        row = int(np.argmax(bad.reshape(len(y), -1).any(axis=1)))
        raise ValueError(f"{who}: {int(bad.sum())} labels are NaN or infinite, the first in row {row}; mend those rows")


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
