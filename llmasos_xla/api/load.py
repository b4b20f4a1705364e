"""Opening a saved model."""

import os

from llmasos_xla.api import files, saving
from llmasos_xla.api.door import Door
from llmasos_xla.api.model import Model
from llmasos_xla.api.sequential import Sequential

DOORS = {"Sequential": Sequential, "Model": Model}


def load(path: str | os.PathLike) -> Door:
    """The model that `save` wrote: weights, preprocessing and training state, ready to predict or to be trained on.

    Returns the door it was saved from, `Sequential` or `Model`. Nothing in the file is executed.

    Raises FileNotFoundError, or ValueError with the reason for a file that is damaged or no model.
    """
    learner, entries = files.from_file(saving.read(path))
    door = DOORS.get(str(entries.get("door")))
    try:
        model = door._from_door(entries) if door else None
    except (KeyError, TypeError, ValueError):
        model = None
    if model is None:
        raise ValueError(f"load: the file's door {str(entries)[:80]!r} is not one of {', '.join(DOORS)}")
    model.learner = learner
    return model
