"""Starts the contestants, asks them in turns, and lets only one of them run at a time."""

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from side_by_side.process import NoSpeedError, Process, started
from side_by_side.steps.contestants import CONTESTANTS, PADDING
from side_by_side.steps.reference import expected
from side_by_side.steps.rows import ROWS, Row
from side_by_side.turns import turn, turns
from side_by_side.values import deviation

_TABLE = "side_by_side.steps.contestants"
_WARM_UP_SECONDS = 900
_ROUND_SECONDS = 600
_MOST_EPOCHS = 50


@dataclasses.dataclass
class Result:
    """What one contestant did on one row.

    Attributes:
        steps: milliseconds a step, one value a round.
        epochs: seconds an epoch, one value a round.
        compile_seconds: by how much the first epoch was longer than the warm-up's later ones.
        score: mean loss of the last warm-up epoch, or the prediction's deviation from float64.
        others: cores that other processes kept busy, one value a round.
        versions: of Python and the packages.
        failed: why there is no speed.
    """

    steps: list[float] = dataclasses.field(default_factory=list)
    epochs: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None
    score: float | None = None
    others: list[float] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: str | None = None


def compete(
    row_name: str,
    names: Sequence[str],
    pythons: Callable[[str], str | None],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Result]:
    """Lets the contestants run a row: each its warm-up, then `rounds` rounds in turns.

    A round of a contestant is one epoch that does not count and as many that do as fill `seconds`. `pythons` gives the
    interpreter of a contestant, or None if there is none; `say` is told what happens.
    """
    row = ROWS[row_name]
    results = {name: Result() for name in names}
    wanted = {} if row.trains else {padding: expected(row, padding) for padding in {PADDING[name] for name in names}}
    with contextlib.ExitStack() as stack:
        ready: dict[str, tuple[Process, int]] = {}
        for name, result in results.items():
            say(f"{row_name}: {name} warms up")
            try:
                process = stack.enter_context(started(pythons(name), _TABLE, name, CONTESTANTS[name], row_name))
                ready[name] = process, _warm_up(process, row, result, seconds, wanted.get(PADDING[name]))
            except NoSpeedError as failure:
                result.failed = str(failure)
                say(f"{row_name}: {name}: {failure}")
        for number in range(rounds):
            for name in turns(list(ready), number):
                process, epochs = ready[name]
                try:
                    _round(process, row, results[name], epochs, wanted.get(PADDING[name]))
                except NoSpeedError as failure:
                    results[name].failed = str(failure)
                    say(f"{row_name}: {name}: {failure}")
                    del ready[name]
            say(f"{row_name}: round {number + 1} of {rounds}")
    return results


def _warm_up(process: Process, row: Row, result: Result, seconds: float, wanted: np.ndarray | None) -> int:
    result.versions = process.versions
    answer = process.read(_WARM_UP_SECONDS)
    process.stop()
    later = statistics.median(answer["seconds"][1:])
    result.compile_seconds = max(0.0, answer["seconds"][0] - later)
    scores = [_score(found, wanted) for found in answer["results"]]
    result.score = scores[-1]
    # Written so that NaN fails too.
    if not scores[-1] < row.limit:
        what = "trains wrongly: the loss went" if row.trains else "predicts wrongly: the deviation from float64 was"
        listed = ", ".join(f"{score:.3g}" for score in scores)
        raise NoSpeedError(f"{what} {listed}, below {row.limit} was wanted; no speed is shown")
    return min(_MOST_EPOCHS, math.ceil(seconds / later))


def _round(process: Process, row: Row, result: Result, epochs: int, wanted: np.ndarray | None) -> None:
    with turn(process) as others:
        process.ask(epochs=1 + epochs)
        answer = process.read(_ROUND_SECONDS)
    scores = [_score(found, wanted) for found in answer["results"]]
    # A loss may wander, a prediction may not.
    fine = all(math.isfinite(score) if row.trains else score < row.limit for score in scores)
    if not fine:
        raise NoSpeedError(f"went wrong in a measured round: {scores[-1]:.3g}; no speed is shown")
    epoch = statistics.fmean(answer["seconds"][1:])
    result.epochs.append(epoch)
    result.steps.append(1000 * epoch / row.steps)
    result.others.append(others.cores)


def _score(found: float | list[float], wanted: np.ndarray | None) -> float:
    return float(found) if wanted is None else deviation(np.asarray(found), wanted)  # type: ignore[arg-type]
