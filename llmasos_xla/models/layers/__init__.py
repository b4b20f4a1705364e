"""Layers under the names Keras users know; each is a frozen specification that a model builds from.

    dense           Dense
    conv            Conv1D, Conv2D, Conv3D
    pooling         MaxPooling1D, MaxPooling2D
    shape           Flatten
"""

from llmasos_xla.models.layers._base import LAYERS as LAYERS
from llmasos_xla.models.layers._base import Layer as Layer
from llmasos_xla.models.layers.conv import Conv1D as Conv1D
from llmasos_xla.models.layers.conv import Conv2D as Conv2D
from llmasos_xla.models.layers.conv import Conv3D as Conv3D
from llmasos_xla.models.layers.dense import Dense as Dense
from llmasos_xla.models.layers.pooling import MaxPooling1D as MaxPooling1D
from llmasos_xla.models.layers.pooling import MaxPooling2D as MaxPooling2D
from llmasos_xla.models.layers.shape import Flatten as Flatten
