"""How far a fit has come, for others to see: a small file a rank, written now and then, which anybody may read.

A job of the queue (`lm.runtime`) has the variable LLMASOS_PROGRESS in its environment; elsewhere nothing is written.
"""

import json
import os
import pathlib
from typing import NamedTuple

VARIABLE = "LLMASOS_PROGRESS"
"""Names the files' common beginning."""


class Progress(NamedTuple):
    """What a rank told last."""

    step: int
    """Updates that are done."""
    epoch: int
    loss: float | None
    saves: bool
    """Whether the fit answers SIGTERM by saving itself."""
    at: float
    """When it was told, seconds since 1970."""


def write(beginning: str | os.PathLike, rank: int, told: Progress) -> None:
    """Tells it; others read the whole, or what was there before."""
    path = pathlib.Path(f"{os.fspath(beginning)}.progress-{rank}")
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(told._asdict()))
    beside.replace(path)


def read(beginning: str | os.PathLike) -> dict[int, Progress]:
    """What each rank told last; empty where none has yet."""
    path = pathlib.Path(beginning)
    found: dict[int, Progress] = {}
    for file in path.parent.glob(f"{path.name}.progress-*"):
        number = file.name.rpartition("-")[2]
        if number.isdigit():
            found[int(number)] = Progress(**json.loads(file.read_text()))
    return found
