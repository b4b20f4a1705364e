from models_sample import Sample, images

from llmasos_xla.models import CNNConfig

SAMPLES = [
    Sample("cnn", CNNConfig((4, 6), (8,), 6, dropout=0.2, input_shape=(11, 12, 1)), {"images": images(11, 12, 1)})
]
