"""A golden: what another framework's model gave, with all that is needed to ask ours the same. No weights are in it."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

FOLDER = pathlib.Path(__file__).parent


class Golden(NamedTuple):
    """What the original gave for a few inputs."""

    kind: str
    """The class of our configuration."""
    source: str
    """Whose names the weights have: "huggingface", "torch"."""
    config: dict[str, Any]
    """Hugging Face's config.json; for other sources the arguments of our configuration."""
    options: dict[str, Any]
    """Arguments that our configuration gets besides Hugging Face's, such as the task."""
    arrays: dict[str, tuple[int, ...]]
    """Names and shapes of the original's weights, which `seeded` draws."""
    cases: list[dict[str, np.ndarray]]
    """Inputs by our names, "output", and where only some of the output means anything "valid", of its leading shape."""

    def write(self, name: str, folder: pathlib.Path) -> None:
        """Writes folder/name.npz; a name may have a folder of its own."""
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{i}/{key}": value for i, case in enumerate(self.cases) for key, value in case.items()}
        about = {k: getattr(self, k) for k in ("kind", "source", "config", "options", "arrays")}
        np.savez_compressed(folder / f"{name}.npz", about=np.array(json.dumps(about, sort_keys=True)), **arrays)


def read(path: pathlib.Path) -> Golden:
    """The golden of a file."""
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        cases: dict[int, dict[str, np.ndarray]] = {}
        for key in file.files:
            if key != "about":
                number, name = key.split("/", 1)
                cases.setdefault(int(number), {})[name] = file[key]
    about["arrays"] = {name: tuple(shape) for name, shape in about["arrays"].items()}
    return Golden(**about, cases=[cases[i] for i in sorted(cases)])


def folder() -> pathlib.Path:
    """Where goldens are read: those of this folder, or those that `make parity` has just made."""
    return pathlib.Path(os.environ.get("LLMASOS_GOLDENS", FOLDER))
