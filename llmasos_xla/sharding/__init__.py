"""One program on many devices: meshes, where arrays lie, processes, plans.

mesh          MeshSpec: how many parts each strategy makes
rules         array name -> PartitionSpec, a table a strategy
placement     Placement: a mesh and where each array lies; what a step is traced for
plan          Plan: which layout fits and is fastest, found by compiling; planning: what it stands on
ring          attention with the time axis split
pipeline      layers in stages, micro-batches passing through them
distributed   initialize: this process becomes one of several; processes: what it takes
agreement     whether all processes are about to do the same
transfer      between this process's memory and arrays over a mesh
threads       virtual_devices: several CPU devices in one process
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmasos_xla.sharding.mesh import MeshSpec as MeshSpec
    from llmasos_xla.sharding.placement import Placement as Placement
    from llmasos_xla.sharding.threads import virtual_devices as virtual_devices

# Not at once: launchers and the queue start processes, and have no use for JAX themselves.
_HOMES = {"MeshSpec": "mesh", "Placement": "placement", "virtual_devices": "threads"}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
