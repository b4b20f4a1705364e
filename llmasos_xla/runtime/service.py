"""Whether an engine runs, and how one is started and ended. Loads little: every command of the queue comes here."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.launchers.keeper import born, lives, write
from llmasos_xla.runtime.locks import is_held
from llmasos_xla.sharding.processes.launch import package_path

_START_SECONDS = 30.0


def running(home: Home) -> dict[str, Any] | None:
    """What the engine of a home says of itself: pid, devices, memory, since; None where none runs.

    Empty where one has just begun.
    """
    try:
        with open(home.lock) as lock:
            if not is_held(lock):
                return None
            found = json.loads(lock.read() or "{}")
            # Until the engine has told of itself the file is one's who was killed.
            return found if found and lives(found) else {}
    except FileNotFoundError:
        return None


def up(home: Home, *options: str) -> dict[str, Any]:
    """Starts an engine in the background unless one runs; what it says of itself.

    Raises RuntimeError with the end of its log if it does not come up, or where there is no Linux.
    """
    if sys.platform != "linux":
        raise RuntimeError(
            f"up: the engine needs Linux, whose /proc tells what becomes of a job's processes; this is {sys.platform}. "
            "Submit to a queue on a Linux machine, or run the script itself"
        )
    home.make()
    if (found := running(home)) and found:
        return found
    # By way of a shell, so that it is nobody's child: not ended with whoever starts it, nor waited for.
    engine = [sys.executable, "-P", "-m", "llmasos_xla.runtime.engine", "--home", str(home.path), *options]
    started = subprocess.run(
        ["/bin/sh", "-c", '"$0" "$@" </dev/null >>"$LLMASOS_LOG" 2>&1 & echo $!', *engine],
        env={**os.environ, **package_path(), "LLMASOS_LOG": str(home.log)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    pid = int(started.stdout)
    deadline = time.monotonic() + _START_SECONDS
    while not (found := running(home)):
        # Where another one comes up, if slowly, this one has only come too late.
        if born(pid) is None and running(home) is None:
            lines = home.log.read_text(errors="replace").splitlines()[-5:]
            raise RuntimeError("up: the engine does not start:\n  " + "\n  ".join(lines))
        if time.monotonic() > deadline:
            raise TimeoutError(f"up: the engine has not come up within {_START_SECONDS:g} s; see {str(home.log)!r}")
        time.sleep(0.02)
    return found


def remember(home: Home, options: Sequence[str]) -> None:
    """Keeps the options that somebody gave, for whoever starts the engine next without saying any."""
    write(home.make().options, list(options))


def remembered(home: Home) -> list[str]:
    """Those options."""
    try:
        return json.loads(home.options.read_text())
    except FileNotFoundError:
        return []


def down(home: Home, *, timeout: float | int = 120.0) -> bool:
    """Has all jobs save and wait for the next engine, and ends this one; False if none ran."""
    deadline = time.monotonic() + timeout
    while (found := running(home)) == {}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"down: an engine has been coming up for {timeout:g} s; see {str(home.log)!r}")
        time.sleep(0.05)
    if found is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(found["pid"], signal.SIGTERM)
    while running(home) is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"down: jobs have not ended within {timeout:g} s; the engine waits on")
        time.sleep(0.05)
    return True
