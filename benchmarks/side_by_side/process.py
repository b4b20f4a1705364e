"""A contestant's process, seen from the arena: started, asked, frozen, ended."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side.contestant import Contestant
from side_by_side.machine import only_on

_BENCHMARKS = Path(__file__).resolve().parent.parent
_START_SECONDS = 300


class NoSpeedError(Exception):
    """There is no speed to show, and this is why."""


class Process:
    """A contestant's process; it is stopped (SIGSTOP) whenever it is not its turn.

    Attributes:
        versions: of Python and the contestant's packages.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", errors: Any):
        self._popen, self._errors = popen, errors
        self._ended = False
        self.pid = popen.pid
        self.versions: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def stop(self) -> None:
        """Freezes it with all its threads, so that none of them spins beside another contestant."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGSTOP)

    def go(self) -> None:
        """Lets it run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Ends it with all that it started; a stopped process too."""
        if self._ended:
            return
        self._ended = True
        # The group, since compilers start helpers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.communicate()

    def ask(self, **request: Any) -> None:
        """Sends a request."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
            self._popen.stdin.flush()

    def read(self, seconds: float) -> dict[str, Any]:
        """Its next answer.

        Raises:
            NoSpeedError: with what went wrong instead.
        """
        out = self._popen.stdout
        assert out is not None
        if not select.select([out], [], [], seconds)[0]:
            self.end()
            raise NoSpeedError(f"no answer in {seconds:.0f} s")
        line = out.readline()
        if not line:
            raise NoSpeedError(f"died with {self._popen.wait()}: {self._last_error()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise NoSpeedError(answer["failed"])
        return answer

    def said(self) -> str:
        """What it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def _last_error(self) -> str:
        return (self.said() or "it said nothing").splitlines()[-1]


@contextlib.contextmanager
def started(
    python: str | None,
    table: str,
    name: str,
    contestant: Contestant,
    *arguments: str,
    cores: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Runs the contestant `name` of the package `table` under `python` while `with` lasts, on `cores` only if given.

    Raises:
        NoSpeedError: if there is no such Python or the framework is not installed.
    """
    if python is None:
        raise NoSpeedError("not installed (pass --peers-python)")
    paths = [_BENCHMARKS] if contestant.peer else [_BENCHMARKS, _BENCHMARKS.parent]
    variables = {**os.environ, **contestant.environment, **(environment or {})}
    with tempfile.TemporaryFile() as errors:
        # Affinity is inherited: it stands before the framework counts its cores.
        with only_on(cores):
            popen = subprocess.Popen(
                [python, "-m", "side_by_side.worker", table, name, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**variables, "PYTHONPATH": os.pathsep.join(map(str, paths))},
                # Ctrl-C is for the arena alone; it ends the others.
                start_new_session=True,
            )
        process = Process(popen, errors)
        try:
            process.versions = process.read(_START_SECONDS)["versions"]
            yield process
        finally:
            process.end()
