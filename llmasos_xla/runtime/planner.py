"""Who gets how many devices, and which: one pure function, with no clock and no I/O.

The queue is ordered by effective priority: points, and seconds of waiting as points (aging), less what the user's
other jobs already want (fairness), and a margin for those that run. Along it each job gets its minimum: on devices that
nobody has, else on those that others have beyond their minimum, else on those of jobs behind it, last in the queue
first. A gang comes whole or not at all. What is left goes where another device adds most speed. Who has run for less
than `Rules.least_run` is not touched; who waits for nothing but that has its devices kept free.
"""

import collections
import dataclasses
import heapq
import math
from collections.abc import Sequence

import numpy as np

from llmasos_xla.runtime import reasons
from llmasos_xla.runtime.claims import Claim, Node, Plan, Rules
from llmasos_xla.runtime.seats import CORE, FREE, SURPLUS, Need, Seats, need


def plan(claims: Sequence[Claim], nodes: Sequence[Node], rules: Rules = Rules()) -> Plan:
    """Sizes and places of all jobs. The order of the arguments does not matter.

    A job whose size stays keeps its places, unless others must have them. No node's and no device's bytes are exceeded.
    With a hysteresis or a least run, a plan of the state that a plan leads to is that plan again.

    Raises ValueError if two claims, or two nodes, have one name.

    >>> two = Node("here", devices=(0, 0), memory=8 * 2**30)
    >>> low = Claim("low", sizes=(1, 2), size=2, places=(("here", 0), ("here", 1)), running=600.0)
    >>> found = plan([low, Claim("urgent", priority=10)], [two])
    >>> dict(found.sizes)
    {'low': 1, 'urgent': 1}
    >>> found.places["low"], found.reasons["low"]
    ((('here', 0),), 'shrinks from 2 to 1 device: urgent (priority 10) wants its minimum')
    """
    for kind, names in (("claims", [c.name for c in claims]), ("nodes", [n.name for n in nodes])):
        if len(set(names)) < len(names):
            twice = min(name for name, count in collections.Counter(names).items() if count > 1)
            raise ValueError(f"plan: two {kind} have the name {twice!r}; names tell them apart, give each its own")
    nodes = sorted(nodes, key=lambda node: node.name)
    queue = ordered(claims, sum(len(node.devices) for node in nodes), rules)
    first = draft = _drawn(queue, nodes, rules)
    # Jobs that move together to grow may make room: is there a place then for one that waits, or for one ahead of it?
    while len(draft.given) < len(queue):
        better = _drawn(draft.followed(), nodes, rules)
        if [c.name in better.given for c in queue] <= [c.name in draft.given for c in queue]:
            break
        draft = better
    return Plan(
        {name: len(draft.given.get(name, ())) for name in sorted(c.name for c in claims)},
        {name: draft.seats.places(draft.given[name]) for name in sorted(draft.given)},
        reasons.reasons(draft, first, nodes),
    )


def _drawn(queue: Sequence[Claim], nodes: Sequence[Node], rules: Rules) -> "_Draft":
    draft = _Draft(queue, nodes, rules, rules.least_run)
    draft.minimums()
    draft.leftovers()
    draft.returns()
    return draft


def effective(claims: Sequence[Claim], devices: int, rules: Rules) -> dict[str, float]:
    """Points by name, aging, fairness and margin included: who has more goes first.

    >>> effective([Claim("new", priority=1), Claim("old", waiting=7200.0)], 8, Rules(aging=3600.0, fairness=0.0))
    {'old': 2.0, 'new': 1.0}
    """
    found, wanted = {}, {}
    # Shares are counted in an order that does not depend on who runs: what a plan starts cannot change it.
    for claim in sorted(claims, key=lambda c: (-_points(c, rules), c.name)):
        share = min(wanted.get(claim.user, 0) / devices, 1.0) if devices else 0.0
        # What can never run takes nothing from the others.
        wanted[claim.user] = wanted.get(claim.user, 0) + claim.minimum * (claim.minimum <= devices)
        found[claim.name] = _points(claim, rules) - rules.fairness * share + rules.margin * (claim.size > 0)
    return found


def _points(claim: Claim, rules: Rules) -> float:
    return claim.priority + claim.waiting / rules.aging


def ordered(claims: Sequence[Claim], devices: int, rules: Rules) -> list[Claim]:
    """The queue. At equal points those that wait come first: who is ahead by the margin preempts."""
    points = effective(claims, devices, rules)
    return sorted(claims, key=lambda c: (-points[c.name], c.size > 0, -c.waiting, c.name))


