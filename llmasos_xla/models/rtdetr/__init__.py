"""RT-DETR (Zhao et al. 2023): a detector that needs no suppression of boxes, fast enough for video.

config      RTDETRConfig: the model by its sizes
network     the module: backbone, encoder, choice of queries, decoder
backbone    ResNet-D, whose last stages are the feature maps
encoder     the hybrid encoder: attention within the coarsest map, convolutions across maps
decoder     queries that look at the maps where they need to, and refine their boxes layer by layer
deformable  multi-scale deformable attention as a pure function
parts       what these share: normalized convolutions, dense layers, perceptrons
names       the table of Hugging Face's names
"""

from llmasos_xla.models.rtdetr.config import RTDETRConfig as RTDETRConfig
from llmasos_xla.models.rtdetr.network import Detections as Detections
