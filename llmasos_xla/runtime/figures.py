"""The figures of a monitor: what each is, and how the machine's are read."""

import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, final

from llmasos_xla.errors import missing_package


class Column(NamedTuple):
    """A figure."""

    about: str
    """What it is."""
    unit: str = ""
    """As Prometheus names it, behind the figure's name."""


COLUMNS: dict[str, Column] = {
    "time": Column("When: seconds since 1970", "seconds"),
    "cpu": Column("Share of the machine's CPU time that was used, 0 to 1", "ratio"),
    "memory": Column("Memory of the machine that is not to be had", "bytes"),
    "memory_total": Column("Memory of the machine", "bytes"),
    "process_cpu": Column("CPUs that the process and its descendants kept busy"),
    "process_memory": Column("Resident memory of the process and its descendants", "bytes"),
    "processes": Column("The process and its descendants"),
    "disk_read": Column("Read from disks in a second", "bytes"),
    "disk_written": Column("Written to disks in a second", "bytes"),
    "disk_free": Column("Free where the monitor looks", "bytes"),
    "network_received": Column("Received in a second, loopback left out", "bytes"),
    "network_sent": Column("Sent in a second, loopback left out", "bytes"),
    "jax_live": Column("Held by JAX on the devices of this process", "bytes"),
    "jax_peak": Column("The most that JAX has held there", "bytes"),
    "joules": Column("Energy since the monitor was started", "joules"),
    "watts": Column("Power since the sample before", "watts"),
    "epoch": Column("Epochs of the fit that have begun"),
    "step": Column("Updates of the fit"),
    "step_seconds": Column("Time of one update", "seconds"),
    "loss": Column("Loss of the epoch so far"),
}
GPU_COLUMNS: dict[str, Column] = {
    "use": Column("Share of the time in which the GPU worked, 0 to 1", "ratio"),
    "memory": Column("Memory of the GPU that is in use", "bytes"),
    "memory_total": Column("Memory of the GPU", "bytes"),
    "watts": Column("Power of the GPU", "watts"),
    "celsius": Column("Temperature of the GPU", "celsius"),
}
SHORTEST = 0.1
"""Seconds between two readings that tell a rate."""
FOLLOWED_COLUMNS: dict[str, Column] = {
    "time": COLUMNS["time"],
    "cpu": Column("CPUs that a process which is followed, and its descendants, kept busy"),
    "memory": Column("Resident memory of these", "bytes"),
    "processes": Column("How many these are"),
}


@final
class Rate:
    """How much a counter grows in a second. Readings too near each other are one: counters tick 100 times a second."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._rate = math.nan

    def of(self, now: float, count: float) -> float:
        """The newest rate, when a clock shows `now`; NaN at the first reading, or behind one of a counter that fell."""
        if self._last is None:
            self._last = (now, count)
        passed, grown = now - self._last[0], count - self._last[1]
        if grown < 0 or math.isnan(grown):
            self._last, self._rate = (now, count), math.nan
        elif passed >= SHORTEST:
            self._last, self._rate = (now, count), grown / passed
        return self._rate


@final
class Machine:
    """CPU, memory, disks and network of the whole machine, by psutil.

    Args:
        folder: whose file system's free bytes are told.

    Attributes:
        why_not: what this machine does not tell, and why.

    Raises ImportError if psutil is missing.
    """

    def __init__(self, folder: str = "."):
        try:
            import psutil
        except ImportError as error:
            raise missing_package("a monitor", "psutil", "runtime") from error
        self._psutil: Any = psutil
        self._folder = folder
        self.why_not: dict[str, str] = {}
        self._sources: dict[str, Callable[[float], dict[str, float]]] = {
            "cpu": self._cpu,
            "memory": self._memory,
            "disk": self._disk,
            "network": self._network,
        }
        counters = ("busy", "whole", "disk_read", "disk_written", "network_received", "network_sent")
        self._rates = {name: Rate() for name in counters}
        self.read()

    def read(self) -> dict[str, float]:
        """The figures by name. What is a rate is that since the reading before."""
        found, now = {}, time.monotonic()
        for name, source in self._sources.items():
            # Containers hide parts of /proc, disks come and go: the rest is told all the same.
            try:
                found |= source(now)
                self.why_not.pop(name, None)
            except (OSError, RuntimeError, ValueError, AttributeError, self._psutil.Error) as error:
                self.why_not[name] = f"not told by this machine: {error}"
        return found

    def _cpu(self, now: float) -> dict[str, float]:
        times = self._psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is in user's and nice's already.
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy, all_of_it = self._rates["busy"].of(now, whole - idle), self._rates["whole"].of(now, whole)
        return {"cpu": min(1.0, busy / all_of_it) if all_of_it > 0 else math.nan}

    def _memory(self, now: float) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        return {"memory": float(memory.total - memory.available), "memory_total": float(memory.total)}

    def _disk(self, now: float) -> dict[str, float]:
        found = {"disk_free": float(self._psutil.disk_usage(self._folder).free)}
        # None on machines without disks of their own.
        counters = self._psutil.disk_io_counters()
        if counters is None:
            return found
        return found | self._rated(now, disk_read=counters.read_bytes, disk_written=counters.write_bytes)

    def _network(self, now: float) -> dict[str, float]:
        each = self._psutil.net_io_counters(pernic=True)
        out = {name: counters for name, counters in each.items() if not name.startswith("lo")}
        # What goes through the interface of a container goes through a real one, too, where there is one.
        real = [counters for name, counters in out.items() if os.path.exists(f"/sys/class/net/{name}/device")]
        out = real or list(out.values())
        received, sent = sum(c.bytes_recv for c in out), sum(c.bytes_sent for c in out)
        return self._rated(now, network_received=received, network_sent=sent)

    def _rated(self, now: float, **counts: int) -> dict[str, float]:
        return {name: self._rates[name].of(now, float(count)) for name, count in counts.items()}
