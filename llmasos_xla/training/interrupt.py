"""Ctrl-C between two dispatches, never inside one.

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
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only; there is nothing to hold back here.
        yield lambda: False
        return
    came = False
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal came
        if came and callable(before):
            before(number, frame)
        came = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
