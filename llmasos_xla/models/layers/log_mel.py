"""Spectrograms of sound on the mel scale."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.kernels.conv.geometry import at_least_float32
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import number, one_of, sample_rank, whole
from llmasos_xla.models.layers._mel import LOGARITHMS, SCALES, filters, frames, hann, logarithm, root
from llmasos_xla.models.layers._modules import Pointwise

PADDINGS = ("causal", "reflect", "zeros", "valid")


@dataclasses.dataclass(frozen=True)
class LogMel(Layer):
    """The log-mel spectrogram of sound: samples [batch, time] in [-1, 1] -> [batch, frames, mels].

    log(|STFT|^power @ triangular filters), with a Hann window of `window` samples every `hop`. Arithmetic is float32
    at least. It equals librosa's `melspectrogram` (`LogMel.librosa`) and the input of Whisper (`LogMel.whisper`).

    `padding` says what stands before the first sample and after the last. "reflect" and "zeros" put half a window on
    both sides, time / hop + 1 frames, each around its own time; "valid" nothing. "causal" puts fft_length - hop zeros
    before the first sample: frame t ends with sample (t + 1) hop, the time / hop frames never look ahead, and `stream`
    makes the same ones of sound that comes in chunks.

    Args:
        rate: samples a second.
        mels: number of filters.
        window: samples of the window.
        hop: samples from one frame to the next.
        fft_length: samples of a frame, the window being in its middle; the window's if None.
        lowest: frequency in Hz at which the first filter begins.
        highest: at which the last ends; half the rate if None.
        power: of the magnitudes: 2 for power, 1 for magnitude.
        scale: of mel: "slaney" (linear up to 1 kHz) or "htk".
        area: whether filters have an area of 1 (Slaney) instead of a height of 1.
        log: "natural", "decibel", "whisper" (log10, at most 8 below the row's largest, (x + 4) / 4) or "none".
        floor: the least value that is taken the logarithm of.
        range_db: with "decibel": how far below the row's largest value others may lie; None for any.
        padding: "causal", "reflect", "zeros" or "valid".
        drop_last: whether the last frame is left out, as Whisper does.

    >>> LogMel(rate=8000, mels=40, window=200, hop=80).output_shape((8000,))
    (100, 40)
    """

    rate: int = 16000
    mels: int = 80
    window: int = 400
    hop: int = 160
    fft_length: int | None = None
    lowest: float = 0.0
    highest: float | None = None
    power: float = 2.0
    scale: str = "slaney"
    area: bool = True
    log: str = "natural"
    floor: float = 1e-10
    range_db: float | None = None
    padding: str = "causal"
    drop_last: bool = False

    @classmethod
    def whisper(cls, mels: int = 80) -> "LogMel":
        """The input of Whisper (Radford et al. 2022): 30 s of 16 kHz sound are [480000] -> [3000, mels]."""
        return cls(mels=mels, log="whisper", padding="reflect", drop_last=True)

    @classmethod
    def librosa(cls, rate: int = 22050, mels: int = 128, **sizes) -> "LogMel":
        """`librosa.feature.melspectrogram(sr=rate, n_mels=mels)` and its defaults, without a logarithm."""
        return cls(rate, mels, **{"window": 2048, "hop": 512, "log": "none", "padding": "zeros", **sizes})

    def check(self) -> None:
        """Refuses windows longer than frames, hops longer than windows, and bands that are none."""
        fft_length = self.window if self.fft_length is None else whole(self.who, "fft_length", self.fft_length)
        if not self.hop <= self.window <= fft_length:
            raise ValueError(
                f"{self.who}: hop <= window <= fft_length is wanted, got {self.hop}, {self.window}, {fft_length}"
            )
        highest = self.rate / 2 if self.highest is None else number(self.who, "highest", self.highest)
        if not 0 <= self.lowest < highest <= self.rate / 2:
            raise ValueError(
                f"{self.who}: 0 <= lowest < highest <= {self.rate / 2:g} Hz, half the rate, is wanted, got lowest="
                f"{self.lowest:g}, highest={highest:g}"
            )
        if self.power <= 0 or self.floor <= 0:
            raise ValueError(f"{self.who}: power and floor want to be positive, got {self.power:g} and {self.floor:g}")
        if self.range_db is not None and number(self.who, "range_db", self.range_db, least=0.0) == 0:
            raise ValueError(f"{self.who}: range_db wants a positive number or None, got 0")
        self._set(
            scale=one_of(self.who, "scale", self.scale, SCALES),
            log=one_of(self.who, "log", self.log, LOGARITHMS),
            padding=one_of(self.who, "padding", self.padding, PADDINGS),
        )

    @property
    def frame(self) -> int:
        """Samples of a frame."""
        return self.fft_length or self.window

    @property
    def kept(self) -> int:
        """Samples that a causal frame reads before its own `hop`: what `stream` carries."""
        return self.frame - self.hop

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return Pointwise(lambda x, train, rngs: self(x), keeps_time=False)

    def output_shape(self, shape: Shape) -> Shape:
        """(frames, mels)."""
        sample_rank(self.who, shape, "time")
        return (None if shape[0] is None else self.count(shape[0]), self.mels)

    def count(self, samples: int) -> int:
        """How many frames that many samples make; raises ValueError where they make none."""
        reach = {"causal": self.kept, "valid": 0}.get(self.padding, 2 * (self.frame // 2))
        frames = (samples + reach - self.frame) // self.hop + 1 - self.drop_last
        if frames < 1 or (self.padding == "reflect" and samples <= self.frame // 2):
            raise ValueError(f"{self.who}: {samples} samples make no frame of {self.frame} every {self.hop}")
        return frames

    def __call__(self, x: jax.Array) -> jax.Array:
        """The spectrogram of whole sounds: [batch, time] -> [batch, frames, mels]."""
        count, half = self.count(x.shape[1]), self.frame // 2
        if self.padding == "causal":
            x = jnp.pad(x, ((0, 0), (self.kept, 0)))
        elif self.padding != "valid":
            x = jnp.pad(x, ((0, 0), (half, half)), mode="reflect" if self.padding == "reflect" else "constant")
        return self._of_frames(frames(x, self.frame, self.hop)[:, :count])

    def stream(self, x: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The frames of the next chunk, whole hops, and the state after it; "causal" alone streams.

        Args:
            x: samples [batch, time], time a multiple of `hop`.
            state: the samples before them, [batch, kept]; at first zeros.

        >>> layer = LogMel(mels=4, window=8, hop=2, rate=16)
        >>> x = jnp.sin(jnp.arange(12.0))[None]
        >>> first, state = layer.stream(x[:, :8], jnp.zeros((1, layer.kept)))
        >>> second, _ = layer.stream(x[:, 8:], state)
        >>> bool((jnp.concatenate([first, second], axis=1) == layer(x)).all())
        True
        """
        self.check_streams()
        if x.shape[1] % self.hop:
            raise ValueError(f"{self.who}: chunks of whole hops of {self.hop} samples are wanted, got {x.shape[1]}")
        x = jnp.concatenate([state.astype(x.dtype), x], axis=1)
        return self._of_frames(frames(x, self.frame, self.hop)), x[:, x.shape[1] - self.kept :]

    def check_streams(self) -> None:
        """Refuses what needs sound that is still to come."""
        if self.padding != "causal" or self.drop_last or self.log == "whisper" or self.range_db is not None:
            raise ValueError(
                f"{self.who}: streaming wants padding='causal', log='natural', 'decibel' or 'none', range_db=None and "
                "drop_last=False: everything else looks at the whole sound"
            )

    def _of_frames(self, x: jax.Array) -> jax.Array:
        dtype = at_least_float32(x.dtype)
        spectrum = jnp.fft.rfft(x.astype(dtype) * jnp.asarray(hann(self.window, self.frame), dtype)[None, None])
        squares = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        highest = self.rate / 2 if self.highest is None else self.highest
        bank = filters(self.rate, self.frame, self.mels, self.lowest, highest, self.scale, self.area)
        powers = squares if self.power == 2 else root(squares, self.power / 2)
        # The products' own precision: on a TPU the default would round powers to bfloat16.
        mels = jnp.matmul(powers, jnp.asarray(bank, dtype), precision=jax.lax.Precision.HIGHEST)
        return logarithm(mels, self.log, self.floor, self.range_db).astype(x.dtype)
