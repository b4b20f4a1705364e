"""The devices and bytes of all nodes while a plan is made: who has been given what, and who sits where until then."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import numpy as np

from llmasos_xla.runtime.claims import Claim, Node, Place
from llmasos_xla.sharding.planning.table import size as in_words

FREE, SURPLUS, SHARED, CORE = 0, 1, 2, 3
"""What taking a device costs others: nothing; a restart on fewer devices; half a device; from `CORE` on, their run.
To that is added how late it is their turn to pay."""
_NEVER = np.iinfo(np.int64).max


class Need(NamedTuple):
    """What a gang of `size` devices takes: bytes of each device (None: nobody knows) and, with each, of the host."""

    size: int
    device: int | None
    host: int
    together: bool = False
    """On one node."""


def need(claim: Claim, size: int) -> Need:
    """What a claim takes at one of its sizes."""
    return Need(size, claim.device_bytes.get(size), -(-claim.host_bytes.get(size, 0) // size), claim.together)


@final
class Seats:
    """Devices and bytes. Devices go by numbers, in the nodes' order.

    Two kinds of people are here: tenants, who have been given their devices by this plan, and sitters, who run on
    devices that this plan has not given to anybody so far. A sitter's core is what it would keep at its minimum; the
    rest is surplus.
    """

    def __init__(self, nodes: Sequence[Node], sharing: bool):
        self._sharing = sharing
        counts = [len(node.devices) for node in nodes]
        self._names = [node.name for node in nodes]
        self._first = np.cumsum([0, *counts])
        self._numbers = {node.name: (int(first), n) for node, first, n in zip(nodes, self._first, counts)}
        self._budget = np.array([count for node in nodes for count in node.devices], np.int64)
        self._node = np.repeat(np.arange(len(nodes)), counts)
        # Nodes whose devices' bytes are the host's.
        self._slots = np.array([not any(node.devices) for node in nodes], np.int64)
        self._memory = np.array([node.memory for node in nodes], np.int64)
        self._kept = np.zeros(len(nodes), np.int64)
        self._bytes = self._budget.copy()
        self._tenants = np.zeros(len(self._budget), np.int64)
        self._held = np.zeros(len(self._budget), bool)
        self._cost = np.zeros(len(self._budget), np.int64)
        self._sitting = np.zeros(len(self._budget), np.int64)
        self._sitters: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._cores: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._budget)

    def numbers(self, places: Iterable[Place]) -> np.ndarray | None:
        """The numbers of places; None if one of them is gone."""
        found = []
        for name, i in places:
            first, count = self._numbers.get(name, (0, 0))
            if not 0 <= i < count:
                return None
            found.append(first + i)
        return np.array(sorted(found), np.int64)

    def places(self, devices: np.ndarray) -> tuple[Place, ...]:
        """The places with those numbers."""
        nodes = self._node[devices]
        return tuple((self._names[n], i) for n, i in zip(nodes.tolist(), (devices - self._first[nodes]).tolist()))

    def largest(self) -> str:
        """The largest device and node, in words."""
        if not len(self):
            return "no device is left"
        slots = bool(self._slots[self._node].all())
        device = (
            "devices have no memory of their own"
            if slots
            else f"the largest device has {in_words(int(self._budget.max()))}"
        )
        return f"{device}, and the largest node {in_words(int(self._memory.max()))} for its devices together"

    def take(self, devices: np.ndarray, want: Need) -> None:
        """Makes somebody a tenant."""
        self._change(devices, want, 1)

    def leave(self, devices: np.ndarray, want: Need) -> None:
        """Undoes `take`."""
        self._change(devices, want, -1)

    def _change(self, devices: np.ndarray, want: Need, sign: int) -> None:
        self._tenants[devices] += sign
        self._bytes[devices] -= sign * self._of_device(want)[devices]
        np.subtract.at(self._memory, self._node[devices], sign * self._of_host(want)[self._node[devices]])

    def _of_device(self, want: Need) -> np.ndarray:
        # Bytes that nobody knows are all bytes.
        if want.device is None:
            return self._budget
        return np.where(self._budget > 0, want.device, 0)

    def _of_host(self, want: Need) -> np.ndarray:
        """By node: host memory of one device of a gang."""
        return want.host + self._slots * (want.device or 0)

    def sit(self, name: str, core: np.ndarray, rest: np.ndarray, want: Need, cost: int) -> None:
        """Somebody runs here: on a core, and on the rest as long as nobody's minimum wants it."""
        devices = np.concatenate([core, rest])
        prices = np.where(np.arange(len(devices)) < len(core), cost, SURPLUS)
        self._sitters[name] = devices, prices
        self._cost[devices] = np.maximum(self._cost[devices], prices)
        self._sitting[core] += self._of_device(want)[core]
        nodes = np.unique(self._node[core])
        bytes_ = self._of_host(want)[nodes] * np.bincount(self._node[core], minlength=len(self._memory))[nodes]
        self._cores[name] = (cost, nodes, bytes_)

    def rise(self, name: str, devices: np.ndarray, want: Need | None = None) -> None:
        """Somebody sits on those devices no more; with `want`, they are its core."""
        there, prices = self._sitters.pop(name, (devices[:0], devices[:0]))
        stays = ~np.isin(there, devices)
        if stays.any():
            self._sitters[name] = there[stays], prices[stays]
        self._cost[there[~stays]] = FREE
        if self._sharing:
            for there, prices in self._sitters.values():
                self._cost[there] = np.maximum(self._cost[there], prices)
        if want is not None:
            self._sitting[devices] -= self._of_device(want)[devices]
            del self._cores[name]

    def subset(self, devices: np.ndarray, size: int) -> np.ndarray:
        """As many of the devices, on the node that has most of them as far as they are there."""
        counts = np.bincount(self._node[devices], minlength=len(self._memory))
        return np.sort(devices[np.lexsort((devices, -counts[self._node[devices]]))][:size])

    def hold(self, devices: np.ndarray, want: Need) -> None:
        """Keeps devices, and memory with them, for somebody who will come: nobody new may have them."""
        self._held[devices] = True
        np.add.at(self._kept, self._node[devices], self._of_host(want)[self._node[devices]])

    def held(self, devices: np.ndarray) -> bool:
        """Whether any of the devices is kept for somebody."""
        return bool(self._held[devices].any())

    def open_to(self, devices: np.ndarray, want: Need) -> bool:
        """Whether those very devices and their nodes' memory may be taken by whoever sits there."""
        bytes_ = self._of_device(want)[devices]
        alone = self._tenants[devices] == 0
        beside = (self._budget[devices] > 0) & (self._sharing and want.device is not None)
        if not ((self._bytes[devices] >= bytes_) & (alone | beside)).all():
            return False
        counts = np.bincount(self._node[devices], minlength=len(self._memory))
        return bool((self._memory >= counts * self._of_host(want)).all())

    def prices(self) -> list[int]:
        """What devices can cost, cheapest first."""
        return sorted({FREE, SURPLUS, SHARED} | {cost for cost, *_ in self._cores.values()})

    def costs(self, want: Need, own: np.ndarray | None = None) -> np.ndarray:
        """What each device costs others if somebody takes it; `own` are those on which it sits itself."""
        bytes_ = self._of_device(want)
        cost = np.where((self._tenants == 0) & (self._bytes >= bytes_), self._cost, _NEVER)
        if own is not None:
            cost[own] = np.where(cost[own] == SURPLUS, FREE, cost[own])
        if self._sharing and want.device is not None:
            # Beside tenants, beside sitters; beside tenants if the sitters go.
            others = (self._budget > 0) & ((self._tenants > 0) | (self._cost >= CORE))
            cost = np.where(others & (self._bytes - self._sitting >= bytes_), np.minimum(cost, SHARED), cost)
            crowded = others & (self._tenants > 0) & (self._bytes >= bytes_) & (self._cost >= CORE)
            cost = np.where(crowded, np.minimum(cost, self._cost), cost)
        cost[self._held] = _NEVER
        return cost

    def find(self, want: Need, costs: np.ndarray, price: int, own: np.ndarray | None = None) -> np.ndarray | None:
        """Devices for a gang that cost at most `price` each, or None.

        One node if there is one that has enough: first one where the gang sits now, then where most of them cost
        nothing, then where fewest others have to go, then the fullest. Else as few nodes as will do, unless it has to
        be one.
        """
        fine = costs <= price
        if np.count_nonzero(fine) < want.size:
            return None
        nodes = len(self._memory)
        room = self._memory - self._kept
        for cost, where, bytes_ in self._cores.values():
            if cost > price:
                room[where] -= bytes_
        each = self._of_host(want)
        limit = np.where(each > 0, np.maximum(room, 0) // np.maximum(each, 1), len(self))
        count = np.minimum(np.bincount(self._node[fine], minlength=nodes), limit)
        if count.sum() < want.size:
            return None
        cheap = np.bincount(self._node[costs == FREE], minlength=nodes)
        # Who has to go anyway gives all it has before the next has to go.
        rank = np.where((costs == price) & (costs >= CORE), CORE, costs + (costs >= CORE))
        nobody_else = np.bincount(self._node[fine & (rank <= CORE)], minlength=nodes)
        mine = np.zeros(nodes, np.int64) if own is None else np.bincount(self._node[own], minlength=nodes)
        whole = np.flatnonzero(count >= want.size)
        if len(whole):
            keys = (count, -np.minimum(nobody_else, want.size), -np.minimum(cheap, want.size), -mine)
            order = np.lexsort([key[whole] for key in keys])
            chosen = [(whole[order[0]], want.size)]
        elif want.together:
            return None
        else:
            chosen, left = [], want.size
            for n in np.lexsort((-mine, -count)):
                chosen.append((n, min(int(count[n]), left)))
                left -= chosen[-1][1]
                if left == 0:
                    break
        mine_too = np.zeros(len(self), bool)
        if own is not None:
            mine_too[own] = True
        picked = []
        for n, size in chosen:
            first, last = self._first[n : n + 2]
            devices = first + np.flatnonzero(fine[first:last])
            # Others' last ones first: what they keep are neighbors.
            turn = np.where((rank[devices] > FREE) & ~mine_too[devices], -devices, devices)
            picked.append(devices[np.lexsort((turn, rank[devices], ~mine_too[devices]))][:size])
        return np.sort(np.concatenate(picked))
