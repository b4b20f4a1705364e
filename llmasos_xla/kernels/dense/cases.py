"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import NamedTuple


class Case(NamedTuple):
    """One dense layer: x `[*rows, cin]`, w `[cin, cout]` or, transposed, `[cout, cin]`."""

    name: str
    rows: tuple[int, ...]
    cin: int
    cout: int
    transpose_kernel: bool = False

    @property
    def x(self) -> tuple[int, ...]:
        """The shape of x."""
        return (*self.rows, self.cin)

    @property
    def w(self) -> tuple[int, int]:
        """The shape of w."""
        return (self.cout, self.cin) if self.transpose_kernel else (self.cin, self.cout)


# Correctness: odd sizes, sizes of one on every side, vectors, several leading axes.
TESTS = (
    Case("plain", (6,), 16, 8),
    Case("odd", (5,), 7, 3),
    Case("odd-transposed", (5,), 7, 3, True),
    Case("row", (1,), 33, 17),
    Case("row-transposed", (1,), 33, 17, True),
    Case("vector", (), 9, 4),
    Case("one-in", (4,), 1, 5),
    Case("one-out", (4,), 5, 1),
    Case("one", (1,), 1, 1),
    Case("time", (2, 3), 6, 5),
    Case("time-transposed", (2, 3, 2), 6, 5, True),
)

# Speed: layers that people train and serve.
BENCH = (
    Case("mnist-mlp-b1", (1,), 784, 128),
    Case("mnist-mlp", (128,), 784, 128),
    Case("seed-cnn", (128,), 5408, 128),
    Case("seed-cnn-512", (512,), 5408, 128),
    Case("vgg-head-b1", (1,), 25088, 4096),
    Case("vgg-head-b8", (8,), 25088, 4096),
    Case("vgg-fc2-b1", (1,), 4096, 4096),
    Case("attention", (8, 256), 512, 512),
    Case("feed-forward", (8, 256), 512, 2048),
    Case("feed-forward-back", (8, 256), 2048, 512),
    Case("language-head", (256,), 512, 32000),
    Case("decode-head", (1,), 512, 32000),
    Case("decode-tied-head", (1,), 512, 32000, True),
)
