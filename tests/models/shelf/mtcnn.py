from models_sample import Sample, images

from llmasos_xla.models import MTCNNConfig

SAMPLES = [
    Sample("mtcnn_pnet", MTCNNConfig("proposal"), {"images": images(15, 18, 3)}),
    Sample("mtcnn_rnet", MTCNNConfig("refinement"), {"images": images(24, 24, 3)}),
]