class _Draft:
    """A plan in the making.

    Attributes:
        queue: all claims, first ones first.
        seats: who has been given what.
        present: devices on which jobs run now.
        given: devices that jobs will have.
        frozen: jobs that have not run for long enough to be touched.
        due: jobs for which devices are kept until others have run for long enough.
    """

    def __init__(self, queue: Sequence[Claim], nodes: Sequence[Node], rules: Rules, least_run: float):
        self.queue, self.nodes, self.rules = queue, nodes, rules
        self.seats = Seats(nodes, rules.sharing)
        self.present: dict[str, np.ndarray] = {}
        self.given: dict[str, np.ndarray] = {}
        self.frozen: set[str] = set()
        self.due: dict[str, np.ndarray] = {}
        self._still: set[str] = set()
        self._cores: dict[str, tuple[np.ndarray, Need]] = {}
        self._seat_frozen(least_run)
        self._seat_sitters()

    def _seat_frozen(self, least_run: float) -> None:
        for claim in self.queue:
            devices = self.seats.numbers(claim.places)
            if not claim.size or devices is None:
                continue
            if claim.running >= least_run:
                self.present[claim.name] = devices
            elif self.seats.open_to(devices, need(claim, claim.size)):
                self.present[claim.name] = devices
                self._give(claim, devices)
                self.frozen.add(claim.name)

    def _seat_sitters(self) -> None:
        # They are taken as tenants to see that they fit one another: nodes may have shrunk beneath them.
        fitting = []
        for claim in self.queue:
            if claim.name in self.present and claim.name not in self.frozen:
                devices, want = self.present[claim.name], need(claim, claim.size)
                if self.seats.open_to(devices, want):
                    self.seats.take(devices, want)
                    fitting.append(claim)
                else:
                    del self.present[claim.name]
        for claim in fitting:
            self._cores[claim.name] = self._core(claim)
        for claim in fitting:
            self.seats.leave(*self._cores[claim.name])
        # Last in the queue pays first; but whom nobody may touch yet pays later, the longer the later: who waits for it
        # would otherwise wait for another one, just started, each time that a plan is made.
        fitting.reverse()
        order = sorted(fitting, key=lambda claim: max(self.rules.least_run - claim.running, 0.0))
        for price, claim in enumerate(order, start=CORE):
            core, want = self._cores[claim.name]
            self.seats.sit(claim.name, core, np.setdiff1d(self.present[claim.name], core), want, price)

    def _core(self, claim: Claim) -> tuple[np.ndarray, Need]:
        """Makes a tenant of all its devices one of as few as it can do with, beside the others as they are."""
        devices, now = self.present[claim.name], need(claim, claim.size)
        self.seats.leave(devices, now)
        for size in claim.sizes:
            kept, want = self.seats.subset(devices, size), need(claim, size)
            if size == claim.size or self.seats.open_to(kept, want):
                break
        self.seats.take(kept, want)
        return kept, want

    def _give(self, claim: Claim, devices: np.ndarray) -> None:
        self.given[claim.name] = devices
        self.seats.take(devices, need(claim, len(devices)))

    def minimums(self, keep: bool = True) -> None:
        """Everybody's minimum, along the queue."""
        later: _Draft | None = None
        for claim in self.queue:
            if claim.name in self.frozen:
                continue
            own = self.present.get(claim.name)
            if own is not None and self._stays(claim, own):
                continue
            # All who sit there still are behind it in the queue, or sit there as surplus.
            devices = self._search(claim, own)
            if own is not None:
                self.seats.rise(claim.name, own)
            if devices is not None:
                self._give(claim, devices)
            elif keep and self.frozen:
                if later is None:
                    later = _Draft(self.queue, self.nodes, self.rules, least_run=0.0)
                    later.minimums(keep=False)
                if claim.name in later.given:
                    self.due[claim.name] = later.given[claim.name]
                    self.seats.hold(self.due[claim.name], need(claim, len(self.due[claim.name])))

    def returns(self) -> None:
        """Who was sent elsewhere stays after all where those have moved on for whom it had to go."""
        for claim in self.queue:
            own, now = self.present.get(claim.name), self.given.get(claim.name)
            if own is None or now is None or len(own) != len(now) or np.array_equal(own, now):
                continue
            want = need(claim, len(own))
            self.seats.leave(now, want)
            self._give(claim, own if self.seats.open_to(own, want) else now)

    def followed(self) -> list[Claim]:
        """The queue as it would be if this plan had been followed long ago, but for those who may not be touched."""
        claims = []
        for claim in self.queue:
            places = self.seats.places(self.given[claim.name]) if claim.name in self.given else ()
            running = claim.running if claim.name in self.frozen else math.inf
            claims.append(dataclasses.replace(claim, size=len(places), places=places, running=running))
        return ordered(claims, len(self.seats), self.rules)

    def _stays(self, claim: Claim, own: np.ndarray) -> bool:
        """Gives a running job its core; all it has where a part is kept for another, whom a restart would delay."""
        core, want = self._cores[claim.name]
        self.seats.rise(claim.name, core, want)
        if self.seats.held(own):
            if whole := self.seats.open_to(own, need(claim, claim.size)):
                self.seats.rise(claim.name, own)
                self._give(claim, own)
                self._still.add(claim.name)
            return whole
        if stays := self.seats.open_to(core, want):
            self._give(claim, core)
        return stays

    def _search(self, claim: Claim, own: np.ndarray | None) -> np.ndarray | None:
        """Devices for its smallest size that fits, as cheap for others as can be."""
        for size in claim.sizes:
            want = need(claim, size)
            costs = self.seats.costs(want, own)
            prices = self.seats.prices()
            if np.count_nonzero(costs <= prices[-1]) < size:
                continue
            low, high = 0, len(prices)
            # What fits at a price fits at a higher one.
            while low < high:
                middle = (low + high) // 2
                if self.seats.find(want, costs, prices[middle], own) is None:
                    low = middle + 1
                else:
                    high = middle
            if low < len(prices):
                return self.seats.find(want, costs, prices[low], own)
        return None

    def leftovers(self) -> None:
        """What is left goes, step by step, where it adds most speed a device."""
        # A job that grows by moving leaves room behind it, which those may want who found none before.
        while self._leftovers():
            pass

    def _leftovers(self) -> bool:
        """Whether somebody moved after another had found no room."""
        heap: list[tuple[float, bool, int, int]] = []
        tried: dict[int, set[int]] = {}
        moved = False

        def push(rank: int) -> None:
            claim = self.queue[rank]
            if (step := self._step(claim, tried.setdefault(rank, set()))) is not None:
                gain, size = step
                # Of equal gains what somebody has already, and then who is first in the queue.
                heapq.heappush(heap, (-gain, size > self._now(claim), rank, size))

        for rank, claim in enumerate(self.queue):
            if claim.name in self.given and claim.name not in self.frozen | self._still and len(claim.sizes) > 1:
                push(rank)
        while heap:
            _, _, rank, size = heapq.heappop(heap)
            before = self.given[self.queue[rank].name]
            if not self._grow(self.queue[rank], size):
                tried[rank].add(size)
            elif any(tried.values()):
                moved = moved or bool(np.setdiff1d(before, self.given[self.queue[rank].name]).size)
            push(rank)
        return moved

    def _now(self, claim: Claim) -> int:
        return len(self.present.get(claim.name, ()))

    def _step(self, claim: Claim, failed: set[int]) -> tuple[float, int] | None:
        """The next size, of those that can be tried, that gains most speed for each device; and how much."""
        size, now = len(self.given[claim.name]), self._now(claim)
        best = None
        for bigger in claim.sizes:
            if bigger <= size or bigger in failed:
                continue
            gain = (claim.pace(bigger) - claim.pace(size)) / (bigger - size)
            if bigger <= now:
                gain *= 1 + self.rules.hysteresis
            elif now and claim.pace(bigger) < (1 + self.rules.hysteresis) * claim.pace(now):
                continue
            if gain > 0 and (best is None or gain > best[0]):
                best = (gain, bigger)
        return best

    def _grow(self, claim: Claim, size: int) -> bool:
        before, own = self.given[claim.name], self.present.get(claim.name)
        want = need(claim, size)
        self.seats.leave(before, need(claim, len(before)))
        if own is not None and size == len(own) and self.seats.open_to(own, want):
            devices = own
        else:
            costs = self.seats.costs(want, own)
            devices = self.seats.find(want, costs, FREE, own)
            devices = self.seats.find(want, costs, SURPLUS, own) if devices is None else devices
        self._give(claim, before if devices is None else devices)
        return devices is not None
