"""Stands in for jaxtyping where that is not installed: a machine with a GPU has JAX and Triton, and needs no more."""

import importlib.util
import sys
import types


class _Annotation:
    def __class_getitem__(cls, _: object) -> type["_Annotation"]:
        return cls


def install() -> None:
    """From here on annotations can be imported, and say nothing."""
    if "jaxtyping" in sys.modules or importlib.util.find_spec("jaxtyping") is not None:
        return
    module = types.ModuleType("jaxtyping")
    module.__getattr__ = lambda name: _Annotation  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["jaxtyping"] = module
