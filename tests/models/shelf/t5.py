from models_sample import Sample, ids, mask

from llmasos_xla.models import T5Config

SIZES = {"vocab": 12, "width": 8, "depth": 1, "heads": 2, "key_dim": 4, "hidden": 12, "dropout": 0.1}
ROWS = {"ids": ids(12, 6), "attention_mask": mask(6), "decoder_input_ids": ids(12, 5, seed=1)}

SAMPLES = [
    Sample("t5", T5Config(**SIZES), {**ROWS, "decoder_attention_mask": mask(5)}),
    Sample("t5_gated", T5Config(**SIZES, gated=True, activation="gelu_tanh", tied=False, scaled=False), ROWS),
]
