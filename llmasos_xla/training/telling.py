"""A fit tells the queue that runs it how far it has come, and asks for the bytes that it needs before its first step.

Metrics are told after each epoch, for those who compare jobs while they run (`lm.runtime.tune`).

The fit's program is compiled by then, so that the bytes are known, and hardly anything of them is taken yet.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import final

import jax

from llmasos_xla.compiling import CompileRecord
from llmasos_xla.progress import ASKED, VARIABLE, Need, Progress, Report, ask, is_granted, report, write
from llmasos_xla.training.report import Quiet

_SECONDS, _LOOK_SECONDS = 0.25, 0.02
# For batches under way, validation, and what the allocator does not give back.
_MARGIN = 1.15
# What a process takes of a GPU before any array: CUDA's context, code of libraries. As is usual; not measured here.
_CONTEXT = 600 << 20


def teller(saves: bool) -> tuple[Quiet, ...]:
    """A reporter that writes such files, where they are asked for; else none."""
    beginning = os.environ.get(VARIABLE)
    return (_Teller(beginning, saves),) if beginning else ()


def wait_for_room(compiled: Sequence[CompileRecord], saves: bool, told_to_end: Callable[[], bool]) -> bool:
    """Asks for what the program that was compiled last needs, and waits; False if the fit was told to end meanwhile.

    Where nobody is to be asked, and in a process's later fits, there is nothing to wait for.
    """
    beginning = os.environ.get(VARIABLE)
    if not beginning or not os.environ.pop(ASKED, None) or not compiled:
        return True
    ask(beginning, jax.process_index(), need_of(compiled[-1], saves))
    while not is_granted(beginning):
        if told_to_end():
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def need_of(program: CompileRecord, saves: bool) -> Need:
    """The bytes of a fit whose arrays are there and whose step has not run.

    On CPUs devices have no memory of their own: what the step adds to the process is its intermediate values, and a
    copy of the arrays while they are saved.
    """
    devices = len(jax.local_devices())
    copy = program.argument_bytes if saves else 0
    if jax.default_backend() == "cpu":
        return Need(int((_resident() + devices * program.temporary_bytes + copy) * _MARGIN), 0)
    device = program.argument_bytes + program.temporary_bytes
    return Need(int((_resident() + copy) * _MARGIN), int(device * _MARGIN) + _CONTEXT)


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@final
class _Teller(Quiet):
    def __init__(self, beginning: str, saves: bool):
        self._beginning, self._saves, self._told_at = beginning, saves, 0.0
        self._rank = jax.process_index()
        self._steps = self._epoch = 0
        self._untold: tuple[int, dict[str, float]] | None = None
        self._failed = False

    def begin(self, first_epoch: int, last_epoch: int, steps: int) -> None:
        self._steps, self._epoch = steps, first_epoch
        self._tell(0, {})

    def epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def step(self, step: int, samples_per_second: float, logs: dict[str, float]) -> None:
        self._tell_now_and_then(step, logs)

    def epoch_end(
        self, epoch: int, seconds: float, samples_per_second: float, logs: dict[str, float], energy: str = ""
    ) -> None:
        if self._rank == 0:
            values = {name: float(value) for name, value in logs.items()}
            with self._carefully():
                report(self._beginning, Report(epoch, values, time.time()))
        self._tell_now_and_then(self._steps, logs)

    def end(self) -> None:
        if self._untold is not None:
            self._tell(*self._untold)

    def _tell_now_and_then(self, step: int, logs: dict[str, float]) -> None:
        self._untold = step, logs
        if time.monotonic() > self._told_at + _SECONDS:
            self._tell(step, logs)

    def _tell(self, step: int, logs: dict[str, float]) -> None:
        self._told_at, self._untold = time.monotonic(), None
        loss = logs.get("loss")
        told = Progress(self._epoch * self._steps + step, self._epoch, loss, self._saves, time.time())
        with self._carefully():
            write(self._beginning, self._rank, told)

    @contextlib.contextmanager
    def _carefully(self) -> Iterator[None]:
        """A full disk under the queue is no reason to lose a training."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                print(f"llmasos: the queue cannot be told how far the fit is: {error}", file=sys.stderr)
            self._failed = True
