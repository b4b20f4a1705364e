"""Published weights: which formats there are, what arrays are called in them, and how they are read.

reading     read: a file or folder as arrays by name, whatever its format; nothing in it is executed
loading     load: a model's variables from it, on one device or piece by piece onto a mesh
exporting   export: the way back, for the source's own programs
names       how one array is called here and there, and how it lies
described   what config.json says of a model, the names of its classes among it
fill        every array accounted for, on both sides
readers/    the formats
"""

from llmasos_xla.models.pretrained.exporting import export as export
from llmasos_xla.models.pretrained.loading import load as load
from llmasos_xla.models.pretrained.reading import read as read
