import numpy as np
from models_sample import Sample, ids, mask

from llmasos_xla.models.whisper import WhisperConfig

TINY = WhisperConfig(
    vocab=12, width=8, depth=1, num_heads=2, mels=5, source=6, context=7, start_ids=(1, 3), end=2, suppressed_first=(2,)
)
FEATURES = np.random.default_rng(0).standard_normal((4, 11, 5)).astype(np.float32)
SAMPLES = [
    Sample(
        "whisper",
        TINY,
        {"input_features": FEATURES, "decoder_input_ids": ids(12, 6), "decoder_attention_mask": mask(6)},
        unused=("positions/embeddings",),
    )
]
