"""What becomes of a job whose processes have ended: done, started again, failed or cancelled, and why in words."""

import os
import pathlib
from typing import Any

from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.runtime.jobs import Job, State
from llmasos_xla.runtime.launchers.protocol import LOST, TAKEN, how_it_ended

LONGEST_PAUSE = 60.0
"""Seconds between a failure and the next start, at most."""
_LOOKED_AT = 4096


def ending(
    job: Job, status: int, now: float, log: pathlib.Path, stuck: str | None = None
) -> tuple[State, dict[str, Any]]:
    """The state that follows, and what else changes of the job.

    Args:
        job: as it was while it ran.
        status: how its processes ended: an exit status, LOST or TAKEN.
        now: seconds since 1970.
        log: where its output is.
        stuck: why it was killed, if it was for a fault of its own.
    """
    again: dict[str, Any] = {"queued": now, "token": None, "handle": None, "status": None, "not_before": now}
    if job.asked == "cancel":
        return "cancelled", {"status": status, "reason": "it was cancelled", "asked": None}
    if status == TAKEN:
        return "cancelled", {"reason": "it was cancelled where it ran, not here"}
    if status == 0:
        return "done", {"status": 0, "reason": "", "asked": None}
    if status == EXIT_SAVED:
        # One that asks by itself to be started again shall not do so in a circle.
        again["not_before"] += 0.0 if job.state == "draining" else 1.0
        return "queued", {**again, "reason": "it saved itself", "asked": None}
    if job.state == "draining" and stuck is None:
        return "queued", {**again, "reason": "it ended without saving itself", "asked": None}
    if status == LOST and job.state == "starting":
        return "queued", {**again, "reason": "it was never started", "asked": None}
    failures = job.failures + 1
    how = stuck or how_it_ended(status) + _last_line(log)
    if failures > job.spec.retries:
        reason = f"{how}, {failures} times" if failures > 1 else how
        return "failed", {"status": status, "failures": failures, "reason": reason}
    again["not_before"] += min(2.0**failures / 2, LONGEST_PAUSE)
    reason = f"{how}; {job.spec.retries - failures} more tries"
    return "queued", {**again, "failures": failures, "reason": reason, "asked": None}


def _last_line(log: pathlib.Path) -> str:
    """The end of a job's log, which most often says why."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOOKED_AT))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:200]}" if last else ""
