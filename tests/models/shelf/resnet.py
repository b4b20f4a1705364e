from models_sample import Sample, images

from llmasos_xla.models import ResNetConfig

SAMPLES = [
    Sample(
        "resnet",
        ResNetConfig((1, 1), (8, 16), classes=6, stem_width=4, input_shape=(None, None, 3)),
        {"images": images(19, 21, 3)},
    ),
    Sample(
        "resnet_cifar",
        ResNetConfig((1, 1), (4, 8), classes=6, block="basic", stem="cifar", shortcut="padding"),
        {"images": images(9, 10, 3)},
    ),
]
