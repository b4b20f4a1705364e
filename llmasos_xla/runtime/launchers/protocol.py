"""What the supervisor asks of whatever runs jobs."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from llmasos_xla.runtime.claims import Node
from llmasos_xla.runtime.jobs import Place, Spec

LOST = -1
"""The status of an attempt whose processes are gone, and nobody knows how they ended."""
TAKEN = -2
"""The status of an attempt that somebody else has taken out of the queue that held it."""


_SIGNALS = 64


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status == LOST:
        return "its processes are gone, and nobody knows how they ended"
    # 255 is what -1 becomes.
    return f"signal {status - 128} ended it" if 128 < status <= 128 + _SIGNALS else f"it ended with status {status}"


class Attempt(NamedTuple):
    """One start of a job on some devices."""

    job: int
    token: str
    """Of this attempt alone."""
    spec: Spec
    places: tuple[Place, ...]
    folder: pathlib.Path
    """The job's own."""
    device_bytes: int | None = None
    """What it may take of each device, where it may have to share them; None: all."""


@runtime_checkable
class Launcher(Protocol):
    """Runs attempts. What it returns from `start` is all that another process needs to go on with an attempt."""

    def capacity(self) -> Sequence[Node]:
        """The machines, with their devices and memory, used or not."""
        ...

    def start(self, attempt: Attempt) -> str:
        """Starts the processes of a gang; the handle by which they are found again. Raises OSError if it cannot."""
        ...

    def drain(self, attempt: Attempt, handle: str | None) -> None:
        """Asks it to save and end; whoever is there after the job's grace is killed. Once is enough."""
        ...

    def kill(self, attempt: Attempt, handle: str | None) -> None:
        """Ends it now, with all that it started."""
        ...

    def poll(self, attempt: Attempt, handle: str | None) -> int | None:
        """None while it runs; then its exit status, 128 + N for signal N, LOST if nobody knows.

        Once a status is told nothing of the attempt runs any more, and never will. Without a handle: of an attempt that
        a supervisor may have started just before it was killed; so it is for `drain` and `kill`.
        """
        ...


class Told(NamedTuple):
    """Where an attempt is that a queue of others' holds."""

    places: tuple[Place, ...]
    """The devices that it runs on; empty while it waits there."""
    why: str
    """Why it waits, in that queue's words."""
    lost: int
    """How often it was begun anew there because a machine failed under it."""


@runtime_checkable
class Queueing(Launcher, Protocol):
    """A launcher with a queue of its own: where and when something runs is decided there, and no plan is made here.

    What it has started may wait, and may be put back and begun anew by it; it is one attempt until `poll` tells a
    status. It needs no engine to go on.
    """

    def choose(self, attempt: Attempt, *, runs: bool) -> int:
        """The number of devices to ask for now, one of the job's legal ones.

        The attempt has a token and places if it was started before; `runs` says that its devices are its own.
        """
        ...

    def told(self, attempt: Attempt, handle: str | None) -> Told:
        """Where it is, after a `poll` that told no status."""
        ...
