"""What becomes of the servers when the script that started them ends.

A script that ends after `deploy` goes on serving until Ctrl-C; `sys.exit` ends a script too. In an interpreter or
Jupyter the servers end with it, and so they do when the script ends with an error. Should this process be killed, each
server sees its standard input end and follows; nothing here has a part in that.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence

from llmasos_xla.deployment.handle import Handle

_LIVE: list[tuple[Handle, bool]] = []


def keep(handle: Handle, wait: bool | None) -> None:
    """Looks after `handle` until it is stopped; `wait`: whether a script that ends goes on serving (None: decide)."""
    # The last to be registered runs first: what the servers need, folders for instance, is cleaned up behind it.
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    _LIVE[:] = [(other, w) for other, w in _LIVE if other.running]
    _LIVE.append((handle, not interactive() if wait is None else wait))


def interactive() -> bool:
    """Whether a person types here, or a parent process decides: then no end of a script is to be waited at."""
    shell = sys.modules.get("IPython")
    return (
        hasattr(sys, "ps1")
        or bool(sys.flags.interactive)
        or (shell is not None and shell.get_ipython() is not None)
        or multiprocessing.parent_process() is not None
    )


def _at_exit() -> None:
    live = [(handle, wait) for handle, wait in _LIVE if handle.running]
    waiting = [handle for handle, wait in live if wait]
    ended = []
    try:
        if waiting and not _script_failed():
            ended = _serve_on(waiting)
    finally:
        for handle, _ in live:
            handle.stop()
    if ended:
        # The one way left to tell a supervisor: exit functions cannot change the exit status.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _script_failed() -> bool:
    # Set by the interpreter when it prints the traceback of an error that nobody caught.
    return getattr(sys, "last_value", None) is not None


def _serve_on(handles: Sequence[Handle]) -> list[Handle]:
    """Waits for Ctrl-C, or for a server that ends by itself; returns those that did."""
    try:
        # Whoever reads this may press Ctrl-C at once.
        for handle in handles:
            print(f"Serving {handle.name!r} at {handle.url} until Ctrl-C. Try:\n  {handle.curl}", flush=True)
        while not (ended := [handle for handle in handles if not handle.running]):
            time.sleep(0.2)
    except KeyboardInterrupt:
        # A second Ctrl-C would cut the stopping short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\nStopping.", flush=True)
        return []
    for handle in ended:
        print(f"{handle!r}: the server ended by itself{handle.last_words()}", file=sys.stderr, flush=True)
    return ended
