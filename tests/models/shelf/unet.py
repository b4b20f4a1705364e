from models_sample import Sample, images

from llmasos_xla.models import UNetConfig

SAMPLES = [Sample("unet", UNetConfig((4, 8), classes=2), {"images": images(7, 10, 3)})]
