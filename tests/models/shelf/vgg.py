from models_sample import Sample, images

from llmasos_xla.models import VGGConfig

SAMPLES = [
    Sample(
        "vgg_bn",
        VGGConfig((1, 2), (4, 8), classes=6, hidden=16, batch_norm=True, dropout=0.0, input_shape=(9, 10, 3)),
        {"images": images(9, 10, 3)},
    )
]
