"""Threads that make way for those that answer requests."""

import logging
import os
import threading

_LOG = logging.getLogger("llmasos_xla.deployment")
_NICENESS = 10


def yield_to_others() -> None:
    """Lowers the priority of the thread that calls it."""
    # On Linux the niceness is a thread's own. Children of this thread would have it, too; it starts none.
    if hasattr(os, "setpriority") and hasattr(threading, "get_native_id"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError as error:
            _LOG.debug("deployment: the priority stays: %s", error)
