"""What a person sees while a model trains: a progress bar, plain lines, or nothing."""

import contextlib
import html
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any


class Quiet:
    """Reports nothing."""

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        """A fit starts, over epochs first_epoch..last_epoch - 1 of so many steps."""

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Around the compilation of a program."""
        yield

    def epoch(self, epoch: int) -> None:
        """An epoch starts."""

    def step(self, step: int, samples_per_second: float, logs: dict[str, float]) -> None:
        """The epoch has come to `step`, with these metrics so far."""

    def epoch_end(
        self, epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str = ""
    ) -> None:
        """An epoch is over; `energy` says what a sample cost, behind the last one."""

    def note(self, text: str) -> None:
        """Something worth saying happened."""

    def end(self) -> None:
        """The fit is over, however it ended."""

    def print(self, text: str) -> None:
        """A result outside of any fit."""


class Lines(Quiet):
    """One plain line an epoch, and one for each compilation: for logs and pipes."""

    def print(self, text: str) -> None:
        """Prints the text."""
        print(text, flush=True)

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        """Remembers the number of epochs."""
        self.last_epoch = last_epoch

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Prints how long it took."""
        started = time.perf_counter()
        yield
        self.note(f"compiled {what} in {time.perf_counter() - started:.2f} s")

    def epoch_end(
        self, epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str = ""
    ) -> None:
        """Prints the epoch's line."""
        self.note(_epoch_line(epoch, self.last_epoch, seconds, samples_per_second, logs, energy))

    def note(self, text: str) -> None:
        """Prints the text."""
        print(text, flush=True)


class Bar(Quiet):
    """A live progress bar by rich, in terminals; compiling is a phase of its own."""

    def __init__(self):
        from rich import progress, table

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            # In a narrow terminal the metrics are cut, not the epoch.
            progress.TextColumn("{task.fields[text]}", markup=False, table_column=table.Column(ratio=1, no_wrap=True)),
            expand=True,
            refresh_per_second=8,
        )
        self.task: Any = None

    def print(self, text: str) -> None:
        """Prints the text."""
        print(text, flush=True)

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        """Draws the bar."""
        self.steps, self.last_epoch = steps, last_epoch
        self.bar.start()

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Shows a bar without an end while the program compiles."""
        task = self.bar.add_task(f"compiling {what}", total=None, text="")
        started = time.perf_counter()
        try:
            yield
        finally:
            self.bar.remove_task(task)
        self.note(f"compiled {what} in {time.perf_counter() - started:.2f} s")

    def epoch(self, epoch: int) -> None:
        """A new bar for the epoch."""
        self.task = self.bar.add_task(f"Epoch {epoch + 1}/{self.last_epoch}", total=self.steps, text="")

    def step(self, step: int, samples_per_second: float, logs: dict[str, float]) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=step, text=f"{samples_per_second:.0f}/s  {_metrics(logs)}")

    def epoch_end(
        self, epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str = ""
    ) -> None:
        """Leaves a line in place of the bar: rich cuts off what does not fit the screen, and epochs may be hundreds."""
        self.bar.remove_task(self.task)
        self.note(_epoch_line(epoch, self.last_epoch, seconds, samples_per_second, logs, energy))

    def note(self, text: str) -> None:
        """Prints above the bar."""
        self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Stops redrawing."""
        self.bar.stop()


class Notebook(Lines):
    """In Jupyter: a bar that is redrawn in place, and a line for each epoch below it. Needs no widgets."""

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        """Draws the bar."""
        from IPython import display

        super().begin(first_epoch, last_epoch, steps)
        self.steps, self.now = steps, first_epoch
        self.html = display.HTML
        self.area: Any = display.display(display.HTML(""), display_id=True)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Shows a bar without an end, then how long it took."""
        self._draw("<progress></progress>", f"compiling {what}")
        with super().compiling(what):
            yield
        self._draw("", "")

    def epoch(self, epoch: int) -> None:
        """A new bar for the epoch."""
        self.now = epoch
        self.step(0, 0.0, {})

    def step(self, step: int, samples_per_second: float, logs: dict[str, float]) -> None:
        """Moves the bar."""
        bar = f'<progress value="{step}" max="{self.steps}"></progress>'
        rate = f"{samples_per_second:.0f}/s" if step else ""
        self._draw(bar, f"Epoch {self.now + 1}/{self.last_epoch}  {step}/{self.steps}  {rate}  {_metrics(logs)}")

    def end(self) -> None:
        """Takes the bar away."""
        self._draw("", "")

    def _draw(self, bar: str, text: str) -> None:
        self.area.update(self.html(f"{bar} <code>{html.escape(text)}</code>" if text else ""))


def reporter(verbose: int) -> Quiet:
    """The reporter for `verbose`: 0 is quiet; 1 is a bar in a terminal or notebook and plain lines elsewhere."""
    if verbose not in (0, 1):
        raise ValueError(f"fit: verbose wants 0 (quiet) or 1 (progress), got {verbose!r}")
    if not verbose:
        return Quiet()
    if _in_notebook():
        return Notebook()
    return Bar() if sys.stdout.isatty() else Lines()


_LISTENERS: list[Quiet] = []


@contextlib.contextmanager
def listening(listener: Quiet) -> Iterator[None]:
    """Within the block `listener` is told what every fit of this process reports, beside the fit's own reporter."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def heard(report: Quiet, *others: Quiet) -> Quiet:
    """A reporter that tells the others, and whoever listens at this moment, too."""
    listeners = (*others, *_LISTENERS)
    return _Several((report, *listeners)) if listeners else report


class _Several(Quiet):
    """Tells each of several reporters the same."""

    def __init__(self, reports: Sequence[Quiet]):
        self.reports = reports

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        for report in self.reports:
            report.begin(first_epoch, last_epoch, steps)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for report in self.reports:
                stack.enter_context(report.compiling(what))
            yield

    def epoch(self, epoch: int) -> None:
        for report in self.reports:
            report.epoch(epoch)

    def step(self, step: int, samples_per_second: float, logs: dict[str, float]) -> None:
        for report in self.reports:
            report.step(step, samples_per_second, logs)

    def epoch_end(
        self, epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str = ""
    ) -> None:
        for report in self.reports:
            report.epoch_end(epoch, seconds, samples_per_second, logs, energy)

    def note(self, text: str) -> None:
        for report in self.reports:
            report.note(text)

    def end(self) -> None:
        for report in self.reports:
            report.end()

    def print(self, text: str) -> None:
        for report in self.reports:
            report.print(text)


def _in_notebook() -> bool:
    # A shell with a kernel: Jupyter's and Colab's, but not IPython's in a terminal.
    return "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel")


def _metrics(logs: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in logs.items())


def _epoch_line(
    epoch: int, last_epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str
) -> str:
    text = f"Epoch {epoch + 1}/{last_epoch}  {seconds:.1f} s  {samples_per_second:.0f}/s  {_metrics(logs)}"
    return f"{text}  {energy}" if energy else text
