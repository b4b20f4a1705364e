"""Over which processes and devices a model is fitted."""

from typing import NamedTuple

from llmasos_xla.sharding.threads import PER_DEVICE


class Layout(NamedTuple):
    """One way to spread a fit."""

    strategy: str
    """Of `STRATEGIES`, or "" on one device."""
    processes: int
    devices_per_process: int

    @property
    def devices(self) -> int:
        """In all."""
        return self.processes * self.devices_per_process

    def __str__(self) -> str:
        if not self.strategy:
            return "one device"
        if self.processes > 1:
            return f"{self.strategy}, {self.processes} processes"
        return f"{self.strategy}, {self.devices} devices in one process"


ALONE = Layout("", 1, 1)
TINY = [ALONE, Layout("data", 2, 1), Layout("fsdp", 1, 2)]
STRATEGIES = ("data", "fsdp")


def layouts(sizes: tuple[int, ...]) -> list[Layout]:
    """One device, and each strategy over so many devices in one process, and over so many processes.

    >>> print(*layouts((2,)), sep="; ")
    one device; data, 2 devices in one process; data, 2 processes; fsdp, 2 devices in one process; fsdp, 2 processes
    """
    found = [ALONE]
    for strategy in STRATEGIES:
        for size in sizes:
            found += [Layout(strategy, 1, size), Layout(strategy, size, 1)]
    return found


def environment(devices: int, together: int) -> dict[str, str]:
    """For a process with so many virtual CPU devices, of `together` in all."""
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if together > 1:
        variables["NPROC"] = str(PER_DEVICE * devices)
    return variables
