"""The schedulers that the planner is compared with: fixed sizes, nobody is stopped before its end.

They are told of the jobs that wait, in their order, of those that run, with the ends that their time limits promise,
and of the devices; they say who starts now.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Waits(NamedTuple):
    """A job that waits: devices and seconds that it asks for."""

    name: str
    devices: int
    seconds: float


class Runs(NamedTuple):
    """A job that runs: its devices, and in how many seconds its time limit is over."""

    devices: int
    seconds: float


Scheduler = Callable[[Sequence[Waits], Sequence[Runs], int], list[str]]
"""(who waits, who runs, all devices) -> who starts."""


def fifo(waiting: Sequence[Waits], running: Sequence[Runs], devices: int) -> list[str]:
    """One after the other: who does not fit holds up all behind.

    >>> fifo([Waits("a", 1, 9.0), Waits("b", 4, 9.0), Waits("c", 1, 9.0)], [], 4)
    ['a']
    """
    free = devices - sum(one.devices for one in running)
    starts = []
    for one in waiting:
        if one.devices > free:
            break
        free -= one.devices
        starts.append(one.name)
    return starts


def easy(waiting: Sequence[Waits], running: Sequence[Runs], devices: int) -> list[str]:
    """EASY (Lifka 1995): the first that does not fit has a reservation; others start if they do not delay it.

    >>> first, long, short = Waits("first", 4, 9.0), Waits("long", 1, 9.0), Waits("short", 1, 5.0)
    >>> easy([first, long, short], [Runs(3, 6.0)], 4)
    ['short']
    """
    starts = fifo(waiting, running, devices)
    rest = waiting[len(starts) :]
    if not rest:
        return starts
    running = [*running, *(Runs(one.devices, one.seconds) for one in waiting[: len(starts)])]
    free = devices - sum(one.devices for one in running)
    first, there, begins = rest[0], free, 0.0
    for one in sorted(running, key=lambda one: one.seconds):
        if there >= first.devices:
            break
        there, begins = there + one.devices, one.seconds
    spare = there - first.devices
    for one in rest[1:]:
        if one.devices <= free and (one.seconds <= begins or one.devices <= spare):
            free -= one.devices
            spare -= one.devices * (one.seconds > begins)
            starts.append(one.name)
    return starts


def slurm(waiting: Sequence[Waits], running: Sequence[Runs], devices: int) -> list[str]:
    """The rule of Slurm's backfill plugin: nobody starts who would delay the expected start of any job before it.

    >>> first, long, short = Waits("first", 4, 9.0), Waits("long", 1, 9.0), Waits("short", 1, 5.0)
    >>> slurm([first, long, short], [Runs(3, 6.0)], 4)
    ['short']
    """
    # Devices that are free from each time on, those promised to jobs before taken off.
    times, free = [0.0], [devices - sum(one.devices for one in running)]
    for one in sorted(running, key=lambda one: one.seconds):
        if one.seconds > times[-1]:
            times.append(one.seconds)
            free.append(free[-1])
        free[-1] += one.devices
    starts = []
    for one in waiting:
        if one.devices > devices:
            continue
        begin = _earliest(times, free, one)
        if begin == 0:
            starts.append(one.name)
        _promise(times, free, times[begin], one)
        if free[0] == 0:
            break
    return starts


def _earliest(times: list[float], free: list[int], one: Waits) -> int:
    begin = 0
    for i, there in enumerate(free):
        if times[i] >= times[begin] + one.seconds and i > begin:
            break
        if there < one.devices:
            begin = i + 1
    return begin


def _promise(times: list[float], free: list[int], begins: float, one: Waits) -> None:
    ends = begins + one.seconds
    if ends not in times:
        at = sum(time < ends for time in times)
        times.insert(at, ends)
        free.insert(at, free[at - 1])
    for i, time in enumerate(times):
        if begins <= time < ends:
            free[i] -= one.devices
