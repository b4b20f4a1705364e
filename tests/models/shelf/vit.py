from models_sample import Sample, images

from llmasos_xla.models import ViTConfig

SAMPLES = [
    Sample(
        "vit",
        ViTConfig(9, 4, width=8, depth=1, heads=2, hidden=12, classes=6, interpolate=True),
        {"images": images(9, 13, 3)},
    )
]
