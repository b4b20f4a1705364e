"""Holds the contestants of single operations, one process each, and asks them in turns."""

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side.kernels import inputs
from side_by_side.kernels.contestants import CONTESTANTS, REFERENCE
from side_by_side.kernels.problem import Part, Problem
from side_by_side.process import NoSpeedError, Process, started
from side_by_side.turns import turn, turns

_TABLE = "side_by_side.kernels.contestants"
_ANSWER_SECONDS = 300
_FEWEST_ROUNDS = 3
# Rounds end early where they take this many times what they should: a slow contestant is slow in each of them.
_PATIENCE = 2.0
# A call that takes longer is not repeated: plain lax needs seconds for some gradients, and a few per cent say nothing.
_LONG_SECONDS = 0.5
_LARGEST_DEVIATION = {"float32": 1e-4, "bfloat16": 3e-2}
# A state that is rounded at each of a hundred steps, as in a scan written in bfloat16, strays further.
_LARGEST_DEVIATION_OVER_TIME = {"float32": 1e-4, "bfloat16": 0.1}
_OVER_TIME = ("lstm", "gru", "rnn")

Key = tuple[str, int]
"""Contestant and number of cores."""


@dataclasses.dataclass
class Entry:
    """What one contestant did on one part of a problem.

    Attributes:
        variants: seconds a call of each of its own ways that was timed, one value a round.
        deviation: the largest of those from float64.
        failed: why there is no speed.
        done: whether there is nothing left to time.
    """

    variants: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    deviation: float | None = None
    failed: str | None = None
    done: bool = False

    @property
    def variant(self) -> str | None:
        """The way that counts: that of the smallest median."""
        timed = {name: times for name, times in self.variants.items() if times}
        return min(timed, key=lambda name: statistics.median(timed[name]), default=None)

    @property
    def seconds(self) -> list[float]:
        """Its times; none if there is no speed."""
        return [] if self.failed or self.variant is None else self.variants[self.variant]


@dataclasses.dataclass
class Cell:
    """One part of a problem on a number of cores: an entry for each contestant that takes part."""

    problem: Problem
    part: Part
    threads: int
    entries: dict[str, Entry]


class Stable:
    """The contestants' processes, started when first needed and kept; all but the one whose turn it is are stopped.

    Attributes:
        versions: of Python and packages, of every process that was started.
        busy: seconds of others' work while contestants were measured.
        seconds: how long that was.
    """

    def __init__(self, pythons: Callable[[str], str | None], say: Callable[[str], None]):
        self._pythons, self._say = pythons, say
        self._stack = contextlib.ExitStack()
        self._processes: dict[Key, Process] = {}
        self._missing: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.busy, self.seconds = 0.0, 0.0

    def __enter__(self) -> "Stable":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ask(self, key: Key, **request: Any) -> dict[str, Any]:
        """A contestant's answer, given while nobody else runs.

        Raises:
            NoSpeedError: with what went wrong instead.
        """
        process = self._process(key)
        with turn(process) as others:
            process.ask(**request)
            answer = process.read(_ANSWER_SECONDS)
        if request["do"] == "time":
            self.busy += others.busy
            self.seconds += others.seconds
        return answer

    def _process(self, key: Key) -> Process:
        name, threads = key
        if name in self._missing:
            raise NoSpeedError(self._missing[name])
        known = self._processes.get(key)
        if known is not None and known.alive:
            return known
        self._say(f"{name} starts on {threads} core(s)")
        cores = sorted(os.sched_getaffinity(0))
        # With fewer cores than there are, thread pools that do not look at the affinity are told.
        told = {} if threads == len(cores) else {"OMP_NUM_THREADS": str(threads)}
        starting = started(
            self._pythons(name), _TABLE, name, CONTESTANTS[name], cores=cores[:threads], environment=told
        )
        try:
            process = self._stack.enter_context(starting)
        except NoSpeedError as failure:
            self._missing[name] = str(failure)
            raise
        process.stop()
        self._processes[key], self.versions[name] = process, process.versions
        return process


def compete(
    problem: Problem,
    stable: Stable,
    names: Sequence[str],
    threads: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[Cell]:
    """Lets the contestants compute the problem on each number of cores; a cell for each part.

    In a round a contestant calls one part for `seconds`. What fails or deviates from float64 is not timed.
    """
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        inputs.write(problem, Path(folder))
        given = {"problem": problem.to_json(), "folder": folder}
        wanting = None
        try:
            stable.ask((REFERENCE, len(os.sched_getaffinity(0))), do="write", **given)
        except NoSpeedError as failure:
            wanting = f"nothing to hold it against: {failure}"
        cells = []
        for count in threads:
            found = [Cell(problem, part, count, {}) for part in problem.parts]
            for name in names:
                if wanting is None:
                    _prepare(stable, (name, count), given, found)
                else:
                    for cell in found:
                        cell.entries[name] = Entry(failed=wanting)
            for cell in found:
                _measure(stable, cell, rounds, seconds)
                for name, entry in cell.entries.items():
                    if entry.failed and not entry.failed.startswith("not installed"):
                        say(f"{problem.name} {cell.part.name}, {count} core(s): {name}: {entry.failed}")
            cells += found
    return cells


def _memory() -> str | None:
    """Where files stay in memory, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _prepare(stable: Stable, key: Key, given: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Gives every cell of which the contestant has programs an entry."""
    problem = cells[0].problem
    limit = (_LARGEST_DEVIATION_OVER_TIME if problem.op in _OVER_TIME else _LARGEST_DEVIATION)[problem.dtype]
    try:
        parts = stable.ask(key, do="prepare", limit=limit, **given)["parts"]
    except NoSpeedError as failure:
        for cell in cells:
            cell.entries[key[0]] = Entry(failed=str(failure))
        return
    for cell in cells:
        if cell.part.name in parts:
            cell.entries[key[0]] = _checked(parts[cell.part.name], limit)


def _checked(variants: Sequence[Mapping[str, Any]], limit: float) -> Entry:
    entry, failures = Entry(), []
    for variant in variants:
        if "failed" in variant:
            failures.append(variant["failed"])
        # Written so that NaN fails too.
        elif not variant["deviation"] < limit:
            failures.append(f"red: deviates from float64 by {variant['deviation']:.2g}, below {limit:g} was wanted")
        else:
            entry.variants[variant["variant"]] = [variant["seconds"]]
            entry.deviation = max(variant["deviation"], entry.deviation or 0.0)
    entry.failed = None if entry.variants else failures[0]
    entry.done = bool(entry.variants) and min(entry.seconds) > _LONG_SECONDS
    if not entry.done:
        entry.variants = {name: [] for name in entry.variants}
    return entry


def _measure(stable: Stable, cell: Cell, rounds: int, seconds: float) -> None:
    began = time.perf_counter()
    for number in range(rounds):
        ready = [name for name, entry in cell.entries.items() if not entry.failed and not entry.done]
        for name in turns(ready, number):
            entry = cell.entries[name]
            try:
                answer = stable.ask((name, cell.threads), do="time", part=cell.part.name, seconds=seconds)
            except NoSpeedError as failure:
                entry.failed = str(failure)
                continue
            for variant, taken in answer["seconds"].items():
                if variant in entry.variants:
                    entry.variants[variant].append(taken)
        late = time.perf_counter() - began > _PATIENCE * rounds * seconds * len(ready)
        if late and number + 1 >= _FEWEST_ROUNDS:
            break
