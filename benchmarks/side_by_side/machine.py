"""What the measurement ran on, and how much of it others were using meanwhile."""

import contextlib
import datetime
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, system, date and command."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_in_machine": os.cpu_count(),
        "system": platform.platform(terse=True),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def command() -> str:
    """What was typed, without this machine's folders: absolute paths shrink to their last part."""
    arguments = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return shlex.join(["python", *(Path(a).name if a.startswith("/") else a for a in arguments)])


def slug() -> str:
    """The processor's name, fit for a file name."""
    words = re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", _cpu().lower())
    return "-".join(re.findall(r"[a-z0-9.]+", words)) + f"-{os.cpu_count()}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


@contextlib.contextmanager
def only_on(cores: Sequence[int] | None) -> Iterator[None]:
    """Keeps this thread, and what it starts, on the cores while `with` lasts; None leaves it where it may run."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if cores is None else cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Others:
    """How busy processes other than `pid` kept the machine while `with` lasted; stolen time counts.

    Attributes:
        seconds: how long it lasted.
        busy: seconds of their work on all cores; the clock's ticks make it uncertain by 0.01, either way.

    With `children`, what those do that `pid` has started and waited for is its own work too.
    """

    def __init__(self, pid: int, children: bool = False):
        self._pid, self._fields = pid, slice(11, 15 if children else 13)
        self.seconds, self.busy = 0.0, 0.0

    @property
    def cores(self) -> float:
        """How many cores they kept busy on average."""
        return max(0.0, self.busy) / max(self.seconds, 1e-9)

    def __enter__(self) -> "Others":
        self._started, self._before, self._did = time.perf_counter(), _busy(), self._own()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            return  # The process may be gone, and its times with it.
        self.seconds = time.perf_counter() - self._started
        self.busy = (_busy() - self._before) - (self._own() - self._did)

    def _own(self) -> float:
        # The command's name stands in brackets and may hold spaces.
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[self._fields])) / _TICKS


def _busy() -> float:
    values = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, values)
    return (user + nice + system + irq + softirq + steal) / _TICKS
