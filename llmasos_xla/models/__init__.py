"""Models: lists of layers today, one file an architecture as they come.

    layers      the layers, as specifications
    decoder     DecoderConfig: decoder language models by their sizes
    stack       a list of layers as one nnx module
    spec        a model as its user wrote it down
    stages      a list of layers cut into stages, for the devices of a pipeline

Nothing here holds arrays but the modules that specifications build.
"""

from llmasos_xla.models import layers as layers
from llmasos_xla.models.decoder import DecoderConfig as DecoderConfig
from llmasos_xla.models.stack import Stack as Stack
