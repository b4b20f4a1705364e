"""The two processes on the device, seen from the command: asked, lost and started again.

A kernel that waits in vain ends its process's use of the device. So nothing that was found lies in those processes, and
one that died is started again for the next request.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from side_by_side.gpu.contestants import CONTESTANTS, LOST
from side_by_side.process import NoSpeedError, Process, started

_TABLE = "side_by_side.gpu.contestants"
# Characters that are kept of what a process said before it died: XLA's last message and the stack below it.
_LAST_WORDS = 4000


class LostError(NoSpeedError):
    """The process died or did not answer: what it had been told is forgotten."""


class Processes:
    """JAX's process and PyTorch's, each started when it is first asked.

    Args:
        mode: "gpu" or "interpreted".
        tables: the folder of tuned tables, if not the package's.
        peers_python: the Python that has PyTorch.
        environment: variables for both.
    """

    def __init__(self, mode: str, tables: str, peers_python: str | None, environment: Mapping[str, str]):
        self._arguments, self._environment = (mode, tables), environment
        self._pythons = {"jax": sys.executable, "torch": peers_python}
        self._stack = contextlib.ExitStack()
        self._running: dict[str, Process] = {}
        self._missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ask(self, name: str, timeout: float = 120, /, **request: Any) -> dict[str, Any]:
        """The answer of "jax" or "torch".

        Raises:
            LostError: if there was none.
            NoSpeedError: with what went wrong instead.
        """
        process = self._process(name)
        process.ask(**request)
        try:
            return process.read(timeout)
        except NoSpeedError as failure:
            if process.alive and not str(failure).startswith(LOST):
                raise
            text = f"{failure}\n{process.said()[-_LAST_WORDS:]}"
            process.end()
            del self._running[name]
            raise LostError(text) from failure

    def forget(self) -> None:
        """Lets those that run drop their programs and arrays."""
        for name in [*self._running]:
            with contextlib.suppress(NoSpeedError):
                self.ask(name, do="forget")

    def _process(self, name: str) -> Process:
        if name in self._missing:
            raise NoSpeedError(self._missing[name])
        if name not in self._running:
            starting = started(
                self._pythons[name], _TABLE, name, CONTESTANTS[name], *self._arguments, environment=self._environment
            )
            try:
                process = self._stack.enter_context(starting)
            except NoSpeedError as failure:
                self._missing[name] = str(failure)
                raise
            self._running[name] = process
            self.versions |= process.versions
        return self._running[name]


def driver() -> str | None:
    """The version of the GPU's driver, or None where nobody says."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


class Clock:
    """How much of the time is left.

    >>> clock = Clock(60)
    >>> clock.left() > 59, clock.part(0.5).left() < 31
    (True, True)
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, negative when it is over."""
        return self._end - time.monotonic()

    def part(self, share: float) -> "Clock":
        """A clock for that share of what is left."""
        return Clock(max(0.0, self.left()) * share)
