"""The joules of a block of code, by the machine's own counters or by zeus.

The meter of `fit` and of monitors is `llmasos_xla.energy`'s. zeus (ml.energy/zeus) knows machines that it does not:
Jetsons, Apple's chips, and processors whose counters only zeus' daemon may read. It asks for amdsmi, with which `import
ray` fails where there is no ROCm, so that it is no extra of ours: docs/runtime.md says how to install it.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, final

from llmasos_xla.energy import Energy, Meter
from llmasos_xla.energy.figures import UnavailableError, absent
from llmasos_xla.errors import unknown

# Parts of a chip that lie in no other part of it: in millijoules, by zeus' names for Apple's chips and Jetsons.
_CHIP = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "dram_mj")
_WHOLE_CHIP = "total_energy_mj"


@final
class ByZeus:
    """What a ZeusMonitor measures: GPUs, processors and their memory, whole chips.

    Raises ImportError if zeus is missing, UnavailableError if it finds nothing to measure.
    """

    name = "zeus"

    def __init__(self) -> None:
        try:
            from zeus.monitor import ZeusMonitor
        except ImportError as error:
            raise ImportError(
                f"energy by zeus needs zeus ({error}): pip install --no-deps zeus, and what it wants but amdsmi "
                "(docs/runtime.md)"
            ) from error
        self._monitor: Any = ZeusMonitor()
        if not (self._monitor.gpu_indices or self._monitor.cpu_indices or self._monitor.soc_is_present):
            raise UnavailableError("zeus finds no counter of energy on this machine")
        self._joules = 0.0
        # Its windows would wait for the device by torch if they were to synchronize.
        self._monitor.begin_window(self.name, sync_execution=False)

    def read(self) -> Energy:
        """Joules since it was made."""
        window = self._monitor.end_window(self.name, sync_execution=False)
        self._monitor.begin_window(self.name, sync_execution=False)
        found = _joules(window)
        self._joules += sum(found.values())
        return Energy(self._joules, "measured", f"zeus, of {', '.join(found)}")


def _joules(window: Any) -> dict[str, float]:
    found = {f"gpu{index}": joules for index, joules in window.gpu_energy.items()}
    for part in ("cpu", "dram"):
        found |= {f"{part}{index}": joules for index, joules in (getattr(window, f"{part}_energy") or {}).items()}
    chip = window.soc_energy
    if getattr(chip, _WHOLE_CHIP, None) is not None:
        found["chip"] = getattr(chip, _WHOLE_CHIP) / 1000
    elif chip is not None:
        parts = [value for name in _CHIP if (value := getattr(chip, name, None)) is not None]
        found["chip"] = sum(parts) / 1000
    return found


def measure(*, gpus: Sequence[int] | Literal["all"] = "all", source: Literal["auto", "zeus"] = "auto") -> "Measured":
    """Counts the energy of a `with` block.

    Args:
        gpus: the GPUs to count, as this process sees them; "all" of those by default.
        source: "auto" takes the machine's counters, or CPU time where there are none; "zeus" takes zeus'.

    Raises ValueError for another source, and at the block's beginning ImportError for zeus where it is missing. A
    machine without counters gives an energy that is absent, with the reason.

    >>> with measure() as used:
    ...     numbers = sorted(range(100_000))
    >>> used.energy.quality in ("measured", "estimated", "absent")
    True
    """
    if source not in ("auto", "zeus"):
        raise unknown("measure", "source", source, ("auto", "zeus"))
    return Measured(lambda: ByZeus() if source == "zeus" else Meter(gpus=gpus))


@final
class Measured:
    """A block of code whose energy is counted. Made by `measure`.

    Attributes:
        energy: what was used; within the block, what has been so far.
    """

    def __init__(self, make: Callable[[], Meter | ByZeus]):
        self._make = make
        self._meter: Meter | ByZeus | None = None
        self._energy = absent("nothing was measured yet")

    def __enter__(self) -> "Measured":
        try:
            self._meter = self._make()
        except UnavailableError as reason:
            self._energy = absent(reason)
        return self

    @property
    def energy(self) -> Energy:
        """Joules since the block began, or of the whole block once it has ended."""
        if self._meter is not None:
            self._energy = self._meter.read()
        return self._energy

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._energy, meter, self._meter = self.energy, self._meter, None
        if isinstance(meter, Meter):
            meter.close()
