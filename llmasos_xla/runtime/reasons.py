"""Why a job waits, is preempted, shrinks, grows or moves: in words, for `llmasos queue`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmasos_xla.runtime.claims import Claim, Node
from llmasos_xla.runtime.seats import FREE, Seats, need
from llmasos_xla.sharding.planning.table import size as in_words

_NAMED = 3
"""How many others a reason names."""


def reasons(draft: Any, now: Any, nodes: Sequence[Node]) -> dict[str, str]:
    """The reason of every job that does not run on as it is; drafts are the planner's, `now` has the state as it is."""
    empty: Seats | None = None
    found = {}
    claims = {claim.name: claim for claim in now.queue}
    for rank, claim in enumerate(claims[one.name] for one in draft.queue):
        given, before = draft.given.get(claim.name), now.present.get(claim.name)
        if given is None:
            empty = Seats(nodes, sharing=False) if empty is None else empty
            why = _never(claim, empty, nodes) or _waits(draft, rank)
            if claim.size:
                why = (
                    f"is preempted{_by(draft, rank, before)}; {why}" if before is not None else f"{_lost(claim)}; {why}"
                )
        elif before is None:
            why = f"starts on {_devices(len(given))}"
            why = f"{_lost(claim)}; {why}" if claim.size else why
        elif len(given) < len(before):
            why = f"shrinks from {len(before)} to {_devices(len(given))}{_by(draft, rank, before, gains=True)}"
        elif len(given) > len(before):
            gain = claim.pace(len(given)) / claim.pace(len(before))
            why = f"grows from {len(before)} to {_devices(len(given))}: nobody waits for them; {gain:.1f} times as fast"
        elif not np.array_equal(given, before):
            why = f"moves to other devices{_by(draft, rank, before)}"
        else:
            continue
        found[claim.name] = why
    return found


def _devices(count: int) -> str:
    return f"{count} device" + "s" * (count != 1)


def _names(draft: Any, claims: Sequence[Claim]) -> str:
    more = len(claims) - _NAMED
    return ", ".join(_points(one, draft.rules.aging) for one in claims[:_NAMED]) + f" and {more} more" * (more > 0)


def _points(claim: Claim, aging: float) -> str:
    aged = round(claim.waiting / aging, 1)
    return f"{claim.name} (priority {claim.priority:g}" + f" + {aged:g} for waiting" * (aged > 0) + ")"


def _lost(claim: Claim) -> str:
    return f"lost its devices on {', '.join(sorted({node for node, _ in claim.places}))}"


def _never(claim: Claim, empty: Seats, nodes: Sequence[Node]) -> str:
    """Why it could not even run here alone; nothing if it could."""
    for size in claim.sizes:
        want = need(claim, size)
        if empty.find(want, empty.costs(want), FREE) is not None:
            return ""
    who = f"can never run here: it wants {_devices(claim.minimum)}"
    if claim.minimum > len(empty):
        return (
            f"{who}, and there {'is' if len(empty) == 1 else 'are'} {len(empty)}; submit it for fewer (--devices), "
            "or add machines"
        )
    most = max(len(node.devices) for node in nodes)
    if claim.together and claim.minimum > most:
        return f"{who} on one node, and none has more than {most}; submit it for fewer (--devices), or add machines"
    size = min(claim.sizes, key=lambda k: claim.device_bytes.get(k, 0) if k <= len(empty) else float("inf"))
    device, host = claim.device_bytes.get(size, 0), claim.host_bytes.get(size, 0)
    return (
        f"can never run here: on {_devices(size)} it needs {in_words(device)} of each and {in_words(host)} of host "
        f"memory; here {empty.largest()}; make its batch smaller, divide it over more devices, or add machines"
    )


def _waits(draft: Any, rank: int) -> str:
    claim = draft.queue[rank]
    if claim.name in draft.due:
        young = [c for c in draft.queue if c.name in draft.frozen]
        there = [c for c in young if _meet(draft.given[c.name], draft.due[claim.name])] or young
        left = max(draft.rules.least_run - c.running for c in there)
        return (
            f"waits {left:.0f} s at most for {_names(draft, there)}: nobody is touched within "
            f"{draft.rules.least_run:g} s of its start or its last resize"
        )
    want = need(claim, claim.minimum)
    free = int(np.count_nonzero(draft.seats.costs(want) == FREE))
    ahead = [c for c in draft.queue[:rank] if c.name in draft.given]
    others = f"; ahead of it {'run' if len(ahead) > 1 else 'runs'} {_names(draft, ahead)}" if ahead else ""
    behind = sum(c.name in draft.frozen for c in draft.queue[rank + 1 :])
    others += f"; {behind} behind it may not be touched yet" if behind else ""
    if free >= claim.minimum and claim.together and len(draft.nodes) > 1:
        return f"waits for {_devices(claim.minimum)} on one node, and its memory; {free} are free on all{others}"
    if free >= claim.minimum:
        return f"waits for memory: {_devices(free)} could be had, but not their nodes' bytes{others}"
    return f"waits for {_devices(claim.minimum)}; {free or 'none'} {'is' if free < 2 else 'are'} free{others}"


def _by(draft: Any, rank: int, before: np.ndarray, gains: bool = False) -> str:
    """Who has the devices that a job had."""
    claim = draft.queue[rank]
    kept = draft.given.get(claim.name, np.zeros(0, np.int64))
    lost = np.setdiff1d(before, kept)
    takers = [c for c in draft.queue if c.name != claim.name and _meet(lost, draft.given.get(c.name, kept[:0]))]
    if not takers:
        return ""
    several, first = len(takers) > 1, takers[0]
    if gains and len(draft.given[first.name]) > first.minimum:
        return f": {_names(draft, takers)} {'gain' if several else 'gains'} more from them"
    return f": {_names(draft, takers)} {'want their minimums' if several else 'wants its minimum'}"


def _meet(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.intersect1d(one, other).size)
