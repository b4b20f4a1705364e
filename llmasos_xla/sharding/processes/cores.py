"""The cores of a machine, divided among the processes on it."""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterable

_TOPOLOGY = pathlib.Path("/sys/devices/system/cpu")


def shares(processes: int, cpus: Iterable[int] | None = None, core: Callable[[int], tuple] | None = None) -> list[set]:
    """Which CPUs each process gets: whole cores, neighbors together; with more processes than cores some share one.

    Args:
        processes: among how many to divide.
        cpus: what is divided, by default what this process may use.
        core: CPU -> its core; the threads of one core count as one.

    >>> shares(2, cpus=range(8), core=lambda cpu: (cpu % 4,))
    [{0, 1, 4, 5}, {2, 3, 6, 7}]
    """
    cores: dict[tuple, set[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0) if cpus is None else cpus):
        cores.setdefault((core or _core)(cpu), set()).add(cpu)
    whole = [cores[key] for key in sorted(cores)]
    if processes > len(whole):
        return [set(whole[number % len(whole)]) for number in range(processes)]
    edges = [len(whole) * number // processes for number in range(processes + 1)]
    return [set().union(*whole[low:high]) for low, high in itertools.pairwise(edges)]


def _core(cpu: int) -> tuple[int, ...]:
    folder = _TOPOLOGY / f"cpu{cpu}/topology"
    try:
        return tuple(int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except OSError:
        return (cpu,)
