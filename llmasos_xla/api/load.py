"""Opening a saved model."""

import os
from typing import Literal

from llmasos_xla.api import files, keeping, saving
from llmasos_xla.api.door import Door
from llmasos_xla.api.model import Model
from llmasos_xla.api.network import Network
from llmasos_xla.api.sequential import Sequential
from llmasos_xla.data.tokenizers.chat_template import ChatTemplate
from llmasos_xla.data.tokenizers.keeping import from_json

DOORS = {"Sequential": Sequential, "Model": Model, "Network": Network}


def load(path: str | os.PathLike, *, step: int | Literal["best"] | None = None) -> Door:
    """The model that `save` or `export` wrote: weights and preprocessing, ready to predict or to be trained on.

    What `save` wrote has its training state, too. A folder that a fit has saved itself in opens as well: the newest of
    its checkpoints, or that of `step`, or the "best" by the metric of its `Checkpoint`.

    Returns the door it was saved from, `Sequential`, `Model` or `Network`. Nothing in the file is executed.

    Raises FileNotFoundError, or ValueError with the reason for a file that is damaged or no model.
    """
    if os.path.isdir(path):
        saved = keeping.read(path, step)
    elif os.fspath(path).endswith(".lmx"):
        saved = saving.of_bundle(path)
    elif step is not None:
        raise ValueError(f"load: step={step!r} is for a folder of checkpoints, {str(path)!r} is none")
    else:
        saved = saving.read(path)
    return of_saved(saved)


def of_saved(saved: saving.Saved) -> Door:
    """The model of a file that was read; raises ValueError for one that does not fit together."""
    learner, entries = files.from_file(saved)
    door = DOORS.get(str(entries.get("door")))
    try:
        model = door._from_door(entries) if door else None
    except (KeyError, TypeError, ValueError):
        model = None
    if model is None:
        raise ValueError(f"load: the file's door {str(entries)[:80]!r} is not one of {', '.join(DOORS)}")
    model.learner = learner
    if isinstance(model, Network) and entries.get("tokenizer") is not None:
        model.tokenizer = from_json(entries["tokenizer"])
    if isinstance(model, Network) and entries.get("chat_template") is not None:
        model.chat_template = ChatTemplate.from_json(entries["chat_template"])
    if isinstance(model, Network) and entries.get("class_names") is not None:
        model.class_names = tuple(map(str, entries["class_names"]))
    return model
