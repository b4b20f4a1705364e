"""A process with all that it started, as /proc has them: frozen, measured and ended together."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PATIENCE = 15.0
# linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


class _Seen(NamedTuple):
    pid: int
    parent: int
    session: int
    born: int
    pages: int


class Family:
    """The process `pid`, which leads a session of its own, its descendants, and who is left of them.

    Servers start helpers in process groups and sessions of their own, some of which outlive who started them: they are
    found as descendants, as members of the session, or since they were seen before.
    """

    def __init__(self, pid: int):
        self._pid = pid
        self._known: set[tuple[int, int]] = set()

    def members(self) -> dict[int, int]:
        """The bytes that each living member holds, by its id."""
        seen = [found for path in Path("/proc").glob("[0-9]*") if (found := _seen(path))]
        ids = {p.pid for p in seen if p.pid == self._pid or p.session == self._pid or (p.pid, p.born) in self._known}
        while more := {p.pid for p in seen if p.parent in ids} - ids:
            ids |= more
        found = [p for p in seen if p.pid in ids]
        self._known |= {(p.pid, p.born) for p in found}
        return {p.pid: p.pages * _PAGE for p in found}

    @property
    def memory(self) -> int:
        """Bytes that they hold together; pages that they share count for each."""
        return sum(self.members().values())

    def signal(self, number: int) -> None:
        """Sends a signal to all of them; who was started meanwhile gets it too."""
        told: set[int] = set()
        while rest := self.members().keys() - told:
            for pid in rest:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= rest

    def end(self) -> None:
        """Ends them all: the first is asked, which may know an order for the others, and then those that are left."""
        self.signal(signal.SIGCONT)
        for number, only in ((signal.SIGTERM, {self._pid}), (signal.SIGTERM, None), (signal.SIGKILL, None)):
            deadline = time.monotonic() + _PATIENCE
            for pid in self.members():
                if only is None or pid in only:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            while self.members().keys() & (only or self.members().keys()) and time.monotonic() < deadline:
                time.sleep(0.1)


def adopt_orphans() -> None:
    """Who outlives those who started it becomes a child of this process, so that its time is counted with its own."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> None:
    """Takes leave of ended children that nobody waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _seen(folder: Path) -> _Seen | None:
    try:
        # The command's name stands in brackets and may hold spaces.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    parent, session, born, pages = (int(fields[i]) for i in (1, 3, 19, 21))
    return _Seen(int(folder.name), parent, session, born, pages)
