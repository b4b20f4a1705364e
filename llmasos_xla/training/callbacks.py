"""Callbacks: plain functions that are told of a fit's events and may end it.

A callback is any function of an `Event`. Returning "stop" ends the fit after the epoch. The functions here make the
common ones; each belongs to one fit. One with a `memory`, a dict of JSON values and `Variables`, has that saved in the
checkpoints of its fit and given back when the fit is resumed.
"""

import csv
import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, final

from llmasos_xla.errors import missing_package


class Event(NamedTuple):
    """What a callback is told."""

    kind: Literal["begin", "epoch", "end"]
    """Before the first epoch, after each epoch with its validation, after the last."""
    epoch: int
    """The epoch just done, counted from 0 over all fits of the model; -1 before any."""
    step: int
    """Updates so far."""
    logs: dict[str, float]
    """Metrics of the epoch; empty for "begin" and "end"."""
    model: Any
    """The model that is being fitted: `save`, `variables`, `predict`."""


Callback = Callable[[Event], str | None]


@final
class Remembering:
    """A callback with a memory that a checkpoint holds: `answer(event, memory)` reads and changes it."""

    def __init__(self, name: str, memory: dict[str, Any], answer: Callable[[Event, dict[str, Any]], str | None]):
        self.name, self.memory, self._answer = name, memory, answer

    def __call__(self, event: Event) -> str | None:
        """Tells it of an event."""
        return self._answer(event, self.memory)


_MORE_IS_BETTER = ("accuracy", "acc", "auc", "precision", "recall", "f1", "r2", "top_")


def early_stopping(
    monitor: str = "val_loss",
    patience: int = 0,
    min_delta: float = 0.0,
    mode: Literal["auto", "min", "max"] = "auto",
    restore_best: bool = False,
) -> Callback:
    """Ends the fit when `monitor` has not improved by `min_delta` for `patience` epochs, as Keras counts them.

    With patience 0 or 1 the first epoch without improvement is the last.

    With `restore_best` the model gets the weights of its best epoch back when the fit ends.
    """
    sign = _sign(monitor, mode)

    def answer(event: Event, memory: dict[str, Any]) -> str | None:
        if event.kind == "epoch":
            value = sign * _monitored("early_stopping", monitor, event.logs)
            if value < memory["best"] - min_delta:
                memory |= {"best": value, "waited": 0, "kept": event.model.variables if restore_best else None}
            else:
                memory["waited"] += 1
            return "stop" if memory["waited"] >= max(patience, 1) else None
        if event.kind == "end" and memory["kept"] is not None:
            event.model.variables = memory["kept"]
        return None

    return Remembering("early_stopping", {"best": math.inf, "waited": 0, "kept": None}, answer)


def best_checkpoint(
    path: str | pathlib.Path, monitor: str = "val_loss", mode: Literal["auto", "min", "max"] = "auto"
) -> Callback:
    """Saves the model to `path` after each epoch whose `monitor` is the best so far."""
    sign = _sign(monitor, mode)

    def answer(event: Event, memory: dict[str, Any]) -> None:
        if event.kind == "epoch":
            value = sign * _monitored("best_checkpoint", monitor, event.logs)
            if value < memory["best"]:
                memory["best"] = value
                event.model.save(path)

    return Remembering("best_checkpoint", {"best": math.inf}, answer)


def csv_log(path: str | pathlib.Path) -> Callback:
    """Writes a line of metrics an epoch to a CSV file, with a line of names above the first."""

    def answer(event: Event, memory: dict[str, Any]) -> None:
        if event.kind == "epoch":
            with open(path, "a" if memory["started"] else "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["epoch", *event.logs])
                if not memory["started"]:
                    writer.writeheader()
                writer.writerow({"epoch": event.epoch, **event.logs})
            memory["started"] = True

    return Remembering("csv_log", {"started": False}, answer)


def tensorboard(folder: str | pathlib.Path) -> Callback:
    """Writes the metrics of each epoch for TensorBoard."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise missing_package("callbacks.tensorboard", "tensorboardX", "tensorboard") from error
    writer = SummaryWriter(str(folder))

    def callback(event: Event) -> None:
        if event.kind == "epoch":
            for name, value in event.logs.items():
                writer.add_scalar(name, value, event.epoch)
            writer.flush()
        elif event.kind == "end":
            writer.close()

    return callback


def direction(monitor: str, mode: str = "auto") -> Literal["min", "max"]:
    """Whether less or more of a metric is better; "auto" goes by its name.

    >>> direction("val_loss"), direction("val_accuracy")
    ('min', 'max')
    """
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"callbacks: mode wants auto, min or max, got {mode!r}")
    if mode == "auto":
        mode = "max" if any(part in monitor for part in _MORE_IS_BETTER) else "min"
    return "max" if mode == "max" else "min"


def _sign(monitor: str, mode: str) -> float:
    return -1.0 if direction(monitor, mode) == "max" else 1.0


def _monitored(who: str, monitor: str, logs: dict[str, float]) -> float:
    if monitor not in logs:
        hint = "; pass validation_data= or validation_split= to fit" if monitor.startswith("val_") else ""
        raise ValueError(f"{who}: there is no metric {monitor!r}, only {', '.join(logs)}{hint}")
    return logs[monitor]
