"""Stands in for jaxtyping where that is not installed: a machine with a GPU has JAX and Triton, and needs no more."""

import importlib.util
import sys
import types


class _Annotation:
    def __class_getitem__(cls, _: object) -> type["_Annotation"]:
        return cls


def _named(name: str) -> type[_Annotation]:
    if name.startswith("__"):  # what modules are asked for by those that look at all of them
        raise AttributeError(name)
    return _Annotation


def install() -> None:
    """From here on annotations can be imported, and say nothing."""
    if "jaxtyping" not in sys.modules and importlib.util.find_spec("jaxtyping") is None:
        sys.modules["jaxtyping"] = module = types.ModuleType("jaxtyping")
        module.__dict__["__getattr__"] = _named
