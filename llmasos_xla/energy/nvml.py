"""NVIDIA's management library: which GPUs this process sees, and the joules that they count.

The package nvidia-ml-py (module pynvml) or the driver may be missing, which is a normal state.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, final

from llmasos_xla.energy.figures import Energy, UnavailableError, absent

# Between two readings of a power that goes up and down much may happen.
_SECONDS_BETWEEN_POWERS = 2.0


@final
class Nvml:
    """The library, open, and the GPUs that CUDA_VISIBLE_DEVICES leaves.

    Attributes:
        handles: of these GPUs, in CUDA's order of them. That is the order of the PCI bus, as
            CUDA_DEVICE_ORDER=PCI_BUS_ID has it, and among GPUs of one kind without it, too.

    Raises UnavailableError if the package or the driver is not there.
    """

    def __init__(self):
        try:
            import pynvml
        except ImportError:
            raise UnavailableError(
                'GPUs are not looked at: pip install "llmasos_xla[runtime]" has nvidia-ml-py'
            ) from None
        self.library: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise UnavailableError(f"no NVIDIA driver: {error}") from None
        try:
            self.handles = self._visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
        except pynvml.NVMLError as error:
            self.close()
            raise UnavailableError(f"NVML does not tell its GPUs: {error}") from None

    def _visible(self, names: str | None) -> list[Any]:
        """CUDA reads the list up to the first that is no GPU; a name may be cut short."""
        library = self.library
        every = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        if names is None:
            return every
        found = []
        for name in filter(None, map(str.strip, names.split(","))):
            if name.isdigit() and int(name) < len(every):
                found.append(every[int(name)])
            elif name.startswith("GPU-"):
                found += [h for h in every if _text(library.nvmlDeviceGetUUID(h)).startswith(name)][:1]
            elif name.startswith("MIG-"):
                part = library.nvmlDeviceGetHandleByUUID(name)
                found.append(library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part))
            else:
                break
        return found

    def ask(self, what: str, *arguments: Any) -> Any:
        """The library's answer, or None where this GPU or this driver has none, or no longer."""
        try:
            return getattr(self.library, what)(*arguments)
        except self.library.NVMLError:
            return None

    def close(self) -> None:
        """Lets go of the library."""
        self.ask("nvmlShutdown")


@final
class GpuCounter:
    """The joules of one GPU: its own counter (Volta and later), else its power over time.

    Args:
        nvml: the library.
        number: of the GPU, among those that this process sees.
        clock: seconds.
    """

    def __init__(self, nvml: Nvml, number: int, clock: Callable[[], float] = time.monotonic):
        self.name, self._nvml, self._clock, self._handle = f"gpu{number}", nvml, clock, nvml.handles[number]
        self._millijoules = nvml.ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        self._watts = None if self._millijoules is not None else self._power()
        self._at = clock()
        self._joules, self._unsure = 0.0, False

    def _power(self) -> float | None:
        milliwatts = self._nvml.ask("nvmlDeviceGetPowerUsage", self._handle)
        return None if milliwatts is None else milliwatts / 1000

    def read(self) -> Energy:
        """Joules since it was made."""
        return self._by_counter() if self._millijoules is not None else self._by_power()

    def _by_counter(self) -> Energy:
        assert self._millijoules is not None
        now = self._nvml.ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        if now is None:
            return absent(f"NVML no longer tells the energy of {self.name}")
        # A driver that was loaded anew counts from 0.
        self._joules += (now - self._millijoules if now >= self._millijoules else now) / 1000
        self._millijoules = now
        return Energy(self._joules, "measured", f"NVML's counter of {self.name}")

    def _by_power(self) -> Energy:
        before, now, at = self._watts, self._power(), self._clock()
        if before is None or now is None:
            return absent(f"NVML tells neither energy nor power of {self.name}")
        passed = at - self._at
        self._joules += (before + now) / 2 * passed
        self._unsure |= passed > _SECONDS_BETWEEN_POWERS
        self._watts, self._at = now, at
        source = f"NVML's power of {self.name} over time"
        if self._unsure:
            return Energy(self._joules, "estimated", f"{source}, read more than {_SECONDS_BETWEEN_POWERS:.0f} s apart")
        return Energy(self._joules, "measured", source)


def gpu_counters(nvml: Nvml, numbers: Sequence[int]) -> list[GpuCounter]:
    """A counter for each of these GPUs that the library knows."""
    return [GpuCounter(nvml, number) for number in numbers if number < len(nvml.handles)]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
