"""Queues of their own, and an engine that is gone when the test is."""

import contextlib
import os
import signal

import pytest
from runtime_jobs import marked

from llmasos_xla.runtime import service
from llmasos_xla.runtime.home import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home").make()


@pytest.fixture
def engine(home, monkeypatch):
    """Starts an engine of this home; ends whatever is left of it."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def start(*options):
        return service.up(home, "--devices", "4", "--least-run", "0", *options)

    yield start
    if (found := service.running(home)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found["pid"], signal.SIGKILL)
    for file in home.path.glob("jobs/*/*.order"):
        for pid in marked(file.stem):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
