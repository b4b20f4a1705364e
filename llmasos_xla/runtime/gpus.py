"""NVIDIA's GPUs: what each of those that this process sees does now."""

import math
from typing import final

from llmasos_xla.energy.figures import UnavailableError
from llmasos_xla.energy.nvml import Nvml
from llmasos_xla.sharding.processes.preflight import gpu_count

UNKNOWN_SIZE = 1 << 50
"""The memory of a GPU where nobody tells it: more than any has, so that nothing is kept out."""


@final
class Gpus:
    """Use, memory, power and heat of each GPU. Without driver or package there are none, and `why_not` says why."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.why_not = ""
        self._nvml: Nvml | None = None
        try:
            self._nvml = nvml = Nvml()
        except UnavailableError as reason:
            self.why_not = str(reason)
            return
        for handle in nvml.handles:
            name = nvml.ask("nvmlDeviceGetName", handle) or "GPU"
            self.names.append(name.decode() if isinstance(name, bytes) else name)
        if not self.names:
            self.why_not = "NVIDIA's driver shows this process no GPU"

    @property
    def columns(self) -> list[str]:
        """The names of the figures: "gpu0_use" and so on."""
        kinds = ("use", "memory", "memory_total", "watts", "celsius")
        return [f"gpu{number}_{kind}" for number in range(len(self.names)) for kind in kinds]

    def read(self) -> dict[str, float]:
        """The figures by name; NaN for what a GPU does not tell."""
        found: dict[str, float] = {}
        nvml = self._nvml
        if nvml is None:
            return found
        for number, handle in enumerate(nvml.handles):
            use, memory = nvml.ask("nvmlDeviceGetUtilizationRates", handle), nvml.ask("nvmlDeviceGetMemoryInfo", handle)
            power = nvml.ask("nvmlDeviceGetPowerUsage", handle)
            heat = nvml.ask("nvmlDeviceGetTemperature", handle, nvml.library.NVML_TEMPERATURE_GPU)
            found |= {
                f"gpu{number}_use": math.nan if use is None else use.gpu / 100,
                f"gpu{number}_memory": math.nan if memory is None else float(memory.used),
                f"gpu{number}_memory_total": math.nan if memory is None else float(memory.total),
                f"gpu{number}_watts": math.nan if power is None else power / 1000,
                f"gpu{number}_celsius": math.nan if heat is None else float(heat),
            }
        return found

    def close(self) -> None:
        """Lets go of the driver."""
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None


def gpu_memory() -> tuple[int, ...]:
    """Bytes of each GPU that this process sees, in CUDA's order; none on a machine without."""
    gpus = Gpus()
    told = gpus.read()
    gpus.close()
    found = [told[f"gpu{number}_memory_total"] for number in range(len(gpus.names))] or [math.nan] * gpu_count()
    return tuple(UNKNOWN_SIZE if math.isnan(count) else int(count) for count in found)
