"""How many cores this process may use, and how many threads oneDNN is to have on them."""

import os
import pathlib


def threads() -> int:
    """OMP_NUM_THREADS, or one for each physical core that the process may use, by affinity and quota of time.

    Two threads on one core share its multipliers, and a team waits for its slowest member.
    """
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return max(1, int(min(len({_core(cpu) for cpu in os.sched_getaffinity(0)}), quota())))


def _core(cpu: int) -> tuple[str, ...]:
    topology = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return tuple((topology / name).read_text() for name in ("physical_package_id", "core_id"))
    except OSError:
        return (str(cpu),)


def quota(root: pathlib.Path = pathlib.Path("/")) -> float:
    """CPUs' worth of time, the least that a group on the way to the root allows; a container's limit stands there."""
    least = float("inf")
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return least
    own = next((line[3:] for line in groups if line.startswith("0::")), "/")
    for group in (own, *map(str, pathlib.PurePosixPath(own).parents)):
        try:
            most, period = (root / f"sys/fs/cgroup{group}/cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if most != "max":
            least = min(least, int(most) / int(period))
    return least
