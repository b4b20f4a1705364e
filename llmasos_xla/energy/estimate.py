"""Joules by CPU time, where no counter can be read: virtual machines, containers, most notebooks."""

import math
import os
from collections.abc import Callable
from typing import final

from llmasos_xla.energy.figures import Energy, UnavailableError, absent

WATTS_PER_THREAD = 3.5
"""At full load: the mean of the servers in SPECpower_ssj2008, as Cloud Carbon Footprint counts them for AWS."""
TDP = "LLMASOS_CPU_TDP"
"""The environment variable for those who know better: watts of all processors of the machine together."""


def watts_per_thread() -> tuple[float, str]:
    """Watts of one busy hardware thread, and where the number is from.

    Raises ValueError if LLMASOS_CPU_TDP is no power.
    """
    told = os.environ.get(TDP)
    if told is None:
        return WATTS_PER_THREAD, "Cloud Carbon Footprint's mean of SPECpower's servers"
    try:
        watts = float(told)
    except ValueError:
        watts = math.nan
    if not 0 < watts < math.inf:
        raise ValueError(f"energy: {TDP} wants the watts of the machine's processors, a number > 0, got {told!r}")
    threads = os.cpu_count() or 1
    return watts / threads, f"{TDP}={told} over {threads} threads"


@final
class ByCpuTime:
    """CPU seconds times watts. What idles, memory, disks and power supplies are left out.

    Args:
        seconds: tells CPU seconds so far.
        of: whose they are, for the text.
    """

    name = "cpu"

    def __init__(self, seconds: Callable[[], float], of: str):
        self._seconds = seconds
        self._watts, where = watts_per_thread()
        self._source = f"CPU time of {of} x {self._watts:.3g} W a thread: {where}"
        self._first = seconds()

    def read(self) -> Energy:
        """Joules since it was made."""
        try:
            return Energy((self._seconds() - self._first) * self._watts, "estimated", self._source)
        except UnavailableError as reason:
            return absent(reason)
