"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import Literal, NamedTuple


class Case(NamedTuple):
    """One problem of recurrence."""

    name: str
    op: Literal["lstm", "gru", "rnn", "slstm"]
    batch: int
    time: int
    cin: int
    hidden: int
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    bias: bool = True
    heads: int = 1
    """Blocks of a block-diagonal w_recurrent."""
    resets: bool = False
    """Whether some steps start from zero states."""
    mask: bool = False
    """Whether the state is multiplied by a recurrent mask."""
    dtype: str = "bfloat16"
    """In which it is measured on a GPU; tests and the CPU's benchmarks take several."""


GATES = {"lstm": 4, "gru": 3, "rnn": 1, "slstm": 4}

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

# On a GPU besides: heads, all that a step can be told, and blocks that several programs share, with rows left over.
GPU_TESTS = tuple(
    Case(f"{op}-{name}", op, *sizes)
    for op in ("lstm", "gru", "rnn", "slstm")
    for name, sizes in {
        "heads": (3, 5, 4, 66, None, False, True, 3),
        "everything": (5, 6, 7, 40, (6, 0, 1, 4, 5), True, True, 2, True, True),
        "split": (17, 5, 9, 200),
        "split-everything": (33, 4, 9, 344, tuple(i % 5 for i in range(33)), True, True, 1, True, True),
        "split-heads": (20, 4, 9, 600, None, False, True, 3, True),
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

# Speed on a GPU, in the order of what one wants to know first: one head and many, long and short, sizes between those
# that libraries are built for; other dtypes last.
GPU_BENCH = (
    Case("lstm-768", "lstm", 16, 1024, 768, 768),
    Case("lstm-12x64", "lstm", 16, 1024, 768, 768, heads=12),
    Case("gru-1024", "gru", 32, 1500, 1024, 1024),
    Case("lstm-256", "lstm", 64, 150, 256, 256),
    Case("gru-256-resets", "gru", 128, 128, 256, 256, resets=True),
    Case("lstm-1024", "lstm", 64, 25, 1024, 1024),
    Case("tanh-1760", "rnn", 16, 50, 1760, 1760),
    Case("lstm-168", "lstm", 62, 2058, 168, 168),
    Case("lstm-3x256", "lstm", 16, 1024, 768, 768, heads=3),
    Case("lstm-1150", "lstm", 80, 70, 1150, 1150),
    Case("lstm-512", "lstm", 16, 25, 512, 512),
    Case("lstm-1536", "lstm", 8, 50, 1536, 1536),
    Case("lstm-24x32", "lstm", 16, 1024, 768, 768, heads=24),
    Case("lstm-6x128", "lstm", 16, 1024, 768, 768, heads=6),
    Case("slstm-4x192", "slstm", 16, 1024, 768, 768, heads=4),
    Case("lstm-256", "lstm", 64, 150, 256, 256, dtype="float32"),
    Case("lstm-768", "lstm", 16, 1024, 768, 768, dtype="float16"),
    Case("lstm-256", "lstm", 64, 150, 256, 256, dtype="float16"),
    Case("lstm-1150", "lstm", 80, 70, 1150, 1150, dtype="float16"),
    Case("gru-256-resets", "gru", 128, 128, 256, 256, resets=True, dtype="float32"),
)
