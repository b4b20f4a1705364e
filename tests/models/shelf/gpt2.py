"""GPT-2, plain and as nanoGPT has it."""

from models_sample import Sample, ids, mask

from llmasos_xla.models.gpt2 import GPT2Config

SIZES = {"vocab": 24, "context": 16, "width": 12, "depth": 2, "heads": 2}
SAMPLES = [
    Sample("gpt2", GPT2Config(**SIZES), {"ids": ids(24, 7), "attention_mask": mask(7)}),
    Sample("nanogpt", GPT2Config.nanogpt(**SIZES), {"ids": ids(24, 7)}),
]
