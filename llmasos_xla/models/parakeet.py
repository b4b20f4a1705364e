"""Parakeet CTC: a recognizer of NVIDIA's, Conformer blocks behind depthwise strided convolutions (Fast Conformer)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models import conformer
from llmasos_xla.models._parts import dropping, or_same
from llmasos_xla.models.config import Config
from llmasos_xla.models.ctc import CERTAIN
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, sample_rank
from llmasos_xla.models.layers._mel import filters, frames, hann
from llmasos_xla.models.layers._modules import parameter
from llmasos_xla.models.layers._windows import over_whole_steps
from llmasos_xla.models.layers.conv import DIMENSIONS
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.pretrained.names import SAME, Layout, Name, after_flattening, conv2d

RATE, FFT, WINDOW, HOP = 16000, 512, 400, 160
"""Of the spectrogram, in samples."""

_HEAD = Layout("blank_first", lambda a: np.roll(a[:, :, 0], 1, 0).T, lambda a: np.roll(a.T, -1, 0)[:, :, None])
"""[vocab, width, 1] with the blank last as [width, vocab] with the blank first."""
_HEAD_BIAS = Layout("blank_first_bias", lambda a: np.roll(a, 1), lambda a: np.roll(a, -1))


@dataclasses.dataclass(frozen=True)
class ParakeetConfig(Config):
    """Parakeet CTC (NVIDIA; Rekesh et al. 2023, "Fast Conformer with linearly scalable attention").

    input_features [batch, frames, mels], as `features(sound)` makes them, and attention_mask [batch, frames], 0 at
    padding -> logits [batch, frames / 8, vocab]. Id 0 is the blank, as everywhere here, and id i + 1 the published
    tokenizer's i: the published models have the blank last. Steps of padding say "blank" with certainty. It looks at
    the whole sound, so it does not stream.

    Args:
        vocab: number of logits, the blank's among them.
        width: features of a step.
        depth: number of blocks.
        num_heads: heads of attention.
        hidden_dim: features inside of the feed-forward networks; 4 width if None.
        window: steps of a block's convolution.
        channels: features of the strided convolutions.
        subsampling: frames that become one step, a power of 2.
        mels: rows of the spectrogram.
        scaled: whether the first block's input is multiplied by sqrt(width).
        dropout: share that is dropped in training.

    >>> ParakeetConfig().output_shape((1000, 80))
    (125, 1025)
    """

    vocab: int = 1025
    width: int = 1024
    depth: int = 24
    num_heads: int = 8
    hidden_dim: int | None = None
    window: int = 9
    channels: int = 256
    subsampling: int = 8
    mels: int = 80
    scaled: bool = True
    dropout: float = 0.1

    family: ClassVar[str] = "parakeet"
    inputs: ClassVar[tuple[str, ...]] = ("input_features", "attention_mask")
    presets: ClassVar[Mapping[str, str]] = {"parakeet_ctc_600m": "ctc_600m", "parakeet_ctc_1100m": "ctc_1100m"}
    huggingface: ClassVar[tuple[str, ...]] = ("parakeet_ctc",)
    ignored: ClassVar[tuple[str, ...]] = (r"num_batches_tracked$",)

    @classmethod
    def ctc_600m(cls, **sizes: Any) -> "ParakeetConfig":
        """24 blocks of width 1024."""
        return cls(**sizes)

    @classmethod
    def ctc_1100m(cls, **sizes: Any) -> "ParakeetConfig":
        """42 blocks of width 1024."""
        return cls(**{"depth": 42, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "ParakeetConfig":
        """Of ParakeetForCTC's config.json."""
        of_encoder = config.get("encoder_config") or {}
        for refused, usual in (
            ("hidden_act", "silu"),
            ("attention_bias", True),
            ("convolution_bias", True),
            ("subsampling_conv_kernel_size", 3),
            ("subsampling_conv_stride", 2),
        ):
            if of_encoder.get(refused, usual) != usual:
                came = of_encoder[refused]
                raise ValueError(f"{cls.__name__}: {refused}={came!r} of the config.json is not built here")
        vocab = config.get("vocab_size", 1025)
        if config.get("pad_token_id", vocab - 1) != vocab - 1:
            raise ValueError(f"{cls.__name__}: the blank, pad_token_id, is wanted as the last id, {vocab - 1}")
        given = {
            "vocab": vocab,
            "width": of_encoder.get("hidden_size", 1024),
            "depth": of_encoder.get("num_hidden_layers", 24),
            "num_heads": of_encoder.get("num_attention_heads", 8),
            "hidden_dim": of_encoder.get("intermediate_size", 4096),
            "window": of_encoder.get("conv_kernel_size", 9),
            "channels": of_encoder.get("subsampling_conv_channels", 256),
            "subsampling": of_encoder.get("subsampling_factor", 8),
            "mels": of_encoder.get("num_mel_bins", 80),
            "scaled": of_encoder.get("scale_input", True),
            "dropout": float(of_encoder.get("dropout", 0.1)),
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses sizes that do not divide."""
        if self.subsampling < 2 or self.subsampling & (self.subsampling - 1):
            raise ValueError(f"{self.who}: subsampling wants a power of 2 above 1, got {self.subsampling}")
        if self.width % self.num_heads:
            raise ValueError(f"{self.who}: width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    @property
    def sizes(self) -> conformer.Sizes:
        """Of a block."""
        hidden = self.hidden_dim or 4 * self.width
        return conformer.Sizes(self.width, self.num_heads, hidden, self.window, None, self.dropout)

    @property
    def halvings(self) -> int:
        """How many convolutions halve time."""
        return int(math.log2(self.subsampling))

    def features(self, sound: jax.Array, lengths: jax.Array | None = None) -> dict[str, jax.Array]:
        """The inputs by name for sound [batch, time] at 16 kHz, of which the first `lengths` [batch] samples count.

        As Hugging Face's ParakeetFeatureExtractor: pre-emphasis, log-mel, each row of mels with mean 0 and deviation 1.
        """
        time = sound.shape[1]
        lengths = jnp.full(sound.shape[:1], time, jnp.int32) if lengths is None else lengths
        before = jnp.pad(sound[:, :-1], ((0, 0), (1, 0)))
        x = jnp.where(jnp.arange(time)[None] < lengths[:, None], sound - 0.97 * before, 0.0)
        parts = frames(jnp.pad(x, ((0, 0), (FFT // 2, FFT // 2))), FFT, HOP)
        window = jnp.asarray(hann(WINDOW, FFT, periodic=False), x.dtype)
        spectrum = jnp.fft.rfft(parts * window[None, None])
        bank = filters(RATE, FFT, self.mels, 0.0, RATE / 2, "slaney", True)
        powers = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        mels = jnp.matmul(powers, jnp.asarray(bank, x.dtype), precision=jax.lax.Precision.HIGHEST)
        mels = jnp.log(mels + 2.0**-24)
        real = (jnp.arange(mels.shape[1])[None] < (lengths // HOP)[:, None])[..., None]
        count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 2).astype(x.dtype)
        mean = jnp.sum(mels, axis=1, keepdims=True, where=real) / count
        variance = jnp.sum(jnp.square(mels - mean), axis=1, keepdims=True, where=real) / (count - 1)
        mels = jnp.where(real, (mels - mean) / (jnp.sqrt(variance) + 1e-5), 0.0)
        return {"input_features": mels, "attention_mask": real[..., 0].astype(jnp.int32)}

    def sample_shape(self) -> Shape:
        """Any number of frames."""
        return (None, self.mels)

    def output_shape(self, shape: Shape) -> Shape:
        """(steps, vocab); raises ValueError for features of another width."""
        sample_rank(self.who, shape, "frames, mels")
        if shape[1] != self.mels:
            raise ValueError(f"{self.who}: input_features [batch, frames, {self.mels}] are wanted, got {shape[1]} mels")
        return (None if shape[0] is None else -(-shape[0] // self.subsampling), self.vocab)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _Parakeet(self, rngs)

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface"), of ParakeetForCTC."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        yield from conv2d("subsampling/0/convolution", "encoder.subsampling.layers.0")
        for i in range(1, self.halvings):
            yield from conv2d(f"subsampling/{i}/depthwise_conv", f"encoder.subsampling.layers.{3 * i - 1}")
            yield from conv2d(f"subsampling/{i}/mixing", f"encoder.subsampling.layers.{3 * i}")
        rows = after_flattening(self.rows, 1, self.channels)
        yield Name("projection/kernel", "encoder.subsampling.linear.weight", rows)
        yield Name("projection/bias", "encoder.subsampling.linear.bias", SAME)
        for i in range(self.depth):
            yield from conformer.names(f"blocks/{i}", f"encoder.layers.{i}", self.num_heads)
        yield Name("classifier/kernel", "ctc_head.weight", _HEAD)
        yield Name("classifier/bias", "ctc_head.bias", _HEAD_BIAS)

    @property
    def rows(self) -> int:
        """Rows that are left of the mels."""
        rows = self.mels
        for _ in range(self.halvings):
            rows = -(-rows // 2)
        return rows


class _Conv(nnx.Module):
    def __init__(self, width: int, cin: int, cout: int, rngs: nnx.Rngs):
        self.kernel = parameter(rngs, "he_uniform", (width, width, cin, cout))
        self.bias = parameter(rngs, "zeros", (cout,))

    def __call__(self, x: jax.Array, stride: int, groups: int, activation: str | None) -> jax.Array:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        options = {"dimension_numbers": DIMENSIONS[2], "bias": bias, "activation": activation}
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        return over_whole_steps(
            lambda x: kernels.conv(x, kernel, (stride, stride), padding, feature_group_count=groups, **options), x
        )


class _Halving(nnx.Module):
    """[batch, frames, mels, cin] -> half of frames and of mels; behind the first, depthwise and then 1x1."""

    def __init__(self, first: bool, channels: int, rngs: nnx.Rngs):
        if first:
            self.convolution = _Conv(3, 1, channels, rngs)
        else:
            self.depthwise_conv = _Conv(3, 1, channels, rngs)
            self.mixing = _Conv(1, channels, channels, rngs)
        self.first = first

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.first:
            return self.convolution(x, 2, 1, "relu")
        return self.mixing(self.depthwise_conv(x, 2, x.shape[-1], None), 1, 1, "relu")


class _Parakeet(nnx.Module):
    def __init__(self, spec: ParakeetConfig, rngs: nnx.Rngs):
        self.spec = spec
        self.subsampling = nnx.List([_Halving(i == 0, spec.channels, rngs) for i in range(spec.halvings)])
        self.projection = Dense(spec.width).build((None, spec.rows * spec.channels), rngs)
        self.blocks = nnx.List([conformer.Block(spec.sizes, rngs) for _ in range(spec.depth)])
        self.classifier = Dense(spec.vocab).build((None, spec.width), rngs)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        x, mask = given["input_features"], given["attention_mask"]
        spec.output_shape(x.shape[1:])
        lengths = None if mask is None else jnp.sum((mask != 0).astype(jnp.int32), axis=1)
        real = None
        x = x[..., None]
        for halving in self.subsampling:
            x = halving(x)
            if lengths is not None:
                # The 1x1 behind a depthwise convolution sees one step only: masking after it is as good as before.
                lengths = (lengths + 1) // 2
                real = jnp.arange(x.shape[1])[None] < lengths[:, None]
                x = jnp.where(real[..., None, None], x, 0.0)
        x = self.projection(x.reshape(*x.shape[:2], -1), train=train)
        x = or_same(dropping(spec.who, spec.dropout, train, rngs))(x * math.sqrt(spec.width) if spec.scaled else x)
        for block in self.blocks:
            x, _ = block(x, real, None, train=train, rngs=rngs)
        logits = self.classifier(x, train=train)
        if real is None:
            return logits
        blank = jnp.where(jnp.arange(spec.vocab) == 0, 0.0, -CERTAIN).astype(logits.dtype)
        return jnp.where(real[..., None], logits, blank[None, None])
