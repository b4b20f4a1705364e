"""What a fit tells the queue that runs it: how far it has come, its epochs' metrics, and what it needs to be granted.

Small files with a common beginning, one a rank. A job of the queue (`lm.runtime`) has the variable LLMASOS_PROGRESS in
its environment; elsewhere nothing is written.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

EXIT_SAVED = 75
"""Exit status of a process that was told to end and has saved its work (EX_TEMPFAIL: to be tried again)."""

VARIABLE = "LLMASOS_PROGRESS"
"""Names the files' common beginning."""
ASKED = "LLMASOS_ASKED"
"""Is there where a fit has to ask for its bytes, once they are known."""


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
    """Tells it."""
    _write(f"{os.fspath(beginning)}.progress-{rank}", told._asdict())


def read(beginning: str | os.PathLike) -> dict[int, Progress]:
    """What each rank told last; empty where none has yet."""
    return {rank: Progress(**told) for rank, told in _read(beginning, "progress").items()}


class Need(NamedTuple):
    """What a rank needs to train, as the compiler and the system say before its first step."""

    host: int
    """Bytes of the machine's memory, of the whole process."""
    device: int
    """Bytes of each device that has memory of its own."""


def ask(beginning: str | os.PathLike, rank: int, need: Need) -> None:
    """Asks for it; `is_granted` tells when there is room."""
    _write(f"{os.fspath(beginning)}.need-{rank}", need._asdict())


def needs(beginning: str | os.PathLike) -> dict[int, Need]:
    """What each rank has asked for."""
    return {rank: Need(**told) for rank, told in _read(beginning, "need").items()}


def grant(beginning: str | os.PathLike) -> None:
    """Lets all ranks begin."""
    pathlib.Path(f"{os.fspath(beginning)}.granted").touch()


def is_granted(beginning: str | os.PathLike) -> bool:
    """Whether they may."""
    return os.path.exists(f"{os.fspath(beginning)}.granted")


class Report(NamedTuple):
    """Values at a step of a job: a fit's metrics after an epoch, or what a function reports of itself."""

    step: int
    values: dict[str, float]
    at: float
    """When it was told, seconds since 1970."""


VALUE = "value"
"""What a number without a name is called in a report."""


def report(beginning: str | os.PathLike, told: Report) -> None:
    """Adds it to what this attempt of the job has reported."""
    line = json.dumps(told._asdict()) + "\n"
    # One write, at the end of the file: a reader sees all of the line or, for a moment, none of its end.
    with open(f"{os.fspath(beginning)}.reports", "ab", buffering=0) as file:
        file.write(line.encode())


class Reports:
    """Reads what all attempts of a job have reported.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder, self._at = pathlib.Path(folder), dict[str, int]()

    def new(self) -> list[Report]:
        """What has come since the last call, in order of time."""
        found = []
        for path in self._folder.glob("*.reports"):
            with open(path, "rb") as file:
                file.seek(self._at.get(path.name, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._at[path.name] = self._at.get(path.name, 0) + len(whole + newline)
            found += [Report(**json.loads(line)) for line in whole.splitlines()]
        return sorted(found, key=lambda told: told.at)


def _write(path: str, told: dict[str, Any]) -> None:
    # Whole, or as it was before.
    beside = pathlib.Path(path + ".new")
    beside.write_text(json.dumps(told))
    beside.replace(path)


def _read(beginning: str | os.PathLike, kind: str) -> dict[int, dict[str, Any]]:
    path, found = pathlib.Path(beginning), {}
    for file in path.parent.glob(f"{path.name}.{kind}-*"):
        number = file.name.rpartition("-")[2]
        if number.isdigit():
            found[int(number)] = json.loads(file.read_text())
    return found
