"""A file mapped into memory, and arrays that are windows on it: what is not looked at is not read."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import ml_dtypes
import numpy as np

# Arrays that repeat their storage, as torch's expand makes them, may be larger than it only up to here.
_MOST_REPEATED = 1 << 20


@final
class Arrays(Mapping):  # its items' types unsaid: who checks them by looking would read arrays
    """The arrays of a file of weights by the names that they have there.

    An array is a read-only window on the mapped file, so that looking one up costs nothing; HDF5's chunked arrays are
    read when they are looked up.

    Args:
        format: "safetensors", "torch", "keras" or "llama2.c".
        arrays: name -> the array, or a function that reads it.
        config: the model's sizes, where the file tells them.
    """

    def __init__(
        self,
        format: str,
        arrays: Mapping[str, np.ndarray | Callable[[], np.ndarray]],
        config: Mapping[str, Any] | None = None,
    ):
        self.format, self.config = format, config
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._arrays[name]
        return found() if callable(found) else found

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Arrays({self.format}, {len(self)} arrays)"


def mapped(path: str | os.PathLike) -> np.ndarray:
    """The bytes of a file, read as they are looked at."""
    path = pathlib.Path(path)
    if not path.stat().st_size:
        raise ValueError(f"pretrained: {path.name!r} is empty")
    return np.memmap(path, np.uint8, "r")


def window(
    memory: np.ndarray,
    dtype: np.dtype,
    shape: Sequence[int],
    offset: int,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """The array that begins at byte `offset` of the memory; `strides` count values, row-major if None.

    Raises ValueError for one that does not lie within the memory.
    """
    shape = tuple(shape)
    if any(n < 0 for n in shape) or offset < 0 or len(shape) > 32:
        raise ValueError(f"no array has the shape {str(shape)[:80]} at byte {offset}")
    count = 1
    for n in shape:
        count *= n
    if strides is None:
        last = count - 1
    else:
        strides = tuple(strides)
        if len(strides) != len(shape) or any(s < 0 for s in strides):
            raise ValueError(f"no array of shape {str(shape)[:80]} has the strides {str(strides)[:80]}")
        last = sum((n - 1) * s for n, s in zip(shape, strides)) if count else -1
    if offset + (last + 1) * dtype.itemsize > memory.size:
        raise ValueError(
            f"an array of shape {str(shape)[:80]} at byte {offset} ends behind the {memory.size} bytes there are"
        )
    if count > max(last + 1, _MOST_REPEATED) or max(shape, default=0) > 1 << 40:
        raise ValueError(f"an array of shape {str(shape)[:80]} is made of {last + 1} values")
    if not count:
        return np.zeros(shape, dtype)
    steps = None if strides is None else tuple(s * dtype.itemsize for s in strides)
    # Read-only, as the mapped memory is.
    return np.ndarray(shape, dtype, memory, offset, steps)


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
