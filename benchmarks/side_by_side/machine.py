"""What the measurement ran on, and how much of it others were using meanwhile."""

import datetime
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, system and date."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_in_machine": os.cpu_count(),
        "system": platform.platform(terse=True),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def slug() -> str:
    """The processor's name, fit for a file name."""
    words = re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", _cpu().lower())
    return "-".join(re.findall(r"[a-z0-9.]+", words)) + f"-{os.cpu_count()}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


class Others:
    """How many cores processes other than `pid` kept busy, on average, while `with` lasted; stolen time counts."""

    def __init__(self, pid: int):
        self._pid = pid
        self.cores = 0.0

    def __enter__(self) -> "Others":
        self._started, self._busy, self._own = time.perf_counter(), _busy(), _own(self._pid)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            return  # The process may be gone, and its times with it.
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self.cores = max(0.0, (_busy() - self._busy) - (_own(self._pid) - self._own)) / seconds


def _busy() -> float:
    values = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, values)
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _own(pid: int) -> float:
    # The command's name stands in brackets and may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
