"""Weights and inputs that everybody has: each array is drawn by its published name."""

import math
import zlib

import numpy as np


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of that name: what passes a kernel keeps its size."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    draw = rng.standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return 0.5 + np.abs(draw)
    if len(shape) < 2:
        scale = name.endswith("weight")
        return 0.1 * draw + np.float32(1.0 if scale else 0.0)
    return draw / np.float32(math.sqrt(math.prod(shape[1:])))


def images(batch: int, *shape: int) -> np.ndarray:
    """Float32 images [batch, height, width, channels]."""
    return np.random.default_rng(0).standard_normal((batch, *shape), np.float32)


def ids(vocab: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Ids from 1."""
    return np.random.default_rng(seed).integers(1, vocab, shape)
