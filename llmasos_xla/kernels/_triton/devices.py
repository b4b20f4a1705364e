"""Which GPU a kernel is compiled for, and what of it decides a kernel's shape."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax

from llmasos_xla.errors import unknown


class Device(NamedTuple):
    """A GPU as a kernel's author sees it."""

    name: str
    """As JAX's `device_kind` has it."""
    arch: int
    """Compute capability times ten: 90."""
    multiprocessors: int
    shared_memory: int
    """Bytes that one program can have."""


# Bytes of shared memory a program can ask for, by compute capability: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability", less the KiB that the driver keeps.
_SHARED_MEMORY = {80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448, 103: 232448, 120: 101376}

KNOWN = {
    d.name: d
    for d in (
        Device("NVIDIA A100-SXM4-80GB", 80, 108, _SHARED_MEMORY[80]),
        Device("NVIDIA L4", 89, 58, _SHARED_MEMORY[89]),
        Device("NVIDIA H100 80GB HBM3", 90, 132, _SHARED_MEMORY[90]),
        Device("NVIDIA H200", 90, 132, _SHARED_MEMORY[90]),
        Device("NVIDIA B200", 100, 148, _SHARED_MEMORY[100]),
    )
}
_DEFAULT = "NVIDIA H100 80GB HBM3"

_TOLD: contextvars.ContextVar[Device | None] = contextvars.ContextVar("gpu compiled for", default=None)


@contextlib.contextmanager
def compiling_for(gpu: str | Device) -> Iterator[Device]:
    """Compiles the kernels traced inside for that GPU, described or by its name in `KNOWN`, not one that is here."""
    if isinstance(gpu, str):
        if gpu not in KNOWN:
            raise unknown("compiling_for", "GPU", gpu, KNOWN)
        gpu = KNOWN[gpu]
    token = _TOLD.set(gpu)
    try:
        yield gpu
    finally:
        _TOLD.reset(token)


def current() -> Device | str:
    """The GPU to compile for, or why there can be none: that of `compiling_for`, else the first that is here.

    Where there is no GPU, programs are compiled for an H100.
    """
    return _TOLD.get() or _here()


def device() -> Device:
    """The GPU to compile for, where `current` has said that there can be one."""
    found = current()
    assert isinstance(found, Device), found
    return found


@functools.cache
def _here() -> Device | str:
    try:
        gpu = jax.local_devices(backend="gpu")[0]
    except RuntimeError:  # JAX has no such backend here
        return KNOWN[_DEFAULT]
    version = gpu.client.platform_version
    if "rocm" in version.lower():
        return f"the GPU is AMD's ({version}); the kernels compile for gfx942, but JAX launches only CUDA's here"
    return described(gpu.device_kind, gpu.compute_capability, gpu.core_count)


def described(name: str, capability: str, multiprocessors: int) -> Device | str:
    """The GPU of that name and compute capability ("9.0"), or why no kernel is compiled for it.

    >>> described("NVIDIA GeForce RTX 4090", "8.9", 128).shared_memory
    101376
    """
    arch = int(capability.replace(".", ""))
    if arch < 80:
        return f"{name} has compute capability {capability}; the kernels need 8.0 or newer"
    # One that is not listed: an architecture as large as its relatives' smallest.
    shared = _SHARED_MEMORY.get(arch, min(_SHARED_MEMORY.values()))
    return Device(name, arch, multiprocessors, shared)
