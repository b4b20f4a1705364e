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

from typing import TYPE_CHECKING

from llmasos_xla.lazy import lazy

if TYPE_CHECKING:
    from llmasos_xla.sharding.mesh import MeshSpec as MeshSpec
    from llmasos_xla.sharding.placement import Placement as Placement
    from llmasos_xla.sharding.threads import virtual_devices as virtual_devices

# Not at once: launchers and the queue start processes, and have no use for JAX themselves.
_HOMES = {"MeshSpec": "mesh", "Placement": "placement", "virtual_devices": "threads"}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy(__name__, _HOMES)
