"""Starts the contestants, asks them in turns, and lets only one of them run at a time.

Those that wait are stopped (SIGSTOP), threads that spin included, so that they take no core from the one that runs.
"""

import contextlib
import dataclasses
import json
import math
import os
import select
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from side_by_side.contestants import CONTESTANTS
from side_by_side.machine import Others
from side_by_side.rows import ROWS, Row

_HERE = Path(__file__).resolve().parent
_START_SECONDS = 900
_ROUND_SECONDS = 600
_MOST_EPOCHS = 50


@dataclasses.dataclass
class Result:
    """What one contestant did on one row.

    Attributes:
        steps: milliseconds a training step, one value a round.
        epochs: seconds an epoch, one value a round.
        compile_seconds: by how much the first epoch was longer than the warm-up's later ones.
        loss: mean loss of the last warm-up epoch.
        others: cores that other processes kept busy, one value a round.
        versions: of Python and the packages.
        failed: why there is no speed.
    """

    steps: list[float] = dataclasses.field(default_factory=list)
    epochs: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None
    loss: float | None = None
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
    """Lets the contestants train a row: each its warm-up, then `rounds` rounds in turns.

    A round of a contestant is one epoch that does not count and as many that do as fill `seconds`. `pythons` gives the
    interpreter of a contestant, or None if there is none; `say` is told what happens.
    """
    row = ROWS[row_name]
    results = {name: Result() for name in names}
    with contextlib.ExitStack() as stack:
        ready: dict[str, tuple[_Process, int]] = {}
        for name, result in results.items():
            say(f"{row_name}: {name} warms up")
            try:
                python = pythons(name)
                if python is None:
                    raise _NoSpeedError("not installed (pass --peers-python)")
                process = stack.enter_context(_process(python, name, row_name))
                ready[name] = process, _warm_up(process, row, result, seconds)
            except _NoSpeedError as failure:
                result.failed = str(failure)
                say(f"{row_name}: {name}: {failure}")
        for number in range(rounds):
            turn = list(ready)
            if not turn:
                break
            # Whoever comes first after a pause is not always the same.
            for name in turn[number % len(turn) :] + turn[: number % len(turn)]:
                process, epochs = ready[name]
                try:
                    _round(process, row, results[name], epochs)
                except _NoSpeedError as failure:
                    results[name].failed = str(failure)
                    del ready[name]
            say(f"{row_name}: round {number + 1} of {rounds}")
    return results


def _warm_up(process: "_Process", row: Row, result: Result, seconds: float) -> int:
    result.versions = process.read(_START_SECONDS)["versions"]
    answer = process.read(_START_SECONDS)
    process.stop()
    later = statistics.median(answer["seconds"][1:])
    result.compile_seconds = max(0.0, answer["seconds"][0] - later)
    result.loss = answer["losses"][-1]
    # Written so that NaN fails too.
    if not answer["losses"][-1] < row.loss:
        losses = ", ".join(f"{loss:.3g}" for loss in answer["losses"])
        raise _NoSpeedError(f"trains wrongly: the loss went {losses}, below {row.loss} was wanted; no speed is shown")
    return min(_MOST_EPOCHS, math.ceil(seconds / later))


def _round(process: "_Process", row: Row, result: Result, epochs: int) -> None:
    process.go()
    with Others(process.pid) as others:
        process.ask(1 + epochs)
        answer = process.read(_ROUND_SECONDS)
    process.stop()
    if not all(math.isfinite(loss) for loss in answer["losses"]):
        raise _NoSpeedError(f"trains wrongly: the loss is {answer['losses'][-1]}; no speed is shown")
    epoch = statistics.fmean(answer["seconds"][1:])
    result.epochs.append(epoch)
    result.steps.append(1000 * epoch / row.steps)
    result.others.append(others.cores)


class _NoSpeedError(Exception):
    """There is no speed to show, and this is why."""


@contextlib.contextmanager
def _process(python: str, name: str, row_name: str) -> Iterator["_Process"]:
    environment = {**os.environ, **CONTESTANTS[name].environment, "PYTHONPATH": str(_HERE.parent)}
    if not CONTESTANTS[name].peer:
        environment["PYTHONPATH"] += os.pathsep + str(_HERE.parent.parent)
    with tempfile.TemporaryFile() as errors:
        popen = subprocess.Popen(
            [python, "-m", "side_by_side.worker", name, row_name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            # Ctrl-C is for this process alone; it ends the others.
            start_new_session=True,
        )
        process = _Process(popen, errors)
        try:
            yield process
        finally:
            # The group, since compilers start helpers; SIGKILL ends a stopped process too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.communicate()


class _Process:
    """A contestant's process, seen from here."""

    def __init__(self, popen: "subprocess.Popen[bytes]", errors: Any):
        self._popen, self._errors = popen, errors
        self.pid = popen.pid

    def stop(self) -> None:
        """Freezes it with all its threads."""
        os.killpg(self.pid, signal.SIGSTOP)

    def go(self) -> None:
        """Lets it run."""
        os.killpg(self.pid, signal.SIGCONT)

    def ask(self, epochs: int) -> None:
        """Asks for epochs."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps({"epochs": epochs}).encode() + b"\n")
            self._popen.stdin.flush()

    def read(self, seconds: float) -> dict[str, Any]:
        """Its next answer; raises what went wrong instead."""
        out = self._popen.stdout
        assert out is not None
        if not select.select([out], [], [], seconds)[0]:
            raise _NoSpeedError(f"no answer in {seconds:.0f} s")
        line = out.readline()
        if not line:
            raise _NoSpeedError(f"died with {self._popen.wait()}: {self._last_error()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise _NoSpeedError(answer["failed"])
        return answer

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
