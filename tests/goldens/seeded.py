"""Weights that need no file: each array is drawn by its name, the same here and where the goldens are made."""

import math
import re
import zlib

import numpy as np

_NORMS = r"norm|(input_proj\.\d|enc_output)\.1\."
"""Names of normalizations; RT-DETR has some as the second of a pair."""


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of that name and shape: kernels keep the size of what passes, scales are near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    draw = rng.standard_normal(shape)
    if name.endswith(("running_var", "var")):
        return (0.5 + np.abs(draw)).astype(np.float32)
    if len(shape) < 2:
        scale = re.search(_NORMS, name.lower()) and name.endswith("weight")
        return (0.1 * draw + (1.0 if scale else 0.0)).astype(np.float32)
    return (draw / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def inputs(seed: int, *shape: int) -> np.ndarray:
    """Float32 inputs of unit size."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ids(seed: int, vocab: int, *shape: int) -> np.ndarray:
    """Int32 ids from 1 to vocab - 1."""
    return np.random.default_rng(seed).integers(1, vocab, shape).astype(np.int32)


def sound(seed: int, rows: int, samples: int) -> np.ndarray:
    """Float32 sounds [rows, samples]: three rising tones, and noise 40 dB below them.

    Noise 60 dB below is known to 1e-4 only by a spectrum in float32, whoever computes it.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    tones = [
        rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * rng.uniform(150, 3000, (rows, 1)) * (time + time**2))
        for _ in range(3)
    ]
    return (np.sum(tones, axis=0) + 3e-3 * rng.standard_normal((rows, samples))).astype(np.float32)
