"""A timeline of the machine and of the fits on it: `with lm.runtime.watch() as w: model.fit(...)`."""

import contextlib
import math
import os
import threading
import time
from typing import Any, final

import numpy as np

from llmasos_xla.energy import Energy
from llmasos_xla.errors import missing_package
from llmasos_xla.runtime.log import write_parquet
from llmasos_xla.runtime.monitor import Monitor
from llmasos_xla.training.report import Quiet, listening

# A day of seconds.
_SIZE = 86_400
# Epochs may be hundreds in a second; a sample of each of so few tells of them.
_SECONDS_BETWEEN_EPOCHS = 0.05


def watch(*, interval: float | int = 1.0, size: int = _SIZE, log: str | os.PathLike | None = None) -> "Watch":
    """Watches machine and fits within a `with` block.

    Args:
        interval: seconds between two samples; the end of an epoch is one, too.
        size: how many samples are kept, a day of them by default.
        log: a folder for Parquet files of all samples.

    Raises ImportError if psutil is missing, or pyarrow with `log`.

    >>> with watch() as w:
    ...     numbers = sorted(range(100_000))
    >>> len(w.samples["cpu"]) >= 2
    True
    """
    return Watch(interval=interval, size=size, log=log)


@final
class Watch:
    """What a machine did within a block, and the steps and losses of every fit in it. Made by `watch`.

    Attributes:
        monitor: takes the samples.
        fits: how many fits began within the block.
    """

    def __init__(self, *, interval: float | int = 1.0, size: int = _SIZE, log: str | os.PathLike | None = None):
        self.monitor = Monitor(interval=interval, size=size, log=log, energy="process")
        self.fits = 0
        self._blocks = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        self._blocks.enter_context(self.monitor)
        self._blocks.enter_context(listening(_Listener(self)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._blocks.__exit__(*error)

    @property
    def samples(self) -> dict[str, np.ndarray]:
        """Columns by name [samples], NaN where nothing is known; `runtime.figures.COLUMNS` says what each is.

        "seconds" are those since the first sample. `pandas.DataFrame(w.samples)` is a table of all.
        """
        table = self.monitor.samples
        times = table["time"]
        return {"seconds": times - times[0] if len(times) else times, **table}

    @property
    def energy(self) -> Energy:
        """What was used within the block, how well that is known, and where from."""
        return self.monitor.energy

    def frame(self) -> Any:
        """The samples as a pandas DataFrame, by their time.

        Raises ImportError if pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_package("Watch.frame", "pandas", instead="samples, a dict of columns") from error
        table = self.samples
        return pandas.DataFrame(table, index=pandas.to_datetime(table.pop("time"), unit="s", utc=True))

    def summary(self) -> str:
        """The block in some lines: time, CPU, memory, GPUs, energy, loss; and what this machine does not tell."""
        table = self.samples
        if not len(table["time"]):
            return "nothing was watched yet"
        lines = [f"{table['seconds'][-1]:.1f} s, {len(table['time'])} samples, {self.fits} fit{'s' * (self.fits != 1)}"]
        cpu, machine = table["process_cpu"], _mean(table["cpu"])
        if math.isnan(_mean(cpu) + machine):
            lines.append("CPU      not known of so short a time")
        else:
            lines.append(
                f"CPU      {_mean(cpu):.2f} CPUs on average, {_most(cpu):.2f} at most; the machine {machine:.0%} busy"
            )
        lines.append(
            f"memory   {_bytes(_most(table['process_memory']))} at most; the machine "
            f"{_bytes(_most(table['memory']))} of {_bytes(_most(table['memory_total']))}"
        )
        if not math.isnan(_most(table["jax_peak"])):
            lines.append(f"JAX      {_bytes(_most(table['jax_peak']))} at most")
        for number, name in enumerate(self.monitor.gpus):
            use, held = table[f"gpu{number}_use"], _bytes(_most(table[f"gpu{number}_memory"]))
            watts = _mean(table[f"gpu{number}_watts"])
            lines.append(f"gpu{number}     {_mean(use):.0%} busy, {held} at most, {watts:.0f} W on average: {name}")
        lines.append(f"energy   {self.energy}")
        known = np.flatnonzero(~np.isnan(table["loss"]))
        if len(known):
            first, last = table["loss"][known[0]], table["loss"][known[-1]]
            lines.append(f"loss     {first:.4f} -> {last:.4f}, {_mean(table['step_seconds']) * 1e3:.3g} ms a step")
        lines += [f"not told: {what} ({why})" for what, why in self.monitor.why_not.items()]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the samples to a Parquet file; its metadata say what each column is, and where the joules are from.

        Raises ImportError if pyarrow is missing.
        """
        about = {**self.monitor.about(), "seconds": "Since the first sample, seconds", "energy": str(self.energy)}
        write_parquet(path, self.samples, about)

    def plot(self) -> Any:
        """A matplotlib figure: loss, CPU, memory, GPUs if there are any, power, one above the other over time.

        Raises ImportError if matplotlib is missing.
        """
        from llmasos_xla.runtime.timeline import draw

        return draw(self.samples, self.monitor.gpus, self.energy)


class _Listener(Quiet):
    """Hears a fit, and notes its step and loss in the samples."""

    def __init__(self, watch: Watch):
        self._watch, self._monitor = watch, watch.monitor
        # Thread and steps an epoch of each fit that has begun: a callback may fit another model.
        self._open: list[tuple[int, int]] = []
        self._epoch = self._update = 0
        self._at = self._sampled = 0.0

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        """A fit of so many steps an epoch."""
        self._watch.fits += 1
        self._open.append((threading.get_ident(), steps))

    @property
    def _steps(self) -> int:
        """Steps an epoch; 0 for a fit that is not told: of several at a time it is the one that began last."""
        return self._open[-1][1] if self._open and self._open[-1][0] == threading.get_ident() else 0

    def epoch(self, epoch: int) -> None:
        """Counts from here."""
        if self._steps:
            self._epoch, self._update, self._at = epoch, epoch * self._steps, time.monotonic()
            self._monitor.note(epoch=epoch + 1.0)

    def step(self, step: int, samples_per_second: float, logs: dict[str, float]) -> None:
        """The newest loss, and the time of the steps since the last one."""
        if self._steps:
            self._note(self._epoch * self._steps + step, logs)

    def epoch_end(
        self, epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str = ""
    ) -> None:
        """The epoch's loss gets a sample of its own."""
        if not self._steps:
            return
        self._note((epoch + 1) * self._steps, logs, seconds / self._steps)
        if time.monotonic() - self._sampled >= _SECONDS_BETWEEN_EPOCHS:
            self._monitor.sample()
            self._sampled = time.monotonic()

    def end(self) -> None:
        """The last loss is in a sample, whatever came before, and in none behind it."""
        if self._steps:
            self._monitor.sample()
            self._monitor.note(epoch=math.nan, step=math.nan, step_seconds=math.nan, loss=math.nan)
        mine = [i for i, (thread, _) in enumerate(self._open) if thread == threading.get_ident()]
        if mine:
            del self._open[mine[-1]]

    def _note(self, update: int, logs: dict[str, float], step_seconds: float | None = None) -> None:
        now = time.monotonic()
        if step_seconds is None and update > self._update:
            step_seconds = (now - self._at) / (update - self._update)
        told = {"step": float(update)}
        if step_seconds is not None:
            told["step_seconds"] = step_seconds
        if "loss" in logs:
            told["loss"] = float(logs["loss"])
        self._monitor.note(**told)
        self._update, self._at = update, now


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _most(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else math.nan


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
