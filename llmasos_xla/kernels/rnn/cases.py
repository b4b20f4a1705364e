"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import Literal, NamedTuple


class Case(NamedTuple):
    """One problem of recurrence."""

    name: str
    op: Literal["lstm", "gru", "rnn"]
    batch: int
    time: int
    cin: int
    hidden: int
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    bias: bool = True


GATES = {"lstm": 4, "gru": 3, "rnn": 1}

# Correctness: odd sizes, sizes of one, ragged batches with a full, an empty and a partial row, and one that is past the
# sizes at which small problems are treated otherwise.
TESTS = tuple(
    Case(f"{op}-{name}", op, *sizes)
    for op in ("lstm", "gru", "rnn")
    for name, sizes in {
        "odd": (3, 7, 5, 11),
        "one": (1, 1, 1, 1),
        "ragged": (4, 6, 3, 5, (6, 0, 1, 4)),
        "reverse": (2, 5, 3, 4, None, True),
        "ragged-reverse": (4, 6, 3, 5, (6, 0, 1, 4), True),
        "wide": (2, 3, 80, 80, (3, 2)),
        "many-rows": (35, 2, 3, 17),
        "no-bias": (2, 3, 4, 2, None, False, False),
    }.items()
)

# Speed: what people train, with the sizes of the reports in docs and of the peers' benchmarks.
BENCH = (
    *(Case(f"{op}-256", op, 32, 128, 256, 256) for op in ("lstm", "gru", "rnn")),
    Case("lstm-512", "lstm", 32, 128, 512, 512),
    Case("lstm-64", "lstm", 32, 128, 64, 64),
    Case("gru-64", "gru", 32, 128, 64, 64),
    *(Case(f"{op}-ragged", op, 32, 128, 256, 256, tuple(range(4, 132, 4))) for op in ("lstm", "gru", "rnn")),
    *(Case(f"{op}-reverse", op, 32, 128, 256, 256, None, True) for op in ("lstm", "gru")),
    *(Case(f"{op}-stream", op, 1, 1, 128, 128) for op in ("lstm", "gru")),
    *(Case(f"{op}-batch-one", op, 1, 128, 256, 256) for op in ("lstm", "gru")),
    *(Case(f"{op}-long", op, 8, 1000, 40, 128) for op in ("lstm", "gru")),
    *(Case(f"{op}-small", op, 16, 20, 8, 16) for op in ("lstm", "gru", "rnn")),
)
