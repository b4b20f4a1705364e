import numpy as np
from models_sample import Sample

from llmasos_xla.models.parakeet import ParakeetConfig

TINY = ParakeetConfig(vocab=6, width=8, depth=1, num_heads=2, window=3, channels=4, subsampling=4, mels=8, dropout=0.0)
FEATURES = np.random.default_rng(0).standard_normal((4, 21, 8)).astype(np.float32)
MASK = (np.arange(21)[None] < np.array([21, 20, 9, 13])[:, None]).astype(np.int32)
SAMPLES = [Sample("parakeet", TINY, {"input_features": FEATURES, "attention_mask": MASK})]
