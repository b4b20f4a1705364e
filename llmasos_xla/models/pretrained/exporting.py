"""The way back: a model's arrays written under the names, and as they lie, where published weights have them."""

import os
import pathlib

import jax
import numpy as np

from llmasos_xla.core import Variables
from llmasos_xla.models.config import Config
from llmasos_xla.models.pretrained.fill import table_of
from llmasos_xla.sharding.transfer import fetch


def export(config: Config, variables: Variables, path: str | os.PathLike, *, source: str = "huggingface") -> None:
    """Writes the variables as a safetensors file under a source's names, for the source's own programs to read.

    Args:
        config: the model.
        variables: its arrays; a network's are `network.variables`.
        path: the file, "model.safetensors".
        source: whose names and layouts, one that `Config.names` has a table for.

    Of several processes all have to call; the first one writes.

    Raises ValueError for a source without a table, FileNotFoundError for a folder that is not there.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: there is no folder {str(path.parent)!r}; make it first")
    table = table_of(config, source)
    ours = {**variables.params, **variables.state}
    arrays: dict[str, np.ndarray] = {}
    for name in table:
        array = fetch(ours[name.ours])
        parts = array if name.stacked else (array,)
        for theirs, part in zip(name.sources, parts, strict=True):
            arrays[theirs] = np.asarray(name.layout.theirs(part), order="C")
    if jax.process_index() == 0:
        from safetensors.numpy import save_file

        # What transformers asks of a file: that its arrays lie as torch has them.
        save_file(arrays, path, metadata={"format": "pt"})
