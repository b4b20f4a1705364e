"""When a fit is saved, what of it is kept, and when it stops: options, and one decision after each dispatch."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, final

from llmasos_xla.training.callbacks import direction


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often a fit saves itself, and which of its checkpoints are kept.

    Args:
        folder: a folder of this fit's own; it is made if it is not there.
        every_steps: save once so many updates have passed since the last save.
        every_seconds: save once so many seconds have passed since the last save.
        every_epochs: save after each so many epochs.
        keep: how many of the newest are kept.
        best: a metric of the epochs, "val_loss" or ("val_accuracy", "max"), by which some are kept besides.
        keep_best: how many of those.

    Each of the three intervals may be None, which switches it off. The end of a fit, Ctrl-C and SIGTERM always save.

    Raises ValueError for numbers that make no sense.

    >>> Checkpoint("runs/a", every_steps=500, best="val_accuracy").best
    ('val_accuracy', 'max')
    """

    folder: str | os.PathLike
    _: dataclasses.KW_ONLY
    every_steps: int | None = None
    every_seconds: int | float | None = 300
    every_epochs: int | None = 1
    keep: int = 3
    best: str | tuple[str, str] | None = None
    keep_best: int = 1

    def __post_init__(self):
        if not isinstance(self.folder, str | os.PathLike) or not str(self.folder) or "://" in str(self.folder):
            raise ValueError(
                f"Checkpoint: folder wants a folder on a file system that every process sees, got {self.folder!r}"
            )
        object.__setattr__(self, "folder", pathlib.Path(self.folder))
        for name in ("every_steps", "every_epochs", "keep", "keep_best"):
            value = getattr(self, name)
            optional = name.startswith("every")
            if not (value is None and optional) and (type(value) is not int or value < 1):
                raise ValueError(
                    f"Checkpoint: {name} wants a whole number >= 1{' or None' if optional else ''}, got {value!r}"
                )
        seconds = self.every_seconds
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0):
            raise ValueError(f"Checkpoint: every_seconds wants a number >= 0 or None, got {seconds!r}")
        if self.best is not None:
            object.__setattr__(self, "best", _metric_and_mode(self.best))


Stop = Literal["", "interrupt", "terminate"]
STOPS: tuple[Stop, ...] = ("", "interrupt", "terminate")


class Decision(NamedTuple):
    """What a fit does after a dispatch."""

    save: bool = False
    """Whether the state is saved."""
    stop: Stop = ""
    """Whether the fit ends here, by Ctrl-C or by SIGTERM; then it is saved as well."""


@final
class Pace:
    """Decides after each dispatch whether a fit saves and whether it ends.

    Args:
        checkpoint: the intervals; None never saves.
        terminated: tells whether SIGTERM came.
        clock: seconds.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        terminated: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._checkpoint, self._terminated, self._clock = checkpoint, terminated, clock
        self._saved_at: tuple[int, float] | None = None

    def wish(self, interrupted: bool) -> Decision:
        """What this process would do by its own clock and signals, which are not those of other processes."""
        options, late = self._checkpoint, False
        if options is not None and options.every_seconds is not None and self._saved_at is not None:
            late = self._clock() - self._saved_at[1] >= options.every_seconds
        return Decision(late, "terminate" if self._terminated() else "interrupt" if interrupted else "")

    def decide(self, updates: int, wish: Decision, epochs: int | None = None) -> Decision:
        """What to do after `updates` updates, by a wish that is the same in all processes.

        `epochs` is the number of those done, given where one has just ended.
        """
        return Decision(wish.save or self._due(updates, epochs), wish.stop)

    def start(self, updates: int) -> None:
        """The fit begins, or a save is done, with so many updates: the intervals are counted from here."""
        self._saved_at = updates, self._clock()

    def _due(self, updates: int, epochs: int | None) -> bool:
        options = self._checkpoint
        if options is None or self._saved_at is None:
            return False
        if options.every_steps is not None and updates - self._saved_at[0] >= options.every_steps:
            return True
        return bool(epochs and options.every_epochs and epochs % options.every_epochs == 0)


def _metric_and_mode(best: Any) -> tuple[str, str]:
    if isinstance(best, str) and best:
        return best, direction(best)
    if (
        isinstance(best, tuple | list)
        and len(best) == 2
        and isinstance(best[0], str)
        and best[1] in ("auto", "min", "max")
    ):
        return best[0], direction(best[0], best[1])
    raise ValueError(f'Checkpoint: best wants a metric, "val_loss" or ("val_accuracy", "max"), got {best!r}')
