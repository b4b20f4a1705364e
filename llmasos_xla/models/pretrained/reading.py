"""One call for all formats of weights: which it is, the file's content says."""

import os
import pathlib

from llmasos_xla.models.pretrained.readers import index, keras, llama2c, torch
from llmasos_xla.storage import safetensors
from llmasos_xla.storage.views import Arrays, mapped

FORMATS = (
    "safetensors (also sharded, with its index)",
    "torch .pt, .pth, .th and .bin",
    "Keras .h5",
    "llama2.c .bin",
)
_IN_FOLDERS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".th", ".h5", ".hdf5")


def read(path: str | os.PathLike) -> Arrays:
    """The arrays of a file or folder of published weights, by the names that they have there.

    The format is found from the content, whatever the file is called. Nothing in it is executed, and an array's bytes
    are read when they are looked at: opening a file of any size takes a moment and next to no memory. The file must
    stay as it is while its arrays are in use.

    Args:
        path: a file; an index of several (model.safetensors.index.json); or a folder as Hugging Face has them.

    Raises FileNotFoundError, and ValueError with the reason for a file that is damaged, refused or of no known format.

    >>> import numpy as np, tempfile
    >>> from safetensors.numpy import save_file
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_file({"dense.weight": np.ones((2, 3), np.float32)}, path)
    >>> read(path)["dense.weight"].shape
    (2, 3)
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"pretrained: there is no file {str(path)!r} (looked from {pathlib.Path.cwd()})")
    if path.is_dir():
        path = weights_in(path)
    if path.name.endswith(".index.json"):
        return index.read(path, read)
    with open(path, "rb") as file:
        start = file.read(32)
    for format in (safetensors, torch, keras):
        if format.looks_like(start):
            return format.read(path)
    if llama2c.looks_like(mapped(path)) or path.suffix == ".bin":
        return llama2c.read(path)
    raise ValueError(
        f"pretrained: {path.name!r} is of no known format (it starts with {start[:8]!r}); known are "
        + ", ".join(FORMATS)
    )


def weights_in(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights of a folder: those that Hugging Face writes, else the only one that there is.

    Raises FileNotFoundError for a folder without, ValueError for several.
    """
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in _ENDINGS and p.is_file())
    if not found:
        raise FileNotFoundError(
            f"pretrained: the folder {str(folder)!r} has no file of weights, {_IN_FOLDERS[1]} for one, or one "
            f"that ends in {', '.join(_ENDINGS)}"
        )
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:5])
        raise ValueError(f"pretrained: the folder {str(folder)!r} has several files of weights, {names}; name one")
    return found[0]
