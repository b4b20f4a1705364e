"""Ctrl-C and SIGTERM between two dispatches, never inside one.

A donated state is gone once its program is called, so an exception between that call and the assignment of its result
would lose the weights.
"""

import contextlib
import signal
import threading
import types
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C is remembered; the yielded function tells whether it came. A second one acts at once."""
    with _deferred(signal.SIGINT, second_acts=True) as came:
        yield came


@contextlib.contextmanager
def deferred_termination(active: bool = True) -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM is remembered, however often it comes; the yielded function tells whether it did."""
    if not active:
        yield lambda: False
        return
    with _deferred(signal.SIGTERM, second_acts=False) as came:
        yield came


@contextlib.contextmanager
def _deferred(number: signal.Signals, second_acts: bool) -> Iterator[Callable[[], bool]]:
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only; there is nothing to hold back here.
        yield lambda: False
        return
    came = False
    before = signal.getsignal(number)

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal came
        if came and second_acts and callable(before):
            before(number, frame)
        came = True

    signal.signal(number, handle)
    try:
        yield lambda: came
    finally:
        # None stands for a handler that Python did not install and cannot put back.
        signal.signal(number, signal.SIG_DFL if before is None else before)
