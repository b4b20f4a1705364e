"""The energy of a fit, from its first epoch to its last."""

from typing import Any, final

import jax

from llmasos_xla.energy import Meter
from llmasos_xla.energy.figures import absent
from llmasos_xla.training.history import History


@final
class Joules:
    """Counts from now on. One reading now, one at the end, and one in half a minute: nothing that a fit could feel.

    Args:
        state: the fit's arrays, which tell its devices.
    """

    def __init__(self, state: Any):
        self._ended = False
        self._meter: Meter | None = None
        self._why_not = ""
        devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
        platforms = {device.platform for device in devices}
        if jax.process_count() > 1:
            self._why_not = "of several processes each knows its own machine alone"
        elif platforms - {"cpu", "gpu"}:
            self._why_not = f"nobody tells what devices of {', '.join(sorted(platforms))} use"
        else:
            # CUDA's number of a device, which counts those that CUDA_VISIBLE_DEVICES leaves, as the meter does.
            gpus = sorted(device.local_hardware_id or 0 for device in devices if device.platform == "gpu")
            self._meter = Meter(gpus=gpus)

    def keep_up(self) -> None:
        """Now and then, in a long epoch."""
        if self._meter is not None:
            self._meter.keep_up()

    def told(self, history: History, samples: int) -> str:
        """Ends the count for so many samples, and writes it into the history.

        Returns "0.0012 J/sample (estimated)", or "" if it is not known, or less than a counter's step.
        """
        self._ended = True
        history.energy = absent(self._why_not) if self._meter is None else self._meter.read()
        history.samples = samples
        cost = history.joules_per_sample
        if not cost:
            return ""
        return f"{cost:.3g} J/sample" + (" (estimated)" if history.energy.quality == "estimated" else "")

    def end(self, history: History, samples: int) -> None:
        """Closes the meter. A fit that was interrupted finds its energy in the history, too."""
        if not self._ended:
            self.told(history, samples)
        if self._meter is not None:
            self._meter.close()
