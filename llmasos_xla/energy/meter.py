"""One meter over all that can be read: processors, and GPUs where they are asked for."""

import pathlib
import time
from collections.abc import Sequence
from typing import Literal, final

from llmasos_xla.energy.estimate import ByCpuTime
from llmasos_xla.energy.figures import Counter, Energy, UnavailableError, absent, total
from llmasos_xla.energy.nvml import Nvml, gpu_counters
from llmasos_xla.energy.processes import Tree, machine_seconds
from llmasos_xla.energy.rapl import ROOT, Rapl


@final
class Meter:
    """Joules since it was made: the machine's where they are measured, and where they are estimated those of `of`.

    Args:
        gpus: the GPUs to count, as this process sees them, or "all" of those.
        of: whose CPU time is taken where the processors have no counter: "process", this one and its descendants, or
            "machine".
        pid: that process, if not this one.
        rapl: the folder of the processors' counters.

    >>> meter = Meter()
    >>> meter.read().quality in ("measured", "estimated", "absent")
    True
    """

    def __init__(
        self,
        *,
        gpus: Sequence[int] | Literal["all"] = (),
        of: Literal["process", "machine"] = "process",
        pid: int | None = None,
        rapl: pathlib.Path = ROOT,
    ):
        self._parts: dict[str, Counter] = {}
        self._absent: dict[str, Energy] = {}
        self._nvml: Nvml | None = None
        self._open_cpu(of, pid, rapl)
        if gpus:
            self._open_gpus(gpus)
        self._began = self._kept_up = time.monotonic()

    def _open_cpu(self, of: str, pid: int | None, rapl: pathlib.Path) -> None:
        try:
            self._parts["cpu"] = Rapl(rapl)
            return
        except UnavailableError as reason:
            self.why_not_measured = str(reason)
        try:
            if of == "machine":
                self._parts["cpu"] = ByCpuTime(machine_seconds, "the machine")
            else:
                tree = Tree(pid)
                self._parts["cpu"] = ByCpuTime(lambda: tree.read().seconds, "the process and its descendants")
        except (UnavailableError, ImportError) as reason:
            self._absent["cpu"] = absent(reason)

    def _open_gpus(self, gpus: Sequence[int] | Literal["all"]) -> None:
        try:
            self._nvml = nvml = Nvml()
        except UnavailableError as reason:
            # "all" of none are none; a GPU that is asked for by its number is there, and its joules are not known.
            if gpus != "all":
                self._absent |= {f"gpu{number}": absent(reason) for number in gpus}
            return
        numbers = range(len(nvml.handles)) if gpus == "all" else gpus
        self._parts |= {counter.name: counter for counter in gpu_counters(nvml, numbers)}
        missing = {f"gpu{number}" for number in numbers} - self._parts.keys()
        self._absent |= {name: absent(f"NVML knows no {name}") for name in missing}

    why_not_measured = ""
    """Why the processors' energy is not measured, or ""."""

    def parts(self) -> dict[str, Energy]:
        """Joules so far by what used them: "cpu", "gpu0" ..."""
        return {name: counter.read() for name, counter in self._parts.items()} | self._absent

    def read(self) -> Energy:
        """All joules so far."""
        self._kept_up = time.monotonic()
        return total(self.parts().values())

    def keep_up(self, every: float = 30.0) -> None:
        """Reads the counters if that is long ago; those that come round, or tell power alone, want it now and then."""
        if time.monotonic() - self._kept_up > every:
            self.read()

    def close(self) -> None:
        """Lets go of the GPUs' library."""
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None
