"""Joules: what a machine, a GPU or a process has used, and how well that is known.

figures      `Energy`: joules, whether they are measured, estimated or absent, and where they come from
processes    CPU seconds and memory of the machine and of a process with its descendants
rapl         the processors' own counters, on Linux
nvml         NVIDIA's library: which GPUs this process sees, and their counters
estimate     CPU time times watts, where nothing is measured
meter        all of these as one

It stands below training, so that `fit` can tell its joules, and imports nothing that is not in Python.
"""

from llmasos_xla.energy.figures import Energy
from llmasos_xla.energy.meter import Meter

__all__ = ["Energy", "Meter"]
