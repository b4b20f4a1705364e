"""What the tests of exports run on."""

import importlib
import importlib.util
import os
from typing import Any

import pytest


def installed(*names: str) -> None:
    """Skips the tests of the file that asks where one of these packages is not installed.

    Where LLMASOS_EXPORTS is set, as `make exports` does, all of them are wanted, and one that is missing fails.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            if os.environ.get("LLMASOS_EXPORTS"):
                raise ModuleNotFoundError(f"{name} is not installed, and LLMASOS_EXPORTS wants every export tested")
            pytest.skip(f"{name} is not installed", allow_module_level=True)


def modules(*names: str) -> list[Any]:
    """The same, and the packages' modules."""
    installed(*(name.partition(".")[0] for name in names))
    # Importing OpenVINO sends statistics, but in a continuous integration.
    os.environ.setdefault("CI", "true")
    return [importlib.import_module(name) for name in names]
