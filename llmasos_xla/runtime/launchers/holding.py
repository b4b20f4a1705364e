"""The memory that an attempt's processes hold, as its keeper sees it: all that are descended from it."""

import contextlib
import json
import os
import pathlib
import time
from typing import NamedTuple, final

_EVERY_SECONDS = 1.0
# Of a core, at most: to look at many gigabytes takes the kernel a while.
_SHARE = 0.01
_CHANGE = 0.01
_COUNTED = ("Pss_Anon", "Pss_Shmem")


class Held(NamedTuple):
    """Bytes of the machine's memory that an attempt holds; pages of files, which can be read again, are left out."""

    now: int
    most: int
    """At any moment of the attempt that was looked at."""


@final
class Holding:
    """Looks once a second, less often where that is dear, and writes down what has changed.

    Args:
        beginning: of the file's name.
    """

    def __init__(self, beginning: str | os.PathLike):
        self._path = pathlib.Path(f"{os.fspath(beginning)}.held")
        self._next, self._told, self._most = 0.0, 0, 0

    def look(self) -> None:
        """Looks, if it is time to."""
        began, before = time.monotonic(), time.process_time()
        if began < self._next:
            return
        now = held_bytes(os.getpid())
        self._most = max(self._most, now)
        if abs(now - self._told) > _CHANGE * max(self._told, 1 << 20):
            # On a full disk it is not told; to end the job for that would be worse.
            with contextlib.suppress(OSError):
                beside = self._path.with_name(self._path.name + ".new")
                beside.write_text(json.dumps(Held(now, self._most)._asdict()))
                beside.replace(self._path)
                self._told = now
        self._next = began + max(_EVERY_SECONDS, (time.process_time() - before) / _SHARE)


def read_held(beginning: str | os.PathLike) -> Held | None:
    """What was written down last; None where nothing was yet."""
    try:
        return Held(**json.loads(pathlib.Path(f"{os.fspath(beginning)}.held").read_text()))
    except FileNotFoundError:
        return None


def held_bytes(pid: int) -> int:
    """The bytes of all descendants of a process. What several of them share counts once: workers of a data loader."""
    found, open_ = 0, list(_children(pid))
    while open_:
        child = open_.pop()
        open_ += _children(child)
        found += _own_bytes(child)
    return found


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _own_bytes(pid: int) -> int:
    """Its proportional share; 0 of one that has gone, or is somebody else's by now."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    values = (line.partition(":") for line in lines)
    return sum(int(value.split()[0]) << 10 for name, _, value in values if name in _COUNTED)
