"""The one place where oneDNN enters: the library, plans made of its primitives, and a JAX primitive that runs them."""

from llmasos_xla.kernels._onednn.call import Operation, Prepared, bilinear_jvp, call, operation, prepare, refusal, unfit
from llmasos_xla.kernels._onednn.descriptors import Builder, Refused
from llmasos_xla.kernels._onednn.library import loaded, multiplies, problem

__all__ = [
    "Builder", "Operation", "Prepared", "Refused", "bilinear_jvp", "call", "loaded", "multiplies", "operation",
    "prepare", "problem", "refusal", "unfit",
]  # fmt: skip
