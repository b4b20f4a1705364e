"""The models that are fitted, and synthetic data of a fixed seed for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """A model."""

    about: str
    layers: Callable[[bool], Any]
    """`layers(tiny)`."""
    shape: tuple[int, ...]
    classes: int
    batch: int
    steps: int
    """In an epoch."""


def _mlp(tiny: bool) -> Any:
    from llmasos_xla import layers as L  # noqa: N812

    units = 32 if tiny else 1024
    return [*(L.Dense(units, activation="relu") for _ in range(2)), L.Dense(10)]


def _cnn(tiny: bool) -> Any:
    from llmasos_xla import layers as L  # noqa: N812

    found = []
    for features in (8, 16) if tiny else (32, 64):
        # No bias ahead of a normalization: its gradient is nothing but rounding, which Adam would make steps of.
        found += [L.Conv2D(features, 3, use_bias=False), L.BatchNormalization(), L.ReLU(), L.MaxPooling2D(2)]
    return [*found, L.GlobalAveragePooling2D(), L.Dense(10)]


def _decoder(tiny: bool) -> Any:
    from llmasos_xla.models import DecoderConfig

    return DecoderConfig(256, width=32 if tiny else 128, depth=1 if tiny else 4, num_heads=4).layers()


KINDS = {
    "mlp": Kind("Dense 1024, 1024, 10 on 784", _mlp, (784,), 10, 256, 60),
    "cnn": Kind("Conv2D 32 and 64 with batch norm and max-pool, Dense 10 on 32x32x3", _cnn, (32, 32, 3), 10, 128, 40),
    "decoder": Kind("4 blocks of width 128, 64 tokens, 256 ids", _decoder, (64,), 256, 32, 15),
}


def compiled(kind: str, tiny: bool = False) -> tuple[Any, np.ndarray, np.ndarray, int]:
    """A model, and the x, y and batch size of one epoch."""
    import llmasos_xla as lm

    found = KINDS[kind]
    batch, steps = (8, 2) if tiny else (found.batch, found.steps)
    rng = np.random.default_rng(0)
    rows = batch * steps
    model = lm.Sequential(found.layers(tiny), seed=3)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[])
    if kind == "decoder":
        ids = rng.integers(0, found.classes, (rows, found.shape[0] + 1)).astype(np.int32)
        return model, ids[:, :-1], ids[:, 1:], batch
    x = rng.normal(size=(rows, *found.shape)).astype(np.float32)
    return model, x, rng.integers(0, found.classes, rows).astype(np.int32), batch
