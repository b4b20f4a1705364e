"""The bytes that JAX holds on the devices of this process."""

import math
import sys
import time
from typing import Any, final

# So much time between two counts for each second that a count takes.
_PATIENCE = 300.0


@final
class JaxMemory:
    """Live and peak bytes, once JAX has devices; neither JAX nor a device is ever started for it.

    Devices with an allocator of their own (GPU, TPU) tell both. On a CPU the live arrays are counted, and the peak is
    the largest count so far: what a program needs while it runs is not in it.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._live = 0
        self._next = 0.0

    def read(self) -> dict[str, float]:
        """`jax_live` and `jax_peak` over all devices of the process; nothing before JAX has any."""
        jax, bridge = sys.modules.get("jax"), sys.modules.get("jax._src.xla_bridge")
        if jax is None or bridge is None or not bridge.backends_are_initialized():
            return {}
        told = [device.memory_stats() for device in jax.local_devices()]
        if all(stats and "bytes_in_use" in stats for stats in told):
            peaks = [stats.get("peak_bytes_in_use", math.nan) for stats in told]
            return {"jax_live": float(sum(stats["bytes_in_use"] for stats in told)), "jax_peak": float(sum(peaks))}
        began = time.perf_counter()
        if began >= self._next:
            self._live = sum(map(_bytes, jax.live_arrays()))
            self._peak = max(self._peak, self._live)
            ended = time.perf_counter()
            # Thousands of arrays are counted less often.
            self._next = ended + _PATIENCE * (ended - began)
        return {"jax_live": float(self._live), "jax_peak": float(self._peak)}


def _bytes(array: Any) -> int:
    """On the devices of this process: an array that several hold whole counts in each."""
    try:
        shape = array.sharding.shard_shape(array.shape)
        return math.prod(shape) * array.dtype.itemsize * len(array.sharding.addressable_devices)
    except (RuntimeError, AttributeError):
        # It was deleted, or given away, since the list was made.
        return 0
