"""The processors' own counters of energy, as Linux shows them under /sys/class/powercap.

Intel's and AMD's alike (Running Average Power Limit). They count for the whole machine, whoever uses it. Only root may
read them (since Linux 5.10), unless an administrator has opened them: that is told, and the rest goes on without.
"""

import pathlib
import re
import time
from collections.abc import Callable
from typing import final

from llmasos_xla.energy.figures import Energy, UnavailableError, absent

ROOT = pathlib.Path("/sys/class/powercap")
# No package draws more, so that within range / this no counter comes round twice.
_MOST_WATTS = 1000.0


@final
class _Zone:
    """One counter, which starts again at 0 behind its range."""

    def __init__(self, folder: pathlib.Path):
        self.label = (folder / "name").read_text().strip()
        self.range = int((folder / "max_energy_range_uj").read_text())
        self._file = folder / "energy_uj"
        self._last = int(self._file.read_text())
        self.microjoules = 0

    def read(self) -> None:
        now = int(self._file.read_text())
        self.microjoules += now - self._last if now >= self._last else now + self.range - self._last
        self._last = now


@final
class Rapl:
    """The packages and their memory, as far as it is counted apart.

    Args:
        root: the folder of the counters.
        clock: seconds.

    Raises UnavailableError if there are none, or they may not be read.
    """

    name = "cpu"

    def __init__(self, root: pathlib.Path = ROOT, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        try:
            self._zones = [_Zone(folder) for folder in _folders(root)]
        except PermissionError as error:
            raise UnavailableError(
                f"{error.filename} may be read by root alone; `chmod a+r {root}/intel-rapl:*/energy_uj` opens it "
                "to all until the machine's next start"
            ) from None
        except (OSError, ValueError) as error:
            raise UnavailableError(f"the counters in {root} cannot be read: {error}") from None
        if not self._zones:
            raise UnavailableError(f"no counters of energy in {root}: a virtual machine, a container, or not Linux")
        self._at = clock()
        self._patience = min(zone.range for zone in self._zones) / 1e6 / _MOST_WATTS
        self._unsure = False
        labels = ", ".join(sorted({zone.label for zone in self._zones}))
        self._source = f"RAPL of {labels}, the whole machine"

    def read(self) -> Energy:
        """Joules since it was made."""
        try:
            for zone in self._zones:
                zone.read()
        except (OSError, ValueError) as error:
            return absent(f"RAPL's counters can no longer be read: {error}")
        now = self._clock()
        self._unsure |= now - self._at > self._patience
        self._at = now
        joules = sum(zone.microjoules for zone in self._zones) / 1e6
        if self._unsure:
            rare = (
                f"{self._source}, read more than {self._patience:.0f} s apart: whole turns of a counter may be missing"
            )
            return Energy(joules, "estimated", rare)
        return Energy(joules, "measured", self._source)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Packages and their memory. Cores are counted within their package; psys, the whole board, only by itself."""
    packages, memories, boards = [], [], []
    # Zones of intel-rapl-mmio are the same counters by another way.
    for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else ():
        label = (folder / "name").read_text().strip()
        if re.fullmatch(r"intel-rapl:\d+", folder.name):
            (packages if label.startswith("package") else boards).append(folder)
        elif label == "dram":
            memories.append(folder)
    return packages + memories if packages else boards
