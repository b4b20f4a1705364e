"""Keras' HDF5 files: weights alone or whole models, of Keras 2 and 3."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from llmasos_xla.storage.views import Arrays, mapped, window

_DEEPEST, _MOST_SETS = 32, 1 << 20


def looks_like(start: bytes) -> bool:
    """Whether a file that starts so is HDF5."""
    return start[:8] == b"\x89HDF\r\n\x1a\n"


def read(path: str | os.PathLike) -> Arrays:
    """The arrays of one file, windows on it where they lie in one piece.

    A layer's weight is named as Keras names it, "conv2d/kernel" without the ":0" of TensorFlow; in Keras 3's
    .weights.h5, which has no names, by its path, "layers/conv2d/vars/0". The optimizer's state is left out.

    Raises ValueError for a damaged file and for one that points outside itself.
    """
    import h5py

    name = pathlib.Path(path).name
    memory = mapped(path)
    try:
        with h5py.File(path, "r") as file:
            weights = file["model_weights"] if "model_weights" in file and _is_own(file, "model_weights") else file
            arrays = {}
            for key, dataset in _datasets(weights, "", 0):
                if key.split("/")[0] in ("optimizer_weights", "optimizer"):
                    continue
                arrays[key] = _array(path, memory, dataset, key)
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeError, OverflowError) as error:
        raise ValueError(f"pretrained: the HDF5 file {name!r} is damaged or cut off: {error}") from error
    except ValueError as error:
        raise ValueError(f"pretrained: the HDF5 file {name!r} is refused: {error}") from error
    if not arrays:
        raise ValueError(f"pretrained: the HDF5 file {name!r} holds no arrays")
    return Arrays("keras", _named(arrays))


def _named(arrays: dict[str, Any]) -> dict[str, Any]:
    """Keras 2 repeats a layer's name: its group has the layer's name, and the weight's name has it too."""
    short = {key: key.removesuffix(":0").split("/", 1)[-1] for key in arrays}
    keras_2 = all(key.endswith(":0") or key.count("/") >= 2 for key in arrays) and not any(
        "/vars/" in k for k in arrays
    )
    if not keras_2 or len(set(short.values())) < len(short):
        short = {key: key.removesuffix(":0") for key in arrays}
    return {short[key]: array for key, array in arrays.items()}


def _datasets(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    import h5py

    if depth > _DEEPEST:
        raise ValueError("its groups are nested too deep")
    for count, name in enumerate(group):
        if count > _MOST_SETS:
            raise ValueError("it has too many arrays")
        if not _is_own(group, name):
            raise ValueError(f"{prefix}{name} is a link that leads elsewhere")
        member = group[name]
        if isinstance(member, h5py.Group):
            yield from _datasets(member, f"{prefix}{name}/", depth + 1)
        elif isinstance(member, h5py.Dataset):
            yield f"{prefix}{name}", member


def _is_own(group: Any, name: str) -> bool:
    import h5py

    return isinstance(group.get(name, getlink=True), h5py.HardLink)


def _array(path: Any, memory: np.ndarray, dataset: Any, name: str) -> np.ndarray | Callable[[], np.ndarray]:
    if dataset.external or dataset.is_virtual or dataset.dtype.hasobject or dataset.dtype.names:
        raise ValueError(f"{name} points outside the file or holds no numbers")
    if dataset.shape is None:
        raise ValueError(f"{name} is empty")
    at = dataset.id.get_offset()
    if dataset.chunks is None and at is not None:
        return window(memory, dataset.dtype, dataset.shape, at)
    if dataset.nbytes > max(64 * memory.size, 1 << 20):
        # An array that claims far more than the file holds would fill memory with nothing.
        raise ValueError(f"{name} claims {dataset.nbytes} bytes, the file has {memory.size}")
    place = dataset.name

    def read() -> np.ndarray:
        import h5py

        try:
            with h5py.File(path, "r") as file:
                return np.asarray(file[place])
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"pretrained: {name!r} of the HDF5 file {path!s} is damaged: {error}") from error

    return read
