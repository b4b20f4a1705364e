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

from llmasos_xla.sharding.mesh import MeshSpec as MeshSpec
from llmasos_xla.sharding.placement import Placement as Placement
from llmasos_xla.sharding.threads import virtual_devices as virtual_devices
