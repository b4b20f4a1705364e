"""A copy is held to our own answers before anybody gets it."""

import contextlib
import json
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from llmasos_xla.deployment.targets.subject import Arrays, Subject
from llmasos_xla.storage.atomic import atomically, folder_atomically

MANIFEST = "export.json"
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": 0.2}
"""How far a copy may be from our own outputs by default, in parts of the largest of them, or of 1 if that is more."""


class Export(NamedTuple):
    """An export that was checked."""

    path: pathlib.Path
    target: str
    difference: float
    """The largest difference between an output of the copy and our own, over all outputs of all checks."""
    precision: str = "float32"
    checked_on: str = "cpu"
    """Where the copy ran for that."""

    def __str__(self) -> str:
        what = f"{self.path} ({self.target}, {self.precision})"
        return f"{what}: largest difference from our outputs {self.difference:.3g} on {self.checked_on}"


class DifferentOutputError(ValueError):
    """A copy that gives other outputs than the model does; it was not handed over."""


def compare(subject: Subject, run: Callable[[Arrays], Mapping[str, Any]], target: str, tolerance: float) -> float:
    """The largest difference of a copy from our own answers.

    Args:
        run: what the copy gives for inputs by name.
        tolerance: the largest that is let pass, in parts of the largest output, or of 1 if that is more.

    Raises DifferentOutputError above that, and for outputs of other shapes or that are not numbers where ours are;
    ValueError for a copy that cannot run.
    """

    def ran(request: Arrays) -> Mapping[str, Any]:
        try:
            return run(request)
        # Each runtime has errors of its own.
        except Exception as error:
            why = " ".join(str(error).split())[:400]
            raise ValueError(f"export: {target}: the copy cannot run: {why}{subject.way_out()}") from error

    return max(largest(request, answers, ran(request), target, tolerance) for request, answers in subject.checks)


def largest(
    request: Mapping[str, Any], answers: Mapping[str, Any], given: Mapping[str, Any], target: str, tolerance: float
) -> float:
    """The largest difference of what a copy gave for one request from our own answers; raises as `compare` does."""
    most = 0.0
    for name, own in answers.items():
        came = np.asarray(given[name])
        if came.shape != own.shape:
            raise DifferentOutputError(
                f"export: {target}: the copy's {name!r} has the shape {came.shape} where ours has {own.shape}, for "
                f"inputs of { ({n: a.shape for n, a in request.items()}) }"
            )
        mine, theirs = own.astype(np.float64), came.astype(np.float64)
        finite = np.isfinite(mine)
        if not np.array_equal(finite, np.isfinite(theirs)):
            raise DifferentOutputError(
                f"export: {target}: the copy's {name!r} is not finite where ours is, or is where not"
            )
        gap = float(np.max(np.abs(mine[finite] - theirs[finite]), initial=0.0))
        allowed = tolerance * max(1.0, float(np.max(np.abs(mine[finite]), initial=0.0)))
        if gap > allowed:
            raise DifferentOutputError(
                f"export: {target}: the copy's {name!r} differs from ours by up to {gap:.3g}, more than the "
                f"{allowed:.3g} of tolerance={tolerance:g}; nothing was written"
            )
        most = max(most, gap)
    return most


def as_file(path: pathlib.Path, fill: Callable[[str], float]) -> float:
    """Writes a file with `fill(temporary path)`, which checks it and tells the difference; keeps none it refuses."""
    found: list[float] = []
    atomically(path, lambda temporary: found.append(fill(temporary)))
    return found[0]


def as_folder(
    path: pathlib.Path, subject: Subject, about: dict[str, Any], fill: Callable[[pathlib.Path], float]
) -> float:
    """The same for a folder, which gets an `export.json` of what is in it.

    Raises FileExistsError where there is something else than an earlier export.
    """
    if path.exists() and not (path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))):
        raise FileExistsError(f"export: {str(path)!r} is there and is no earlier export; choose another folder")
    found: list[float] = []

    def filled(folder: pathlib.Path) -> None:
        found.append(fill(folder))
        described = {**about, **described_tensors(subject), "difference": found[0]}
        (folder / MANIFEST).write_text(json.dumps(described, indent=1) + "\n")

    folder_atomically(path, filled)
    return found[0]


def described_tensors(subject: Subject) -> dict[str, Any]:
    """Inputs, outputs and class names as JSON values."""
    outputs = {name: (str(a.dtype), list(a.shape)) for name, a in subject.checks[0][1].items()}
    return {
        "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in subject.inputs],
        "outputs": [
            {"name": name, "dtype": dtype, "shape": [subject.rows or "rows", *shape[1:]]}
            for name, (dtype, shape) in outputs.items()
        ],
        **({} if subject.labels is None else {"labels": list(subject.labels)}),
    }


def tolerance_of(precision: str, tolerance: float | None) -> float:
    """The tolerance that was asked for, or the precision's own.

    Raises ValueError for one that every copy would pass.
    """
    if tolerance is None:
        return TOLERANCES[precision]
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"export: tolerance is a number from 0, {tolerance!r} came")
    return tolerance


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keeps what these packages log below errors to themselves: an export prints nothing."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
