"""One program on many devices: meshes, where arrays lie, processes, plans.

mesh         MeshSpec: how many parts each strategy makes
rules        array name -> PartitionSpec, a table a strategy
placement    Placement: a mesh and where each array lies; what a step is traced for
ring         attention with the time axis split
pipeline     layers in stages, micro-batches passing through them
agreement    whether all processes are about to do the same
transfer     between this process's memory and arrays over a mesh
"""

from llmasos_xla.sharding.mesh import MeshSpec as MeshSpec
from llmasos_xla.sharding.placement import Placement as Placement
