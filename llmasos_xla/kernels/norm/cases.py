"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import NamedTuple

Ints = tuple[int, ...]


class Case(NamedTuple):
    """One batch normalization of `[..., channels]`."""

    name: str
    x: Ints


# Correctness: odd sizes, sizes of one on every side, channels that fill a vector register and that do not.
TESTS = (
    Case("plain", (4, 3, 5, 16)),
    Case("odd", (3, 5, 7)),
    Case("table", (9, 32)),
    Case("1d", (2, 7, 8)),
    Case("3d", (2, 3, 2, 3, 24)),
    Case("one-pixel", (5, 1, 1, 48)),
    Case("one-channel", (2, 3, 4, 1)),
    Case("batch-one", (1, 6, 5, 16)),
    Case("one-value", (1, 1, 16)),
    Case("one", (1, 1)),
)

# Speed: layers that people train.
BENCH = (
    Case("resnet20-32", (64, 32, 32, 16)),
    Case("resnet18-32", (64, 32, 32, 64)),
    Case("resnet18-16", (64, 16, 16, 128)),
    Case("resnet18-8", (64, 8, 8, 256)),
    Case("resnet18-4", (64, 4, 4, 512)),
    Case("resnet50-56", (8, 56, 56, 256)),
    Case("mlp", (128, 256)),
    Case("wavenet", (8, 1024, 64)),
)
