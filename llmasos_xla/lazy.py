"""Names of a package that are imported when they are first used (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`; it has `__all__`.

    Args:
        package: its `__name__`.
        homes: the module within it that each name is in.
        modules: names of modules within it.
    """
    modules = modules or {}

    def get(name: str) -> Any:
        there = sys.modules[package]
        if name in homes:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{modules[name]}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(there.__all__)}")
        setattr(there, name, value)
        return value

    return get, lambda: sorted(sys.modules[package].__all__)
