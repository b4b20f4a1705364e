"""Sound as networks take it: one channel, float32, at the rate that they were trained with."""

import math
import os
from typing import Any

import numpy as np

from llmasos_xla.data.array_input import require_finite


def read_sound(source: Any, rate: int, *, source_rate: int | None = None) -> np.ndarray:
    """Sound as float32 [samples] at `rate`: a file (wav, flac, ogg, mp3 ...), or samples that are there already.

    Several channels become their mean, whole numbers are brought to [-1, 1].

    Args:
        source: a path, or an array [samples] or [samples, channels].
        rate: samples a second that are wanted.
        source_rate: of an array, if it is not `rate`; a file says its own.

    Raises FileNotFoundError, ValueError for a file that is no sound, for arrays of other shapes, NaN and infinity.

    >>> read_sound(np.array([[0, 16384], [0, 0]], np.int16), 8000).tolist()
    [0.25, 0.0]
    """
    if isinstance(source, str | os.PathLike):
        samples, source_rate = _read(source)
    else:
        samples = np.asarray(source)
        if samples.ndim == 2 and samples.shape[1] > samples.shape[0] > 0:
            raise ValueError(
                f"read_sound: {samples.shape} are more channels than samples; [samples, channels] is wanted, pass x.T"
            )
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf" or not samples.size:
        raise ValueError(
            f"read_sound: a path or an array [samples] or [samples, channels] is wanted, got {samples.dtype} "
            f"{samples.shape}"
        )
    require_finite(samples, "read_sound")
    if samples.dtype.kind in "iu":
        middle = 0 if samples.dtype.kind == "i" else 2 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples.astype(np.float64) - middle) / 2 ** (8 * samples.dtype.itemsize - 1)
    samples = samples.astype(np.float32, copy=False)
    samples = samples.mean(axis=1) if samples.ndim == 2 else samples
    return resampled(samples, source_rate or rate, rate)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """float32 [samples] brought from one rate to another by a polyphase filter, which lets no alias through.

    >>> resampled(np.zeros(441, np.float32), 44100, 16000).shape
    (160,)
    """
    if rate == wanted:
        return samples
    if rate < 1 or wanted < 1:
        raise ValueError(f"resampled: rates above 0 are wanted, got {rate} and {wanted}")
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)


def _read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    # Loads a library: only where a file is read.
    import soundfile

    if not os.path.isfile(path):
        raise FileNotFoundError(f"read_sound: there is no file {os.fspath(path)!r}")
    try:
        return soundfile.read(os.fspath(path), dtype="float32", always_2d=False)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"read_sound: {os.fspath(path)!r} is no sound that can be read: {error}") from None
