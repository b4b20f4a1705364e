"""CPU seconds and memory of the machine, and of a process with all that it started.

Read from /proc, since a monitor does this every second: psutil's `children(recursive=True)` reads every process of the
machine each time. Where there is no /proc, psutil is asked.
"""

import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, final

from llmasos_xla.energy.figures import UnavailableError
from llmasos_xla.errors import missing_package

_PROC = pathlib.Path("/proc")
_HAS_PROC = os.path.exists("/proc/self/stat")
_TICKS = os.sysconf("SC_CLK_TCK") if _HAS_PROC else 100
# Processes end at any moment; those of other users may be hidden.
_NOT_THERE = (FileNotFoundError, ProcessLookupError, PermissionError)
_PAGE = os.sysconf("SC_PAGE_SIZE") if _HAS_PROC else 4096


class Stat(NamedTuple):
    """One process at one moment."""

    parent: int
    started: float
    """In some unit: a number that comes again with another start is another process."""
    seconds: float
    """Of CPU time, with that of its ended children."""
    threads: int
    memory: int
    """Resident bytes."""
    ended: bool = False
    """It has ended, and nobody has waited for it yet."""


class Everyone(NamedTuple):
    """All processes of the machine at one moment."""

    stats: dict[int, Stat]
    children: dict[int, list[int]]


class Usage(NamedTuple):
    """What a process and its descendants use."""

    seconds: float
    """CPU seconds since the first reading; never falls."""
    memory: int
    """Resident bytes; pages that several share count in each."""
    processes: int
    """How many they are; 0 once the first of them has ended."""


def machine_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started.

    Raises UnavailableError where there is no /proc/stat.
    """
    try:
        with open(_PROC / "stat") as file:
            user, nice, system, _idle, _waiting, interrupts, soft = map(int, file.readline().split()[1:8])
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the machine's CPU time is not in /proc/stat: {error}") from None
    return (user + nice + system + interrupts + soft) / _TICKS


@final
class Tree:
    """A process and its descendants, which come and go.

    Args:
        pid: of the process; None for this one.

    Raises UnavailableError if there is no such process.
    """

    def __init__(self, pid: int | None = None):
        self.pid = os.getpid() if pid is None else pid
        first = _stat(self.pid)
        if first is None:
            raise UnavailableError(f"there is no process {self.pid}")
        self._started = first.started
        self._last = sum(stat.seconds for stat in self._walk())
        self._seconds = 0.0

    def read(self, everyone: Everyone | None = None) -> Usage:
        """What they use now; `everyone`, from `snapshot`, spares the search for them."""
        root = _stat(self.pid) if everyone is None else everyone.stats.get(self.pid)
        if root is None or root.started != self._started:
            return Usage(self._seconds, 0, 0)
        found = tuple(self._walk() if everyone is None else _below(self.pid, everyone))
        living = 0 if root.ended else sum(not stat.ended for stat in found)
        now = sum(stat.seconds for stat in found)
        # A child's time goes over to its parent when it ends, unless nobody waits for it: then the sum falls.
        self._seconds += max(0.0, now - self._last)
        self._last = now
        return Usage(self._seconds, sum(stat.memory for stat in found), living)

    def _walk(self) -> Iterable[Stat]:
        # A pid may come again elsewhere while they are looked at; nobody is looked at twice.
        waiting, seen = [self.pid], set()
        while waiting:
            pid = waiting.pop()
            stat = None if pid in seen else _stat(pid)
            seen.add(pid)
            if stat is not None:
                yield stat
                waiting += _children(pid, stat)


def snapshot() -> Everyone:
    """All processes: for many trees at once this is less work than a search for each."""
    if _HAS_PROC:
        pids = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    else:
        pids = _psutil().pids()
    stats = {pid: stat for pid in pids if (stat := _stat(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    return Everyone(stats, children)


def _below(pid: int, everyone: Everyone) -> Iterable[Stat]:
    waiting, seen = [pid], set()
    while waiting:
        pid = waiting.pop()
        if pid not in seen:
            seen.add(pid)
            yield everyone.stats[pid]
            waiting += everyone.children.get(pid, ())


def _stat(pid: int) -> Stat | None:
    """None if it has ended: processes do that at any moment."""
    if not _HAS_PROC:
        return _stat_by_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in brackets, and may hold brackets and spaces itself.
            fields = file.read().rpartition(b")")[2].split()
    except _NOT_THERE:
        return None
    if len(fields) < 22:
        return None
    seconds = sum(map(int, fields[11:15])) / _TICKS
    if pid == os.getpid():
        # A tick is 10 ms; of itself a process knows more.
        seconds = time.process_time() + sum(map(int, fields[13:15])) / _TICKS
    return Stat(int(fields[1]), float(fields[19]), seconds, int(fields[17]), int(fields[21]) * _PAGE, fields[0] == b"Z")


def _children(pid: int, stat: Stat) -> list[int]:
    if not _HAS_PROC:
        psutil = _psutil()
        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.NoSuchProcess:
            return []
    found: list[int] = []
    try:
        threads = [str(pid)] if stat.threads == 1 else os.listdir(f"/proc/{pid}/task")
    except _NOT_THERE:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
        except _NOT_THERE:
            if os.path.exists(f"/proc/{pid}/task/{thread}/stat"):
                # A kernel without CONFIG_PROC_CHILDREN.
                return snapshot().children.get(pid, [])
    return found


def _stat_by_psutil(pid: int) -> Stat | None:
    psutil = _psutil()
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            seconds = times.user + times.system + getattr(times, "children_user", 0.0)
            seconds += getattr(times, "children_system", 0.0)
            memory = process.memory_info().rss
            ended = process.status() == psutil.STATUS_ZOMBIE
            return Stat(process.ppid(), process.create_time(), seconds, process.num_threads(), memory, ended)
    except psutil.Error:
        return None


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise missing_package("what processes use", "psutil", "runtime") from error
    return psutil
