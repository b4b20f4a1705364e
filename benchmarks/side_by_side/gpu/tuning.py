"""Finds the sizes with which kernels run fastest, and where XLA is faster, and writes the device's tuned table.

For each row of the benchmark: every entry that an op lets be tried is timed by the part of the problem that it changes,
with the heuristic's own sizes beside it. The best replaces these where it gains more than measuring again would. What
fails, or differs from XLA, is no candidate. Then kernels and XLA are timed against each other.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmasos_xla.kernels._triton.tuned import FORMAT, slug
from side_by_side.gpu import ops
from side_by_side.gpu.device import Clock, LostError
from side_by_side.gpu.phases import Run, counted
from side_by_side.gpu.problem import PARTS, Row, Trial
from side_by_side.gpu.records import write
from side_by_side.gpu.warm import warming
from side_by_side.process import NoSpeedError

Entries = dict[str, dict[str, dict[str, Any]]]
"""By table and shape class."""

# What one measurement differs from the next by.
_GAIN = 0.97


def tune(run: Run, clock: Clock, folder: Path, device: str) -> bool:
    """Tunes the rows in the order of worth until the time is over; False if the device was lost on the way."""
    path = folder / f"{slug(device)}.json"
    table: dict[str, Any] = json.loads(path.read_text())["ops"] if path.exists() else {}
    fine, plans = True, _planned(run)
    jobs = [
        (row, t.part, {t.table: {t.key: e}}) for row, p in plans.items() for t in p.trials for e in t.tried(run.tiny)[0]
    ]
    with warming(run.device, jobs, run.tables):
        for number, (row, plan) in enumerate(plans.items()):
            if clock.left() < 0:
                run.say(f"tune: out of time, not tuned: {', '.join(r.label for r in [*plans][number:])}")
                break
            try:
                found = _tuned(run, row, plan)
            except NoSpeedError as failure:
                fine &= not isinstance(failure, LostError)
                run.say(f"tune {row.label}: FAILED: {failure}")
                run.records.entry("tuning", row, {"failed": str(failure)})
                continue
            for name, entries in found.items():
                table.setdefault(name, {}).update(entries)
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            versions = run.processes.versions
            write(path, {"format": FORMAT, "device": device, "date": date, "versions": versions, "ops": table})
    run.say(f"tune: {path}; what --bench has is from before")
    return fine


class _Plan(NamedTuple):
    """What is to be tried for a row."""

    trials: list[Trial]
    choice: tuple[str, str] | None
    """Under which name it is kept who is faster."""
    counts: dict[str, int]


def _planned(run: Run) -> dict[Row, _Plan]:
    """The rows that there are kernels for; of rows in one shape class the first."""
    plans: dict[Row, _Plan] = {}
    known = set()
    for row in ops.bench(run.tiny, run.wanted):
        try:
            answer = run.processes.ask("jax", do="trials", row=row)
        except NoSpeedError as failure:
            answer = {"skipped": str(failure)}
        if "skipped" in answer:
            run.records.entry("tuning", row, {"skipped": answer["skipped"]})
            continue
        trials = [Trial(*t) for t in answer["trials"]]
        name = tuple((t.table, t.key) for t in trials), str(answer["choice"])
        if name not in known:
            known.add(name)
            plans[row] = _Plan(trials, answer["choice"], counted(run, row, answer["work"])[0])
    return plans


def _tuned(run: Run, row: Row, plan: _Plan) -> Entries:
    """The best entries for a row, and who is faster with them."""
    race = _Race(run, row, plan.counts)
    best: Entries = {}
    try:
        for part in PARTS:
            race.start(part, "xla", {})
            race.start(part, "triton", {})
        for trial in plan.trials:
            for entry in trial.tried(run.tiny)[0]:
                race.start(trial.part, "triton", {trial.table: {trial.key: entry}})
        race.wait()
        for trial in plan.trials:
            best.setdefault(trial.table, {})[trial.key] = _best(race, trial)
        for part in PARTS:
            race.start(part, "triton", best)
        race.wait()
        ways = {"xla": {}, "triton": best}
        seconds = {part: {way: race.seconds(part, way, e) for way, e in ways.items()} for part in PARTS}
    finally:
        run.processes.forget()
    # The part in which the kernels do worst decides: a program does not know which one it is in.
    worst = max(seconds.values(), key=lambda s: s["triton"] / s["xla"])
    if plan.choice is not None:
        name, key = plan.choice
        best.setdefault(name, {})[key] = worst
    run.say(f"tune {row.label}: {best}")
    run.records.entry("tuning", row, {"seconds": seconds, "best": best, "tried": race.tried})
    return best


def _best(race: "_Race", trial: Trial) -> dict[str, Any]:
    """The fastest entry; empty for what the heuristic has."""
    kept: dict[str, Any] = {}
    least = race.seconds(trial.part, "triton", {})
    for number, group in enumerate(trial.tried(race.run.tiny)):
        entries = [{**kept, **entry} for entry in group]
        if number:  # the first group is compiled by now
            for entry in entries:
                race.start(trial.part, "triton", {trial.table: {trial.key: entry}})
            race.wait()
        found = [(race.seconds(trial.part, "triton", {trial.table: {trial.key: e}}), e) for e in entries]
        seconds, entry = min(found, key=lambda pair: pair[0], default=(float("inf"), {}))
        if seconds < _GAIN * least:
            least, kept = seconds, entry
    return kept


class _Race:
    """The ways of one row under several entries.

    Attributes:
        tried: seconds of each, or why there are none.
    """

    def __init__(self, run: Run, row: Row, counts: Mapping[str, int]):
        self.run, self._row, self._counts = run, row, counts
        self.tried: list[dict[str, Any]] = []

    def start(self, part: str, way: str, entries: Entries) -> None:
        """Begins to compile."""
        self.run.processes.ask("jax", do="start_trial", count=self._counts[part], **self._told(part, way, entries))

    def wait(self) -> None:
        """Until all is compiled."""
        self.run.processes.ask("jax", 400, do="wait")

    def seconds(self, part: str, way: str, entries: Entries) -> float:
        """Of one time; infinite if it fails or differs from XLA."""
        told = self._told(part, way, entries)
        record = {"part": part, "way": way, "entries": entries}
        try:
            answer = self.run.processes.ask("jax", 120, do="trial", **told, seconds=self.run.seconds)
        except LostError:
            raise
        except NoSpeedError as failure:
            self.tried.append({**record, "failed": str(failure)})
            return float("inf")
        if answer["deviation"] > answer["limit"]:
            self.tried.append({**record, "failed": f"deviates by {answer['deviation']:.2g}"})
            return float("inf")
        self.tried.append({**record, "seconds": answer["seconds"]})
        return answer["seconds"]

    def _told(self, part: str, way: str, entries: Entries) -> dict[str, Any]:
        return {"row": self._row, "part": part, "way": way, "entries": entries}
