"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import NamedTuple


class Case(NamedTuple):
    """One linear recurrence of `[batch, time, channels]`."""

    name: str
    batch: int
    time: int
    channels: int
    gate: tuple[int, int, int] | None = None
    """The shape of a; None: that of b."""
    reverse: bool = False
    initial: bool = True
    """Whether it starts from a given state."""
    dtype: str = "float32"
    """In which it is measured on a GPU; tests and the CPU's benchmarks take several."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of b and h."""
        return self.batch, self.time, self.channels

    @property
    def a(self) -> tuple[int, int, int]:
        """The shape of a."""
        return self.shape if self.gate is None else self.gate


# Correctness: odd sizes, sizes of one on every side, tails of steps and of channels, gates that are shared.
TESTS = (
    Case("odd", 3, 37, 19),
    Case("one", 1, 1, 1),
    Case("one-step", 2, 1, 5),
    Case("one-channel", 2, 40, 1),
    Case("two-blocks", 2, 11, 70),
    Case("even", 2, 16, 32),
    Case("reverse", 2, 21, 6, None, True),
    Case("no-start", 2, 9, 4, None, False, False),
    Case("gate-of-step", 2, 13, 10, (2, 13, 1)),
    Case("gate-of-channel", 2, 13, 10, (1, 1, 10), True),
    Case("gate-of-all", 2, 13, 10, (1, 1, 1)),
    Case("gate-of-time", 2, 13, 10, (1, 13, 10)),
)

# Speed on a CPU: what people train with such layers, a long row, a short one, and a few channels.
BENCH = (
    Case("mingru-256", 32, 128, 256),
    Case("mingru-512", 16, 512, 512),
    Case("small", 64, 32, 16),
    Case("long", 4, 4096, 256),
    Case("one-row", 1, 1024, 64),
    Case("one-channel", 1, 16384, 1),
    Case("reverse", 32, 128, 256, None, True),
)

# Speed on a GPU: many and few channels in flight, rows that have to be cut into segments, both directions, 16 bits.
GPU_BENCH = (
    *(Case("mingru", 64, 512, 512, dtype=d) for d in ("float32", "bfloat16")),
    *(Case("hgrn", 16, 2048, 1024, dtype=d) for d in ("float32", "bfloat16")),
    *(Case("rglru", 8, 2048, 2560, dtype=d) for d in ("float32", "bfloat16")),
    Case("wide", 256, 256, 1024, dtype="bfloat16"),
    Case("few-rows", 4, 4096, 256, dtype="bfloat16"),
    Case("long", 1, 65536, 256),
    Case("long-wide", 1, 65536, 1024, dtype="bfloat16"),
    Case("small", 64, 128, 64),
    Case("odd", 7, 1001, 333),
    Case("reverse", 16, 2048, 1024, None, True, dtype="bfloat16"),
    Case("gate-of-step", 64, 512, 512, (64, 512, 1), dtype="bfloat16"),
    Case("gate-of-channel", 16, 2048, 1024, (1, 1, 1024), dtype="bfloat16"),
    Case("one-channel", 1, 65536, 1),
)
