"""Locks that end with the process that holds them, whoever kills it: `flock`, across machines where the files are."""

import fcntl
import time
from typing import IO


def take(file: IO, seconds: float = 0.0, every: float = 0.2) -> bool:
    """Takes an open file's lock, held until the file is closed; False if another holds it still after so many seconds.

    Args:
        file: which.
        seconds: how long to try.
        every: seconds between two tries.
    """
    deadline = time.monotonic() + seconds
    while not _locked(file, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def is_held(file: IO) -> bool:
    """Whether another holds an open file's lock. To look is to share it until the file is closed."""
    return not _locked(file, fcntl.LOCK_SH)


def is_free(path: str) -> bool:
    """Whether nobody holds a file's lock, or the file is not there."""
    try:
        with open(path) as file:
            return not is_held(file)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _locked(file: IO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        # Another has it; or the file system cannot say, and then nobody is to go on.
        return False
    return True
