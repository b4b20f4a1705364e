"""Asks the contestants in turns and compares what they give."""

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from side_by_side import report
from side_by_side.models.contestants import CONTESTANTS
from side_by_side.models.rows import ROWS, Row
from side_by_side.process import NoSpeedError, Process, started
from side_by_side.turns import turn, turns
from side_by_side.values import deviation

_TABLE = "side_by_side.models.contestants"
_READY_SECONDS = 900


@dataclasses.dataclass
class Result:
    """What one contestant did on one row: seconds a call and cores that others kept busy, one value a round."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    others: list[float] = dataclasses.field(default_factory=list)
    ready: float = 0.0
    deviation: float | None = None
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
    """Lets the contestants run a row: each its warm-up, then `rounds` rounds in turns of about `seconds`."""
    row = ROWS[row_name]
    results = {name: Result() for name in names}
    wanted: np.ndarray | None = None
    with contextlib.ExitStack() as stack:
        ready: dict[str, tuple[Process, int]] = {}
        for name, result in results.items():
            say(f"{row_name}: {name} warms up")
            try:
                process = stack.enter_context(started(pythons(name), _TABLE, name, CONTESTANTS[name], row_name))
                result.versions = process.versions
                answer = process.read(_READY_SECONDS)
                process.stop()
                result.ready = answer["ready"]
                found = np.asarray(answer["results"][0])
                wanted = found if wanted is None else wanted
                result.deviation = _checked(row, found, wanted)
                ready[name] = process, max(1, math.ceil(seconds / answer["seconds"]))
            except NoSpeedError as failure:
                result.failed = str(failure)
                say(f"{row_name}: {name}: {failure}")
        for number in range(rounds):
            for name in turns(list(ready), number):
                process, calls = ready[name]
                try:
                    with turn(process) as others:
                        process.ask(calls=calls)
                        results[name].seconds.append(process.read(_READY_SECONDS)["seconds"])
                    results[name].others.append(others.cores)
                except NoSpeedError as failure:
                    results[name].failed = str(failure)
                    del ready[name]
    return results


def _checked(row: Row, found: np.ndarray, wanted: np.ndarray) -> float:
    """How far the results are from those of the first contestant; none of the losses of a training can be equal."""
    far = deviation(found, wanted)
    if not far <= row.limit:
        raise NoSpeedError(f"gives something else: deviation {far:.3g}, at most {row.limit} was wanted")
    return far


def markdown(about: Mapping[str, Any], tables: Mapping[str, Mapping[str, Result]]) -> str:
    """The whole report."""
    every = [result for results in tables.values() for result in results.values()]
    busy = [cores for result in every for cores in result.others]
    lines = [
        report.head(about, [r.versions for r in every], statistics.median(busy) if busy else math.nan),
        "",
        "| row | contestant | call, ms | min..max | tokens/s | ours / this | deviation |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row_name, results in tables.items():
        ours = results.get("ours")
        for name, result in results.items():
            label = CONTESTANTS[name].label
            if result.failed:
                lines.append(report.cells(row_name, label, result.failed, "", "", "", ""))
                continue
            middle = statistics.median(result.seconds)
            tokens = ROWS[row_name].tokens * ROWS[row_name].batch / middle
            over = None if ours is None or ours.failed else report.ratio(ours.seconds, result.seconds)
            lines.append(
                report.cells(
                    row_name,
                    label,
                    report.number(1000 * middle),
                    f"{report.number(1000 * min(result.seconds))}..{report.number(1000 * max(result.seconds))}",
                    f"{tokens:.0f}" if tokens else "",
                    report.times(over),
                    f"{result.deviation:.1g}",
                )
            )
    return "\n".join(lines)


def document(about: Mapping[str, Any], tables: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
    """The same for JSON, with every round."""
    rows = {name: {n: dataclasses.asdict(r) for n, r in results.items()} for name, results in tables.items()}
    return {"machine": dict(about), "rows": rows}
