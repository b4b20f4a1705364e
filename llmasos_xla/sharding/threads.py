"""Threads for XLA's CPU client to wait in.

A thread of its pool waits in each collective that is under way, and the pool has as many as there are cores, or devices
if those are more. A device whose program has several collectives in flight can so keep another one from the thread in
which it would join them: all wait for ever. More threads are the cure, and the environment variable NPROC, read when
the client starts, is the way to have them.
"""

import os
import warnings
from typing import Any

import jax
from jax._src import xla_bridge

PER_DEVICE = 4
"""Two processes of two devices have stopped with one thread a device, one run in two, and never with two. More of them
cost speed: XLA cuts its products into as many parts as there are threads."""


def usable_cpus() -> int:
    """On how many CPUs this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def enough(devices: int) -> None:
    """Asks for threads enough for so many CPU devices of this process; too late once JAX has started its devices."""
    wanted = max(PER_DEVICE * devices, usable_cpus())
    told = os.environ.get("NPROC", "")
    if not (told.isdigit() and int(told) >= wanted):
        os.environ["NPROC"] = str(wanted)


def warn_if_few() -> None:
    """Warns where this process has several CPU devices and hardly more threads for them to wait in."""
    count = len(jax.local_devices())
    if count == 1 or jax.default_backend() != "cpu":
        return
    told = os.environ.get("NPROC", "")
    cores = usable_cpus()
    threads = int(told) if told.isdigit() else max(cores, count)
    if threads < 2 * count:
        warnings.warn(
            f"{count} CPU devices in one process have {threads} threads in which their messages wait: it may "
            f"stop for ever. Get them by lm.sharding.virtual_devices({count}), or set NPROC={PER_DEVICE * count} "
            "in the environment, ahead of the first array",
            stacklevel=3,
        )


def virtual_devices(count: int) -> list[Any]:
    """So many CPU devices in this process, to try on one machine what is meant for many; to be called ahead of arrays.

    Raises RuntimeError if JAX has started its devices already, and there are fewer.

    >>> len(virtual_devices(1)) >= 1
    True
    """
    if not xla_bridge.backends_are_initialized():
        jax.config.update("jax_num_cpu_devices", count)
        enough(count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise RuntimeError(
            f"virtual_devices: {count} are wanted, and JAX has already started {len(devices)}; call it ahead of the "
            "first array, jax.devices(), model or import that makes one"
        )
    return devices
