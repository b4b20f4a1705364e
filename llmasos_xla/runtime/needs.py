"""The bytes of jobs: said by whoever submitted them, asked for by their fits, or seen while they run."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmasos_xla.runtime.claims import Claim, Node
from llmasos_xla.runtime.jobs import Job, Place

UNKNOWN_BYTES = 256 << 20
"""What a job is taken for until it says more, or is seen to hold more: a process with JAX in it."""
_BEYOND = 1.05


def host_bytes(job: Job, size: int, held: int = 0) -> int:
    """Bytes of machines' memory that it needs on so many devices: what it says or asks for, or more if it held more.

    Args:
        job: which.
        size: how many devices.
        held: what it was seen to hold since it was started; of earlier starts the job knows.
    """
    seen = dict(job.need.get("held", {}))
    if held:
        seen[str(job.size)] = max(held, seen.get(str(job.size), 0))
    most = _of_size(seen, size, grows=True) or 0
    if job.spec.memory is not None:
        return max(job.spec.memory, most)
    asked = _of_size(job.need.get("host", {}), size, grows=True)
    return max(UNKNOWN_BYTES if asked is None else asked, most)


def device_bytes(job: Job, sizes: Sequence[int]) -> dict[int, int]:
    """Bytes of each device that has memory of its own, by number of devices; empty if nobody knows."""
    known = job.need.get("device", {})
    return {size: _of_size(known, size, grows=False) or 0 for size in sizes} if known else {}


def node_bytes(whole: int, places: Sequence[Place], node: Node) -> int:
    """What of a gang's bytes a node has to hold: its share of the devices."""
    here = sum(name == node.name for name, _ in places)
    return -(-whole * here // max(len(places), 1))


def together(gangs: Iterable[tuple[Job, Sequence[Place]]], nodes: Sequence[Node]) -> bool:
    """Whether these jobs can share the devices on which they meet: their bytes are known, and fit there together."""
    room = {(node.name, number): bytes_ for node in nodes for number, bytes_ in enumerate(node.devices)}
    taken: dict[Place, list[int | None]] = {}
    for job, places in gangs:
        for place in places:
            taken.setdefault(place, []).append(device_bytes(job, (len(places),)).get(len(places)))
    return all(
        len(bytes_) == 1 or (None not in bytes_ and sum(each or 0 for each in bytes_) <= room.get(place, 0))
        for place, bytes_ in taken.items()
    )


def bounded(claims: Sequence[Claim], nodes: Sequence[Node]) -> list[Claim]:
    """Claims of jobs that hold on to what they have, with no more bytes than their nodes have in all.

    They are there, even if they hold more by now than was counted on: a plan must not take their devices for free.
    """
    found = list(claims)
    for node in nodes:
        whole = sum(node_bytes(claim.host_bytes[claim.size], claim.places, node) for claim in found)
        if whole > node.memory:
            for i, claim in enumerate(found):
                if node_bytes(1 << 20, claim.places, node):
                    bytes_ = claim.host_bytes[claim.size] * node.memory // whole
                    # An equal part for each device is rounded up.
                    bytes_ = max(bytes_ - claim.size, 0)
                    found[i] = dataclasses.replace(claim, host_bytes={claim.size: bytes_})
    return found


class Excess(NamedTuple):
    """A job that holds more than was counted on, on a node whose memory for jobs is used up."""

    job: Job
    held: int
    counted: int
    """Bytes of the whole job, like `held`."""
    urgent: bool
    """Whether the node is so far beyond that there is no time to save."""


def excess(holding: Iterable[tuple[Job, int, int]], nodes: Sequence[Node]) -> Excess | None:
    """Who has to go because a node's jobs hold more than there is for them: whoever is furthest beyond its word.

    Args:
        holding: jobs, what each holds, and what was counted on when it was admitted.
        nodes: the machines.
    """
    holding = list(holding)
    for node in nodes:
        parts = {job.number: node_bytes(held, job.places, node) for job, held, _ in holding}
        beyond = [each for each in holding if parts[each[0].number] and each[1] > each[2]]
        if sum(parts.values()) > node.memory and beyond:
            job, held, counted = max(beyond, key=lambda each: (each[1] - each[2], -each[0].spec.priority))
            return Excess(job, held, counted, sum(parts.values()) > _BEYOND * node.memory)
    return None


def _of_size(found: dict[str, int], size: int, *, grows: bool) -> int | None:
    known = {int(count): int(value) for count, value in found.items()}
    if not known or size in known:
        return known.get(size)
    # Not seen on so many: a part for each device at most, and on fewer no more than on many.
    nearest = min(known, key=lambda count: abs(count - size))
    return known[nearest] * max(size, nearest) // nearest if grows else known[nearest]
