"""Weights in shared memory: a file without a name that one process fills and another maps."""

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmasos_xla.storage import safetensors


def filled(arrays: Mapping[str, Any]) -> int:
    """A file descriptor of shared memory that holds the arrays, in safetensors' format; the caller closes it."""
    host = {name: np.asarray(a) for name, a in arrays.items()}
    handle = _nameless()
    try:
        with os.fdopen(os.dup(handle), "wb") as file:
            for piece in safetensors.pieces(host):
                file.write(piece)
    except BaseException:
        os.close(handle)
        raise
    return handle


def read(handle: int) -> dict[str, np.ndarray]:
    """The arrays in shared memory, as windows on it; raises ValueError for anything else."""
    size = os.fstat(handle).st_size
    if not size:
        raise ValueError("update: the shared memory is empty")
    with os.fdopen(os.dup(handle), "rb") as file:
        memory = np.memmap(file, np.uint8, "r", shape=(size,))
    try:
        return safetensors.views(memory)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"update: the shared memory holds no weights: {error}") from error


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("llmasos-weights", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
