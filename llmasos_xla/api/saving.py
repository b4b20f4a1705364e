"""Model files: a JSON specification and arrays by name, as HDF5 (.h5) or safetensors. Never pickle.

Reading checks everything before it is used and runs nothing; writing replaces the old file in one step, so that a
process killed in the middle leaves the old file whole.
"""

import json
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llmasos_xla.storage.atomic import atomically
from llmasos_xla.storage.bundle import Bundle, Content

FORMAT = "llmasos_xla/1"
_SPEC = "llmasos_xla"
# Larger than any specification that fits a person's head, smaller than what would fill memory.
_MOST_SPEC_BYTES = 64 << 20


class Saved(NamedTuple):
    """The content of a model file."""

    spec: dict[str, Any]
    """What rebuilds the model: layers, preprocessing, loss, optimizer."""
    arrays: dict[str, np.ndarray]
    """`{"params/dense/kernel": ...}`"""


def write(path: str | os.PathLike, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Writes a model file atomically; the format follows the ending: .h5, .hdf5 or .safetensors."""
    path = pathlib.Path(path)
    writer = {".h5": _write_h5, ".hdf5": _write_h5, ".safetensors": _write_safetensors}.get(path.suffix)
    if writer is None:
        raise ValueError(f"save: {path.name!r} ends in {path.suffix!r}; wanted .h5 or .safetensors")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {str(path.parent)!r}; make it first")
    text = json.dumps({"format": FORMAT, **spec}, allow_nan=False)
    atomically(path, lambda temporary: writer(temporary, text, arrays))
    return path


def read(path: str | os.PathLike) -> Saved:
    """Reads a model file.

    Raises FileNotFoundError, or ValueError with the reason if the file is damaged or is no model of this package.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"load: {str(path)!r} is a folder; wanted a .h5 or .safetensors file")
    if not path.exists():
        raise FileNotFoundError(f"load: there is no file {str(path)!r} (looked from {pathlib.Path.cwd()})")
    with open(path, "rb") as file:
        start = file.read(8)
    reader = _read_h5 if start == b"\x89HDF\r\n\x1a\n" else _read_safetensors
    if reader is _read_safetensors and path.suffix in (".h5", ".hdf5"):
        raise ValueError(
            f"load: {path.name!r} is no HDF5 file (it starts with {start!r}); it is damaged or something else"
        )
    text, arrays = reader(path)
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load: the specification in {path.name!r} is damaged: {error}") from error
    if not isinstance(spec, dict) or not str(spec.get("format", "")).startswith("llmasos_xla/"):
        raise ValueError(f"load: {path.name!r} holds no model of llmasos_xla")
    if spec["format"] != FORMAT:
        raise ValueError(f"load: {path.name!r} is of format {spec['format']!r}, this version reads {FORMAT!r}; upgrade")
    return Saved(spec, arrays)


def of_bundle(path: str | os.PathLike) -> Saved:
    """The model in a `.lmx` bundle; raises ValueError for one that holds programs alone, and as `Bundle.open` does."""
    return of_content(Bundle.open(path).content)


def of_content(content: Content) -> Saved:
    """As `of_bundle`, of one that was opened."""
    if content.model is None:
        raise ValueError(
            f"load: {content.name!r} was exported from functions, and holds no model to rebuild; "
            "lm.Deployer serves it, and its programs run as they are"
        )
    return Saved(content.model, dict(content.arrays))


def _write_h5(path: str, text: str, arrays: Mapping[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        # A data set, not an attribute: attributes end at 64 KiB.
        file.create_dataset(_SPEC, data=np.frombuffer(text.encode(), np.uint8))
        for name, array in arrays.items():
            stored, dtype = _storable(array)
            dataset = file.create_dataset(name, data=stored)
            if dtype:
                dataset.attrs["dtype"] = dtype


def _read_h5(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    import h5py

    arrays: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            if _SPEC not in file or not isinstance(_member(file, _SPEC), h5py.Dataset):
                keras = (
                    " (it looks like a Keras file; this package reads its own)" if "model_config" in file.attrs else ""
                )
                raise ValueError(f"load: {path.name!r} holds no model of llmasos_xla{keras}")
            spec = _member(file, _SPEC)
            if spec.dtype != np.uint8 or spec.size > _MOST_SPEC_BYTES:
                raise ValueError(f"load: the specification in {path.name!r} is damaged")
            text = spec[()].tobytes().decode()
            size = path.stat().st_size
            for name, dataset in _datasets(file, ""):
                if name == _SPEC:
                    continue
                if dataset.external or dataset.is_virtual or dataset.dtype.hasobject:
                    raise ValueError(f"load: {path.name!r} points outside itself in {name!r}; it is refused")
                if dataset.nbytes > max(64 * size, 1 << 20):
                    # An array that claims far more than the file holds would fill memory with nothing.
                    raise ValueError(
                        f"load: {name!r} in {path.name!r} claims {dataset.nbytes} bytes, the file has {size}"
                    )
                arrays[name] = _restored(dataset[()], dataset.attrs.get("dtype"))
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"load: {path.name!r} is damaged or cut off: {error}") from error
    return text, arrays


def _member(group: Any, name: str) -> Any:
    import h5py

    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"load: {name!r} is a link that leads elsewhere; the file is refused")
    return group[name]


def _datasets(group: Any, prefix: str, depth: int = 0) -> Any:
    import h5py

    if depth > 32:
        raise ValueError("load: the file's groups are nested too deep; it is refused")
    for name in group:
        member = _member(group, name)
        if isinstance(member, h5py.Group):
            yield from _datasets(member, f"{prefix}{name}/", depth + 1)
        elif isinstance(member, h5py.Dataset):
            yield f"{prefix}{name}", member


def _write_safetensors(path: str, text: str, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, path, metadata={_SPEC: text})


def _read_safetensors(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_SPEC)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise ValueError(f"load: {path.name!r} is no HDF5 or safetensors file, or it is damaged: {error}") from error
    if text is None:
        raise ValueError(
            f"load: {path.name!r} holds arrays but no model of llmasos_xla; lm.load_pretrained reads published weights"
        )
    return text, arrays


def _storable(array: Any) -> tuple[np.ndarray, str | None]:
    # HDF5 has no bfloat16; its bits are kept as they are.
    array = np.asarray(array)
    return (array.view(np.uint16), "bfloat16") if array.dtype.name == "bfloat16" else (array, None)


def _restored(array: Any, dtype: Any) -> np.ndarray:
    array = np.asarray(array)
    if dtype != "bfloat16":
        return array
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)
