"""The one place where oneDNN enters: the library, plans made of its primitives, and a JAX primitive that runs them."""

from llmasos_xla.kernels._onednn.call import ENGINE, Prepared, prepare, refusal
from llmasos_xla.kernels._onednn.descriptors import Builder, Refused
from llmasos_xla.kernels._onednn.library import loaded, multiplies, problem
from llmasos_xla.kernels._operation import Operation, unfit

operation, call, bilinear_jvp = ENGINE.operation, ENGINE.call, ENGINE.bilinear_jvp

__all__ = [
    "Builder", "ENGINE", "Operation", "Prepared", "Refused", "bilinear_jvp", "call", "loaded", "multiplies",
    "operation", "prepare", "problem", "refusal", "unfit",
]  # fmt: skip
