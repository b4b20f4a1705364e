"""The one place where Triton enters: GPUs, compiling, and a JAX primitive that launches a kernel.

This package imports without Triton; files that hold kernels or parts of them (`*_kernels.py`, `*language.py`) import
it, and are imported only where `problem()` is None.
"""

from llmasos_xla.kernels._operation import Operation, unfit
from llmasos_xla.kernels._triton.compiler import problem
from llmasos_xla.kernels._triton.devices import Device, current, device
from llmasos_xla.kernels._triton.engine import ENGINE, refusal
from llmasos_xla.kernels._triton.precision import DTYPES
from llmasos_xla.kernels._triton.primitive import launch

operation, call, bilinear_jvp = ENGINE.operation, ENGINE.call, ENGINE.bilinear_jvp

__all__ = [
    "DTYPES", "Device", "ENGINE", "Operation", "bilinear_jvp", "call", "current", "device", "launch", "operation",
    "problem", "refusal", "unfit",
]  # fmt: skip
