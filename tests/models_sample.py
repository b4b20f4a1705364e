"""A model of the shelf as the contract of tests/models/test_shelf.py takes it."""

import dataclasses
from typing import Any

import numpy as np

from llmasos_xla.models.config import Config


@dataclasses.dataclass(frozen=True)
class Sample:
    """One model, tiny, with inputs to call it on.

    Attributes:
        name: of the test.
        config: the model.
        inputs: a batch of 4 by the names of its inputs.
        unused: regular expressions of parameters that the output does not depend on, whose gradient may be zero.
        tolerance: how far bfloat16 may be from float32, in deviations of the output.
        sharded: whether it runs divided by data and tensor.
    """

    name: str
    config: Config
    inputs: dict[str, np.ndarray]
    unused: tuple[str, ...] = ()
    tolerance: float = 0.1
    sharded: bool = True

    @property
    def x(self) -> Any:
        """The inputs as the module takes them."""
        return self.config.bind(**self.inputs)


def images(*shape: int) -> np.ndarray:
    """Four float32 images of [height, width, channels]."""
    return np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)


def ids(vocab: int, length: int, seed: int = 0) -> np.ndarray:
    """Four rows of int32 ids from 1."""
    return np.random.default_rng(seed).integers(1, vocab, (4, length)).astype(np.int32)


def mask(length: int) -> np.ndarray:
    """Four rows of 0 and 1, padding at the right: row i has length - i steps."""
    return (np.arange(length)[None] < length - np.arange(4)[:, None]).astype(np.int32)
