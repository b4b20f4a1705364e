"""The contestant's side: makes a problem's programs, checks what they compute, and times them when asked."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from side_by_side.channel import told
from side_by_side.kernels import inputs
from side_by_side.kernels.problem import Problem
from side_by_side.values import deviation

# A variant that is slower than the fastest by more than this is not measured on.
_CLOSE = 1.3
_TRIES = 3
_TRY_SECONDS = 0.1
# A longer call needs no other before it to wake the threads and the caches.
_LONG_SECONDS = 0.1


class Program(NamedTuple):
    """One way to compute a part of a problem."""

    part: str
    variant: str
    """Which of the contestant's own ways it is; the fastest counts."""
    make: Callable[[], tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]]
    """Returns what is timed, all of it materialized, and what reads its results as channels-last arrays."""


Programs = Callable[[Problem, list[np.ndarray], np.ndarray], Iterator[Program]]
"""Problem, arrays and the result's cotangent to programs."""


class Bench:
    """Answers "prepare" and "time" with a framework's programs."""

    def __init__(self, programs: Programs):
        self._make = programs
        self._calls: dict[str, dict[str, tuple[Callable[[], Any], float]]] = {}

    def prepare(self, problem: dict[str, Any], folder: str, limit: float) -> dict[str, Any]:
        """Makes the problem's programs and says of each variant its deviation and a first time, or what failed.

        What deviates by `limit` or more is not timed.
        """
        self._calls = {}
        read, where = Problem.from_json(problem), Path(folder)
        arrays, cotangent = inputs.read(read, where), np.load(inputs.cotangent(where))
        found: dict[str, list[dict[str, Any]]] = {}
        for program in self._make(read, arrays, cotangent):
            entry: dict[str, Any] = {"variant": program.variant}
            try:
                call, values = program.make()
                entry["deviation"] = _deviation(values(call()), where, program.part)
                if entry["deviation"] < limit:
                    entry["seconds"] = _tried(call)
                    self._calls.setdefault(program.part, {})[program.variant] = call, entry["seconds"]
            except Exception as error:  # frameworks have their own kinds, and each is this variant's answer
                entry["failed"] = told(error)
            found.setdefault(program.part, []).append(entry)
        for part, calls in self._calls.items():
            fastest = min(seconds for _, seconds in calls.values())
            self._calls[part] = {name: (c, s) for name, (c, s) in calls.items() if s <= _CLOSE * fastest}
        return {"parts": found}

    def time(self, part: str, seconds: float) -> dict[str, Any]:
        """Each variant's median time of a call, from as many calls as fill `seconds`."""
        return {"seconds": {variant: _timed(call, s, seconds) for variant, (call, s) in self._calls[part].items()}}


def _deviation(found: list[np.ndarray], folder: Path, part: str) -> float:
    wanted = [np.load(path) for path in inputs.results(folder, part)]
    shapes = [a.shape for a in found], [a.shape for a in wanted]
    if shapes[0] != shapes[1]:
        raise ValueError(f"results have shapes {shapes[0]}, wanted were {shapes[1]}")
    return max(deviation(a, b) for a, b in zip(found, wanted))


def _tried(call: Callable[[], Any]) -> float:
    times: list[float] = []
    while len(times) < _TRIES and sum(times) < _TRY_SECONDS:
        times.append(_once(call))
    return min(times)


def _timed(call: Callable[[], Any], expected: float, seconds: float) -> float:
    if expected < _LONG_SECONDS:
        call()
    times: list[float] = []
    while sum(times) < seconds:
        times.append(_once(call))
    return float(np.median(times))


def _once(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
