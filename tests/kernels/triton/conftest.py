"""Kernels interpreted on the host, inside whole JAX programs."""

import contextlib

import jax
import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from kernels.triton import interp

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton import engine, primitive


@pytest.fixture
def interpreted():
    """A context in which Triton is what a GPU's programs use, and its kernels run interpreted on the CPU."""

    @contextlib.contextmanager
    def inside():
        # What was traced or compiled outside holds the plain JAX versions, and the other way round.
        jax.clear_caches()
        primitive.INTERPRETER, engine.ENGINE.elsewhere = interp.interpreter, engine.lower
        interp.LAUNCHES.clear()
        try:
            with _dispatch.tracing_for("gpu"):
                yield interp.LAUNCHES
        finally:
            primitive.INTERPRETER, engine.ENGINE.elsewhere = None, None
            jax.clear_caches()

    return inside
