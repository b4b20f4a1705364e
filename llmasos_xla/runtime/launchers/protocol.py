"""What the supervisor asks of whatever runs jobs."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from llmasos_xla.runtime.claims import Node
from llmasos_xla.runtime.jobs import Place, Spec

LOST = -1
"""The status of an attempt whose processes are gone, and nobody knows how they ended."""


class Attempt(NamedTuple):
    """One start of a job on some devices."""

    job: int
    token: str
    """Of this attempt alone."""
    spec: Spec
    places: tuple[Place, ...]
    folder: pathlib.Path
    """The job's own."""


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
