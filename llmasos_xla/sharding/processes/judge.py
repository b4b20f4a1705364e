"""Who failed first: what rank 0 hears of the ranks, turned into one verdict."""

import dataclasses
from typing import NamedTuple, final

# Good-byes of ranks that end together come in any order, and a little after the ends themselves.
_GOODBYE_SECONDS = 1.0


class Verdict(NamedTuple):
    """The rank that is the cause, and what happened to it."""

    rank: int
    reason: str


@dataclasses.dataclass
class _Rank:
    heard: float
    ended: float | None = None
    gone: bool = False


@final
class Judge:
    """Remembers what was heard of each rank, and when; times are those of one clock, in seconds.

    Args:
        size: how many ranks there are.
        heartbeat: seconds of silence after which a rank is given up; rank 0, where this runs, is never silent.
        now: the time at which all of them were there.
    """

    def __init__(self, size: int, heartbeat: float, now: float):
        self._ranks = [_Rank(now) for _ in range(size)]
        self._heartbeat = heartbeat
        self._charges: list[tuple[float, Verdict]] = []

    def heard(self, rank: int, now: float) -> None:
        """A sign of life."""
        self._ranks[rank].heard = now

    def failed(self, rank: int, reason: str, secondhand: bool, now: float) -> None:
        """The rank tells why it fails. What looks like another's doing waits a heartbeat for that other."""
        self._charges.append((now + self._heartbeat * secondhand, Verdict(rank, reason)))

    def ended(self, rank: int, now: float) -> None:
        """The rank says good-bye: its script is over, and it waits for the others."""
        self._ranks[rank].ended = now

    def closed(self, rank: int, now: float) -> None:
        """The rank's connection is closed."""
        self._ranks[rank].gone = True
        if self._ranks[rank].ended is None:
            text = "its connection closed without a word: killed (kill -9, out of memory) or crashed"
            self._charges.append((now, Verdict(rank, text)))
        else:
            # In order only if all have said good-bye.
            text = "it was killed while it waited for the others to end"
            self._charges.append((now + _GOODBYE_SECONDS, Verdict(rank, text)))

    def slept(self, now: float) -> None:
        """This process itself was stopped for a while: that the others are not heard from says nothing of them."""
        for rank in self._ranks:
            rank.heard = now

    @property
    def all_ended(self) -> bool:
        """Whether every rank has said good-bye."""
        return all(rank.ended is not None for rank in self._ranks)

    def waiting(self) -> tuple[list[int], list[int], float]:
        """Ranks that have ended, ranks that have not, and since when the first waits."""
        ended = [number for number, rank in enumerate(self._ranks) if rank.ended is not None]
        others = [number for number, rank in enumerate(self._ranks) if rank.ended is None]
        return ended, others, min((rank.ended for rank in self._ranks if rank.ended is not None), default=0.0)

    def verdict(self, now: float) -> Verdict | None:
        """The cause, or None as long as nobody has failed."""
        text = f"no sign of life for {self._heartbeat:g} s: stopped, stuck in C code, or cut off the network"
        silent = [
            (now, Verdict(number, text))
            for number, rank in enumerate(self._ranks)
            if number and not rank.gone and now - rank.heard > self._heartbeat
        ]
        due = [charge for charge in self._charges + silent if charge[0] <= now]
        return min(due)[1] if due else None
