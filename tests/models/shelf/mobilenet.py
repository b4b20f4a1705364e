from models_sample import Sample, images

from llmasos_xla.models import MobileNetV2Config

TINY = MobileNetV2Config(0.5, 6, ((1, 8, 1, 1), (2, 16, 2, 2)), stem_width=8, last_width=16, dropout=0.0)
SAMPLES = [Sample("mobilenet_v2", TINY, {"images": images(13, 14, 3)})]
