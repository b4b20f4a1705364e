"""The workloads."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One workload.

    Attributes:
        kind: "resnet50", "vgg16", "bert", "gpt2" or "nanogpt".
        batch: rows of a call.
        about: what it is, for people.
        tokens: what a call makes; 0 where a call is what counts.
        limit: the largest deviation from the first contestant's results, as a share of their largest value.
    """

    kind: str
    batch: int
    about: str
    tokens: int = 0
    limit: float = 1e-3


IMAGE = (224, 224, 3)
LENGTH = 128
PROMPT, NEW = 32, 64
BLOCK, VOCAB = 64, 65
"""nanoGPT's CPU configuration on the characters of tiny-shakespeare."""

ROWS = {
    "resnet50-1": Row("resnet50", 1, "ResNet-50 inference, 224x224x3, batch 1"),
    "resnet50-8": Row("resnet50", 8, "ResNet-50 inference, 224x224x3, batch 8"),
    "vgg16-1": Row("vgg16", 1, "VGG-16 inference, 224x224x3, batch 1"),
    "vgg16-8": Row("vgg16", 8, "VGG-16 inference, 224x224x3, batch 8"),
    "bert-1": Row("bert", 1, f"BERT-base inference, {LENGTH} tokens, batch 1"),
    "bert-8": Row("bert", 8, f"BERT-base inference, {LENGTH} tokens, batch 8"),
    "gpt2-decode": Row("gpt2", 1, f"GPT-2 greedy, {PROMPT} tokens in, {NEW} out, with cache, batch 1", tokens=NEW),
    "nanogpt": Row("nanogpt", 12, f"nanoGPT training step, 4 blocks, width 128, {BLOCK} tokens, batch 12", limit=0.05),
}
"""Name on the command line -> workload."""
