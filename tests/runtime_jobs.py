"""Jobs for tests of the queue, and who runs of them."""

import contextlib
import os
import time

from llmasos_xla.runtime.jobs import Spec


def marked(token):
    """Processes of an attempt."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if f"LLMASOS_ATTEMPT={token}".encode() in file.read().split(b"\0"):
                found.append(int(name))
    return found


def spec(*command, **more):
    """A job that runs a shell's command."""
    return Spec(**{"name": "job", "command": ("sh", "-c", *command), "folder": "/", "user": "u", **more})


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
