"""What this machine does, once a second: CPU, memory, disks, network, GPUs, JAX's bytes, joules, and a fit's steps."""

import contextlib
import math
import os
import threading
import time
from typing import Any, NoReturn, final

import numpy as np

from llmasos_xla.energy import Meter
from llmasos_xla.energy.figures import Energy, UnavailableError
from llmasos_xla.energy.processes import Tree, Usage, snapshot
from llmasos_xla.exposition import exposition
from llmasos_xla.runtime.figures import COLUMNS, FOLLOWED_COLUMNS, GPU_COLUMNS, Machine, Rate
from llmasos_xla.runtime.gauges import families
from llmasos_xla.runtime.gpus import Gpus
from llmasos_xla.runtime.jax_memory import JaxMemory
from llmasos_xla.runtime.log import ParquetLog
from llmasos_xla.runtime.ring import Ring

_TOLD = ("epoch", "step", "step_seconds", "loss")


@final
class _Followed:
    """A tree of processes that is followed by name, with its newest samples."""

    def __init__(self, pid: int, size: int):
        self.tree, self.rate, self.ring = Tree(pid), Rate(), Ring(tuple(FOLLOWED_COLUMNS), size)
        self.newest: dict[str, float] = {}
        self.rate.of(time.monotonic(), 0.0)

    def sample(self, now: float, usage: Usage) -> None:
        """Adds what it uses."""
        cpu = self.rate.of(time.monotonic(), usage.seconds)
        self.newest = {"time": now, "cpu": cpu, "memory": float(usage.memory), "processes": float(usage.processes)}
        self.ring.add(self.newest)


