"""The arithmetic of spectrograms: windows, frames, triangular filters on the mel scale, logarithms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

SCALES = ("slaney", "htk")
LOGARITHMS = ("none", "natural", "decibel", "whisper")


def hann(length: int, fft_length: int, periodic: bool = True) -> np.ndarray:
    """The Hann window of `length`, periodic or ending in the 0 it began with, amid `fft_length` values, float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length if periodic else length - 1))
    before = (fft_length - length) // 2
    return np.pad(window, (before, fft_length - length - before))


def mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Frequencies on the mel scale: HTK's 2595 log10(1 + f / 700), or Slaney's, linear up to 1 kHz.

    >>> mel(np.array([1000.0]), "htk").round(3).tolist(), mel(np.array([1000.0]), "slaney").tolist()
    ([999.986], [15.0])
    """
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = 15.0 + 27.0 / math.log(6.4) * np.log(np.maximum(hertz, 1000.0) / 1000.0)
    return np.where(hertz >= 1000.0, above, hertz * 3.0 / 200.0)


def hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of `mel`.

    >>> hertz(mel(np.array([3000.0]), "slaney"), "slaney").round(9).tolist()
    [3000.0]
    """
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    above = 1000.0 * np.exp(math.log(6.4) / 27.0 * (np.maximum(mels, 15.0) - 15.0))
    return np.where(mels >= 15.0, above, mels * 200.0 / 3.0)


@functools.lru_cache(maxsize=32)
def filters(rate: int, fft_length: int, mels: int, lowest: float, highest: float, scale: str, area: bool) -> np.ndarray:
    """Triangles between neighboring points that lie evenly on the mel scale, [fft_length / 2 + 1, mels] float64.

    With `area` each triangle's height is 2 / its width in Hz (Slaney), otherwise 1.

    >>> filters(16000, 400, 80, 0.0, 8000.0, "slaney", True).shape
    (201, 80)
    """
    low, high = mel(np.array([lowest, highest]), scale)
    points = hertz(np.linspace(low, high, mels + 2), scale)
    bins = np.arange(fft_length // 2 + 1) * (rate / fft_length)
    widths = np.diff(points)
    rising = (bins[:, None] - points[None, :-2]) / widths[:-1]
    falling = (points[None, 2:] - bins[:, None]) / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (points[2:] - points[:-2])) if area else triangles


def frames(x: jax.Array, length: int, hop: int) -> jax.Array:
    """Windows of `length` values every `hop`: [batch, time] -> [batch, (time - length) / hop + 1, length].

    >>> frames(jnp.arange(5.0)[None], 3, 2).tolist()
    [[[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]]
    """
    starts = jnp.arange((x.shape[1] - length) // hop + 1, dtype=jnp.int32) * hop
    return jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(x, start, length, axis=1), out_axes=1)(starts)


def root(squares: jax.Array, exponent: float) -> jax.Array:
    """squares ** exponent with the derivative 0 at 0: a root's is infinite there, and silence would make NaN.

    >>> jax.grad(lambda x: root(x, 0.5))(0.0).tolist()
    0.0
    """
    silent = squares == 0
    values = jnp.where(silent, 1.0, squares)
    return jnp.where(silent, 0.0, jnp.sqrt(values) if exponent == 0.5 else values**exponent)


def logarithm(power: jax.Array, kind: str, floor: float, range_db: float | None) -> jax.Array:
    """The logarithm of that kind of [batch, frames, mels]; ranges are those below each row's largest value."""
    if kind == "none":
        return power
    values = jnp.maximum(power, floor)
    if kind == "natural":
        return jnp.log(values)
    tenths = jnp.log10(values)
    largest = jnp.max(tenths, axis=(1, 2), keepdims=True)
    if kind == "whisper":
        return (jnp.maximum(tenths, largest - 8.0) + 4.0) / 4.0
    return 10.0 * (tenths if range_db is None else jnp.maximum(tenths, largest - range_db / 10.0))
