"""Samples of a monitor as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmasos_xla.energy import Energy
from llmasos_xla.errors import missing_package

_MIB = 2**20


def draw(table: Mapping[str, np.ndarray], gpus: Sequence[str], energy: Energy) -> Any:
    """A matplotlib figure of the samples, panels one above the other over the same seconds.

    Args:
        table: columns by name [samples], "seconds" among them.
        gpus: the GPUs' names.
        energy: what was used in all.

    Raises ImportError if matplotlib is missing.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise missing_package("Watch.plot", "matplotlib", "plot") from error
    panels = [_loss, _cpu, _memory, *([_gpus] if gpus else []), _power]
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 1.9 * len(panels)), sharex=True, squeeze=False)
    for panel, axis in zip(panels, axes[:, 0]):
        panel(axis, table, gpus)
        if axis.has_data():
            axis.legend(loc="upper left", fontsize="small")
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("seconds")
    axes[0, 0].set_title(str(energy), fontsize="small")
    figure.tight_layout()
    # In a notebook the returned figure is shown; closing it keeps pyplot from showing it a second time.
    plt.close(figure)
    return figure


def _line(axis: Any, table: Mapping[str, np.ndarray], name: str, scale: float, label: str, **style: Any) -> None:
    known = np.isfinite(table[name])
    if known.any():
        axis.plot(table["seconds"][known], table[name][known] * scale, label=label, **style)


def _loss(axis: Any, table: Mapping[str, np.ndarray], gpus: Sequence[str]) -> None:
    _line(axis, table, "loss", 1.0, "loss", color="C3", marker=".")
    axis.set_ylabel("loss")
    steps = axis.twinx()
    _line(steps, table, "step_seconds", 1e3, "ms a step", color="0.6", linestyle=":")
    steps.set_ylabel("ms a step", color="0.6")


def _cpu(axis: Any, table: Mapping[str, np.ndarray], gpus: Sequence[str]) -> None:
    _line(axis, table, "process_cpu", 1.0, "process")
    axis.set(ylabel="CPUs", ylim=(0, None))
    whole = axis.twinx()
    _line(whole, table, "cpu", 100.0, "machine", color="0.6", linestyle=":")
    whole.set(ylabel="machine, %", ylim=(0, 100))


def _memory(axis: Any, table: Mapping[str, np.ndarray], gpus: Sequence[str]) -> None:
    """On a scale of logarithms: a small model's arrays would lie on the floor beneath the process that holds them."""
    _line(axis, table, "process_memory", 1 / _MIB, "process")
    _line(axis, table, "jax_live", 1 / _MIB, "JAX")
    for number in range(len(gpus)):
        _line(axis, table, f"gpu{number}_memory", 1 / _MIB, f"gpu{number}", linestyle="--")
    axis.set(ylabel="MiB", yscale="log")
    # Before a model is built JAX holds some bytes.
    axis.set_ylim(bottom=max(axis.get_ylim()[0], 0.1))


def _gpus(axis: Any, table: Mapping[str, np.ndarray], gpus: Sequence[str]) -> None:
    for number, name in enumerate(gpus):
        _line(axis, table, f"gpu{number}_use", 100.0, f"gpu{number} {name}")
    axis.set(ylabel="GPU, %", ylim=(0, 105))


def _power(axis: Any, table: Mapping[str, np.ndarray], gpus: Sequence[str]) -> None:
    _line(axis, table, "watts", 1.0, "all that is counted")
    for number in range(len(gpus)):
        _line(axis, table, f"gpu{number}_watts", 1.0, f"gpu{number}", linestyle="--")
    axis.set(ylabel="W", ylim=(0, None))