@final
class Monitor:
    """Samples of this machine in a ring buffer, taken by a thread between `start` and `stop` or within `with`.

    Args:
        interval: seconds between two samples.
        size: how many samples are kept.
        pid: the process that is told apart, with its descendants; None for this one.
        log: a folder for Parquet files of all samples.
        folder: whose file system's free bytes are told.
        energy: whose CPU time the joules come from where nothing counts them: "process" or "machine".

    Attributes:
        why_not: what is not told here, and why: "gpu", "cpu energy" and so on.

    Raises ImportError if psutil is missing, or pyarrow with `log`; ValueError for an interval that is none, or a pid
    that nobody has.

    >>> with Monitor(interval=0.01) as monitor:
    ...     row = monitor.sample()
    >>> 0 < row["memory"] <= row["memory_total"]
    True
    """

    def __init__(
        self,
        *,
        interval: float | int = 1.0,
        size: int = 3600,
        pid: int | None = None,
        log: str | os.PathLike | None = None,
        folder: str = ".",
        energy: str = "machine",
    ):
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < math.inf:
            raise ValueError(f"monitor: interval wants seconds > 0, got {interval!r}")
        if energy not in ("process", "machine"):
            raise ValueError(f'monitor: energy wants "process" or "machine", got {energy!r}')
        self.interval = float(interval)
        self._size = size
        self._machine = Machine(folder)
        try:
            self._tree = Tree(pid)
        except UnavailableError as reason:
            raise ValueError(f"monitor: {reason}") from None
        self._tree_rate, self._watts = Rate(), Rate()
        self._gpus = Gpus()
        self._jax = JaxMemory()
        self._meter = Meter(gpus="all", of="process" if energy == "process" else "machine", pid=pid)
        self.columns = (*COLUMNS, *self._gpus.columns)
        self._ring = Ring(self.columns, size)
        self._log = None if log is None else ParquetLog(log, self.columns, self.about())
        self._told: dict[str, float] = {}
        self._followed: dict[str, _Followed] = {}
        self._latest: dict[str, float] = {}
        self._energy: Energy | None = None
        self._changed = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._measure()

    # Samples

    def sample(self) -> dict[str, float]:
        """Takes a sample now, keeps it, and returns it by column; what is not known is NaN."""
        with self._changed:
            if self._closed:
                self._refuse_closed()
            row = self._measure()
            self._latest = row
            self._ring.add(row)
            if self._log is not None:
                self._log.add(row)
            return dict(row)

    def _measure(self) -> dict[str, float]:
        now, clock = time.time(), time.monotonic()
        # One look at all processes is less work than a search in each of several trees.
        everyone = snapshot() if self._followed else None
        usage = self._tree.read(everyone)
        for followed in self._followed.values():
            followed.sample(now, followed.tree.read(everyone))
        self._energy = energy = self._meter.read()
        found = {
            "time": now,
            "process_cpu": self._tree_rate.of(clock, usage.seconds),
            "process_memory": float(usage.memory),
            "processes": float(usage.processes),
            "joules": energy.joules,
            "watts": self._watts.of(clock, energy.joules),
            **self._machine.read(),
            **self._gpus.read(),
            **self._jax.read(),
            **self._told,
        }
        return {name: found.get(name, math.nan) for name in self.columns}

    @property
    def samples(self) -> dict[str, np.ndarray]:
        """The samples that are kept, the oldest first: columns by name [samples]."""
        with self._changed:
            return self._ring.table()

    @property
    def latest(self) -> dict[str, float]:
        """The newest sample; empty before the first."""
        with self._changed:
            return dict(self._latest)

    @property
    def energy(self) -> Energy:
        """Joules since the monitor was made, how well they are known and where from."""
        assert self._energy is not None
        return self._energy

    @property
    def gpus(self) -> list[str]:
        """The names of the GPUs that are looked at."""
        return list(self._gpus.names)

    @property
    def why_not(self) -> dict[str, str]:
        """What is not told here, and why."""
        found = dict(self._machine.why_not)
        if self._gpus.why_not:
            found["gpu"] = self._gpus.why_not
        if self._energy is not None and self._energy.quality == "absent":
            found["energy"] = self._energy.source
        elif self._meter.why_not_measured:
            found["energy, measured"] = self._meter.why_not_measured
        return found

    def about(self) -> dict[str, str]:
        """What each column is, and its unit."""
        described = {name: (column.about, column.unit) for name, column in COLUMNS.items()}
        for name in self._gpus.columns:
            gpu, _, kind = name.partition("_")
            described[name] = (f"{GPU_COLUMNS[kind].about} ({gpu})", GPU_COLUMNS[kind].unit)
        return {name: f"{about}, {unit}" if unit else about for name, (about, unit) in described.items()}

    # What others tell it

    def note(self, **figures: float) -> None:
        """What a fit tells: `epoch`, `step`, `step_seconds`, `loss`; it stands in the samples from now on."""
        wrong = figures.keys() - set(_TOLD)
        if wrong:
            raise ValueError(f"monitor: there is no figure {', '.join(sorted(wrong))}; there are {', '.join(_TOLD)}")
        self._told = {**self._told, **figures}

    def follow(self, name: str, pid: int) -> None:
        """Tells that process and its descendants apart, too, under a name.

        Raises ValueError if there is no such process.
        """
        try:
            followed = _Followed(pid, self._size)
        except UnavailableError as reason:
            raise ValueError(f"monitor: {name!r} cannot be followed: {reason}") from None
        with self._changed:
            self._followed = {**self._followed, name: followed}

    def unfollow(self, name: str) -> None:
        """Forgets them; nothing happens if they are not followed."""
        with self._changed:
            self._followed = {other: followed for other, followed in self._followed.items() if other != name}

    def followed(self, name: str) -> dict[str, np.ndarray]:
        """The samples of a process that is followed: `time`, `cpu`, `memory` and `processes`, which is 0 once it ended.

        Raises ValueError for a name that nobody has.
        """
        with self._changed:
            if name not in self._followed:
                known = ", ".join(self._followed) or "nobody"
                raise ValueError(f"monitor: {name!r} is not followed; {known} is")
            return self._followed[name].ring.table()

    # Its thread

    def start(self) -> "Monitor":
        """Starts to take samples, the first one at once."""
        if self._closed:
            self._refuse_closed()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="llmasos monitor", daemon=True)
            self._thread.start()
        return self

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while not self._ending.is_set():
                self.sample()
                # A machine that slept, or was busy, owes no samples.
                due = max(due + self.interval, time.monotonic())
                self._ending.wait(due - time.monotonic())
        except BaseException as failure:
            self._failure = failure

    def stop(self) -> None:
        """Takes a last sample, ends the thread, writes what the log still owes; again is no error.

        Raises what the thread failed of, if it did: a full disk under the log.
        """
        if self._closed:
            return
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if self._failure is not None:
                raise self._failure
            self.sample()
            if self._log is not None:
                self._log.flush()
        finally:
            self._closed = True
            self._gpus.close()
            self._meter.close()

    def __enter__(self) -> "Monitor":
        return self.start()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # What went wrong within the block is the better error.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.stop()

    @staticmethod
    def _refuse_closed() -> NoReturn:
        raise RuntimeError("monitor: it was stopped; make another one")

    # Prometheus

    def exposition(self) -> bytes:
        """The newest samples as gauges in Prometheus' text format."""
        with self._changed:
            newest = {name: followed.newest for name, followed in self._followed.items()}
            row = dict(self._latest)
        return exposition(lambda: families(row, self._gpus.names, newest, self.energy))
