"""The least time that a problem can take on a device, from what was probed of it.

    least = max(bytes / bandwidth, operations / rate, sum over passes of steps * step(programs))

A step of a recurrence can start only when its predecessor's result is there: with one program it is a product that
waits for the one before; with several they also hand the state over through memory and wait for each other.
"""

from collections.abc import Mapping
from typing import Any

from side_by_side.gpu.problem import Work

# What a dtype's products are made of, as the probe of rates names it.
_RATES = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "tf32": "tf32",
    "float32-default": "tf32",
    "float32": "float32",
}


def floors(work: Work, dtype: str, probe: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by what bounds them, as far as that was probed.

    >>> found = {"bandwidth": 2e12, "rates": {"bfloat16": 5e14}, "product": 1e-7, "handing": {"1": 0, "16": 2e-6}}
    >>> floors(Work(1e12, 1e9, ((100, 12),)), "bfloat16", found)
    {'bytes': 0.0005, 'operations': 0.002, 'steps': 0.00021}
    """
    found = {}
    if probe.get("bandwidth"):
        found["bytes"] = work.bytes / probe["bandwidth"]
    rate = probe.get("rates", {}).get(_RATES[dtype])
    if rate:
        found["operations"] = work.flops / rate
    if work.serial and probe.get("product") and probe.get("handing"):
        found["steps"] = sum(steps * _step(programs, probe) for steps, programs in work.serial)
    return found


def _step(programs: int, probe: Mapping[str, Any]) -> float:
    if programs == 1:
        return probe["product"]
    probed = {int(count): seconds for count, seconds in probe["handing"].items()}
    # The nearest number of programs that was probed.
    return probe["product"] + probed[min(probed, key=lambda count: abs(count - programs))]
