import numpy as np
from goldens.seeded import sound
from models_sample import Sample

from llmasos_xla.models.ctc import CTCConfig
from llmasos_xla.models.layers import LogMel

MEL = LogMel(rate=8000, mels=8, window=40, hop=20)
SIZES = {"vocab": 6, "width": 8, "depth": 1, "channels": 4, "dropout": 0.0, "features": MEL}
INPUTS = {"sound": sound(0, 4, 700), "lengths": np.array([700, 600, 85, 161], np.int32)}
CONFORMER = {"body": "conformer", "num_heads": 2, "left": 3, "window": 4}
SAMPLES = [
    Sample("ctc_lstm", CTCConfig(**SIZES), INPUTS),
    Sample("ctc_conformer", CTCConfig(**SIZES, **CONFORMER), INPUTS),
    Sample("ctc_conformer_whole", CTCConfig(**SIZES, **CONFORMER, causal=False), INPUTS),
]
