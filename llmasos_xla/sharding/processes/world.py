"""World: which process of how many this is."""

import dataclasses
import socket


@dataclasses.dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it.

    Attributes:
        rank: this process's number, 0 to size - 1.
        size: how many there are.
        local_rank: its number among those of its host.
        host: the host's name.
        coordinator: "address:port" where rank 0 is met; None with one process.
        source: who said so: arguments, environment, slurm, ray, kubernetes, tpu, openmpi, or none.
    """

    rank: int
    size: int
    local_rank: int
    host: str
    coordinator: str | None
    source: str


_current: World | None = None


def world() -> World:
    """The processes that this one runs with; a world of one before `initialize`.

    >>> world().rank, world().size
    (0, 1)
    """
    return _current or World(0, 1, 0, socket.gethostname(), None, "none")


def enter(new: World) -> World:
    """Makes `new` the current world."""
    global _current
    _current = new
    return new


def entered() -> bool:
    """Whether `initialize` has been here."""
    return _current is not None
