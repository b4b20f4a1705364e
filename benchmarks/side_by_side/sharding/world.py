"""The processes of one layout: started by `llmasos launch`, told to run an epoch, ended."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side.machine import Others
from side_by_side.process import NoSpeedError
from side_by_side.sharding.layouts import Layout, environment

BENCHMARKS = Path(__file__).resolve().parents[2]
_START_SECONDS, _EPOCH_SECONDS, _END_SECONDS = 300.0, 300.0, 30.0


class Epoch(NamedTuple):
    """What an epoch took."""

    seconds: float
    """Until the last process was done."""
    loss: float
    others: float
    """Cores that other processes kept busy meanwhile."""


class World:
    """All processes that fit one model in one layout. To be closed."""

    def __init__(self, kind: str, layout: Layout, tiny: bool):
        self.layout = layout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._door = socket.create_server(("127.0.0.1", 0))
        self._door.settimeout(0.5)
        self._ranks: list[tuple[socket.socket, Any]] = []
        command = [
            "launch", "-n", str(layout.processes), "--devices-per-process", str(layout.devices_per_process),
            "-m", "side_by_side.sharding.rank", kind, layout.strategy, str(self._door.getsockname()[1]), str(int(tiny)),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmasos_xla.cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            # The ranks run the module from the folder they are started in.
            cwd=BENCHMARKS,
            env=variables(layout.devices_per_process, layout.devices),
            # Ctrl-C is for the benchmark alone; it ends the others.
            start_new_session=True,
        )

    def ready(self) -> None:
        """Waits until all processes have compiled their program.

        Raises NoSpeedError with what went wrong instead.
        """
        until = time.monotonic() + _START_SECONDS
        while len(self._ranks) < self.layout.processes:
            with contextlib.suppress(TimeoutError):
                wire, _ = self._door.accept()
                wire.settimeout(_START_SECONDS)
                self._ranks.append((wire, wire.makefile("rw")))
            if self._process.poll() is not None or time.monotonic() > until:
                raise NoSpeedError(f"did not start: {self._last_error()}")
        self._answers()

    def epoch(self) -> Epoch:
        """Runs an epoch."""
        with Others(os.getpid()) as others:
            for wire, text in self._ranks:
                wire.settimeout(_EPOCH_SECONDS)
                text.write("go\n")
                text.flush()
            answers = self._answers()
        busy = max(0.0, others.busy - sum(a["work"] for a in answers)) / max(others.seconds, 1e-9)
        return Epoch(max(a["seconds"] for a in answers), answers[0]["loss"], busy)

    def close(self) -> None:
        """Ends all processes."""
        for _, text in self._ranks:
            with contextlib.suppress(OSError):
                text.write("end\n")
                text.flush()
        for end in (lambda: None, self._process.terminate, self._process.kill):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS if self._ranks else 0.1)
                break
        for wire, text in self._ranks:
            with contextlib.suppress(OSError):
                text.close()
            wire.close()
        self._door.close()
        self._errors.close()

    def _answers(self) -> list[dict[str, Any]]:
        try:
            lines = [text.readline() for _, text in self._ranks]
        except OSError as error:
            raise NoSpeedError(f"no answer: {error}") from error
        if not all(lines):
            raise NoSpeedError(f"died: {self._last_error()}")
        return [json.loads(line) for line in lines]

    def _last_error(self) -> str:
        # The launcher tells who failed first once it has ended the others.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        cause = said.rpartition("llmasos launch: ")[2].splitlines()
        return " / ".join([*cause[:1], *cause[-1:]]) or f"it said nothing, and ended with {self._process.poll()}"


def variables(devices: int, together: int) -> dict[str, str]:
    """The environment of a process of this benchmark; see `layouts.environment`."""
    paths = os.pathsep.join((str(BENCHMARKS), str(BENCHMARKS.parent)))
    return {**os.environ, **environment(devices, together), "PYTHONPATH": paths}


def asked(module: str, *arguments: str, devices: int) -> tuple[Any, float]:
    """What a module of this package prints as JSON, run in a process with so many devices; and how many cores other
    processes kept busy meanwhile.

    Raises NoSpeedError with what it said instead.
    """
    command = [sys.executable, "-P", "-m", f"side_by_side.sharding.{module}", *arguments]
    own = _of_children()
    with Others(os.getpid()) as others:
        done = subprocess.run(command, env=variables(devices, devices), capture_output=True, text=True)
    busy = max(0.0, others.busy - (_of_children() - own)) / others.seconds
    if done.returncode:
        raise NoSpeedError(f"{module}: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1]), busy


def _of_children() -> float:
    """Seconds of work of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
