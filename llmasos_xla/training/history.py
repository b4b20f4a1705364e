"""What a fit leaves behind: the metrics by epoch, and what was compiled for it."""

import dataclasses
from typing import Any

from llmasos_xla.compiling import CompileRecord
from llmasos_xla.energy import Energy
from llmasos_xla.errors import missing_package


@dataclasses.dataclass
class History:
    """The record of a fit.

    Attributes:
        history: metric name -> its value after each epoch; validation metrics start with "val_".
        epoch: the epochs' numbers, counted from 0 over all fits of the model.
        seconds: how long each epoch took, compiling left out.
        samples_per_second: training samples a second in each epoch.
        compiled: what was compiled during the fit, when and for how long.
        steps_per_dispatch: how many train steps one call of the compiled program makes.
        saves: step and seconds held up of each checkpoint that this call of fit began to write.
        energy: what this call of fit used, compiling left out, and how well that is known; None before it ends.
        samples: how many training samples it went through for that.
    """

    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    epoch: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    samples_per_second: list[float] = dataclasses.field(default_factory=list)
    compiled: list[CompileRecord] = dataclasses.field(default_factory=list)
    steps_per_dispatch: int = 1
    saves: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    energy: Energy | None = None
    samples: int = 0

    @property
    def joules_per_sample(self) -> float | None:
        """The energy of one training sample; None where it is not known."""
        if self.energy is None or self.energy.quality == "absent" or not self.samples:
            return None
        return self.energy.joules / self.samples

    def add(self, epoch: int, logs: dict[str, float], seconds: float, samples: int) -> None:
        """Adds an epoch."""
        self.epoch.append(epoch)
        self.seconds.append(seconds)
        self.samples_per_second.append(samples / max(seconds, 1e-9))
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __str__(self) -> str:
        names = list(self.history)
        rows = [["epoch", *names, "seconds", "samples/s"]]
        for i, epoch in enumerate(self.epoch):
            values = [f"{self.history[n][i]:.4f}" if i < len(self.history[n]) else "" for n in names]
            rows.append([str(epoch + 1), *values, f"{self.seconds[i]:.2f}", f"{self.samples_per_second[i]:.0f}"])
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths)) for row in rows]
        lines += [f"compiled {record}" for record in self.compiled]
        if self.energy is not None:
            lines.append(str(self.energy))
        return "\n".join(lines)

    __repr__ = __str__

    def plot(self) -> Any:
        """A matplotlib figure: the loss and each metric over the epochs, validation dashed."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise missing_package("History.plot", "matplotlib", "plot") from error
        names = [n for n in self.history if not n.startswith("val_")]
        figure, axes = plt.subplots(1, max(len(names), 1), figsize=(4.5 * max(len(names), 1), 3.2), squeeze=False)
        epochs = [e + 1 for e in self.epoch]
        for axis, name in zip(axes[0], names):
            axis.plot(epochs, self.history[name], marker=".", label="training")
            if f"val_{name}" in self.history:
                axis.plot(epochs, self.history[f"val_{name}"], marker=".", linestyle="--", label="validation")
            axis.set(xlabel="epoch", ylabel=name)
            axis.legend()
        figure.tight_layout()
        # In a notebook the returned figure is shown; closing it keeps pyplot from showing it a second time.
        plt.close(figure)
        return figure
