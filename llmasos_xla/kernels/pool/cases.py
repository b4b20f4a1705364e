"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import NamedTuple

Ints = tuple[int, ...]


class Case(NamedTuple):
    """One pooling of `[batch, *spatial, channels]`; strides of None are the window's size."""

    name: str
    x: Ints
    window: int | Ints
    strides: int | Ints | None = None
    padding: str | tuple[tuple[int, int], ...] = "VALID"


# Correctness: odd sizes that leave a rest, sizes of one, overlapping windows, gaps, every padding.
TESTS = (
    Case("2x2", (2, 6, 4, 3), 2),
    Case("2x2-rest", (2, 5, 7, 3), 2),
    Case("2x2-same", (1, 5, 7, 2), 2, padding="SAME"),
    Case("one", (1, 1, 1, 1), 1),
    Case("3x3-stride", (2, 7, 8, 3), 3, 2, "SAME"),
    Case("3x3-valid", (1, 7, 6, 2), 3, 2),
    Case("3x2-stride-one", (1, 4, 5, 2), (3, 2), 1, "SAME"),
    Case("gaps", (1, 7, 8, 2), 2, 3),
    Case("asymmetric", (1, 5, 6, 2), (2, 3), (1, 2), ((0, 1), (2, 0))),
    Case("asymmetric-tiles", (1, 5, 6, 2), (2, 3), None, ((1, 0), (2, 1))),
    Case("same-lower", (1, 5, 6, 2), 2, 2, "SAME_LOWER"),
    Case("large-tiles", (1, 10, 9, 2), (5, 4)),
    Case("large-overlapping", (1, 9, 9, 1), 9, 1, "SAME"),
    Case("1d", (2, 7, 3), 2),
    Case("1d-overlapping", (2, 9, 3), 3, 2),
    Case("3d", (1, 4, 3, 5, 2), 2),
)

# Speed: layers that people train.
BENCH = (
    Case("mnist", (128, 26, 26, 32), 2),
    Case("vgg16-112", (2, 112, 112, 128), 2),
    Case("resnet-stem", (8, 112, 112, 64), 3, 2, "SAME"),
    Case("alexnet", (8, 55, 55, 96), 3, 2),
    Case("inception", (8, 28, 28, 192), 3, 1, "SAME"),
    Case("last-7x7", (32, 7, 7, 512), 7),
    Case("text-1d", (32, 256, 64), 2),
    Case("volume", (4, 16, 16, 16, 16), 2),
)
