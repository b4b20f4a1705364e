"""One program on many devices: meshes, where arrays lie, processes, plans.

mesh         MeshSpec: how many parts each strategy makes
rules        array name -> PartitionSpec, a table a strategy
placement    Placement: a mesh and where each array lies; what a step is traced for
"""

from llmasos_xla.sharding.mesh import MeshSpec as MeshSpec
from llmasos_xla.sharding.placement import Placement as Placement
