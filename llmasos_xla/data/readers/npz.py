"""Reads .npz and .npy; never pickled objects, which would run code."""

import dataclasses
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.arrays import as_array, from_arrays
from llmasos_xla.data.readers.content import Content
from llmasos_xla.data.readers.files import existing

_X = ("x", "X", "images", "data", "inputs", "features", "arr_0")
_Y = ("y", "Y", "labels", "label", "targets", "target", "arr_1")


def from_npz(path: pathlib.Path, labels: np.ndarray | None, mode: str, x_key: str | None, y_key: str | None) -> Content:
    """The arrays of a .npz: by key, or x_train / train_images / x and their like by `mode`.

    Raises ValueError for a damaged file, pickled objects, and arrays that cannot be told (listing those there are).
    """
    # np.load leaves a file that it opened itself open if the archive in it is damaged.
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"Dataset: {path} is damaged or no .npz file: {error}") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"Dataset: {path} is a single array (.npy), not a .npz; read it with kind='npy'")
        names = list(archive.files)
        usual = [f"x_{mode}", f"{mode}_images", f"X_{mode}", f"{mode}_x", f"{mode}_data", *_X]
        x = _member(archive, _key(x_key, usual, names, path), path)
        y_name = _label_key(y_key, mode, names, path) if labels is None else None
        y = labels if y_name is None else _member(archive, y_name, path)
    return dataclasses.replace(from_arrays(x, y), name=str(path))


def from_npy(path: pathlib.Path, labels: Any) -> Content:
    """The array of a .npy, with labels as an array or as the path of another."""
    if isinstance(labels, str | pathlib.Path):
        labels = _load(existing(labels))
    elif labels is not None:
        labels = as_array(labels, "Dataset: labels")
    return dataclasses.replace(from_arrays(_load(path), labels), name=str(path))


def _load(path: pathlib.Path) -> np.ndarray:
    with path.open("rb") as file:
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(path, "", error) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"Dataset: {path} is a .npz archive, not a single array; read it with kind='npz'")
    return array


def _member(archive: Any, name: str, path: pathlib.Path) -> np.ndarray:
    try:
        return archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"the array {name!r} of ", error) from None


def _damaged(path: pathlib.Path, what: str, error: Exception) -> ValueError:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return ValueError(
            f"Dataset: {what}{path} holds pickled Python objects, which can run code and are not read; save it again "
            "with a plain dtype"
        )
    return ValueError(f"Dataset: {what}{path} is damaged or no NumPy file: {error}")


def _key(given: str | None, usual: list[str], names: list[str], path: pathlib.Path) -> str:
    if given is not None:
        if given not in names:
            raise errors.unknown("Dataset", f"array of {path}", given, names)
        return given
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise ValueError(
            f"Dataset: {path} holds the arrays {', '.join(names)}; say which are inputs and labels with x_key=, y_key="
        )
    return found


def _label_key(given: str | None, mode: str, names: list[str], path: pathlib.Path) -> str | None:
    if given is not None:
        return _key(given, [], names, path)
    usual = [f"y_{mode}", f"{mode}_labels", f"Y_{mode}", f"{mode}_y", f"{mode}_label", f"{mode}_targets", *_Y]
    return next((name for name in usual if name in names), None)
