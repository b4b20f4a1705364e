"""Llama, with its blocks in a scan and each by itself."""

from models_sample import Sample, ids, mask

from llmasos_xla.models.llama import LlamaConfig

SIZES = {"vocab": 24, "width": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 10}
SAMPLES = [
    Sample("llama", LlamaConfig(**SIZES), {"ids": ids(24, 7), "attention_mask": mask(7)}),
    Sample("llama_apart", LlamaConfig(**SIZES, tied=True, scan=False, rope_scaling=(2.0,)), {"ids": ids(24, 7)}),
]
