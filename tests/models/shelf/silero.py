from goldens.seeded import sound
from models_sample import Sample

from llmasos_xla.models.silero import SileroVADConfig

TINY = SileroVADConfig(window=32, context=4, fft_length=16, widths=(16, 16, 16, 16), hidden=8)
SAMPLES = [Sample("silero_vad", TINY, {"sound": sound(0, 4, 100)})]
