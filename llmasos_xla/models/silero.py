"""Silero VAD: a small net that says, 31 times a second, whether somebody speaks."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import sample_rank
from llmasos_xla.models.layers._mel import frames, root
from llmasos_xla.models.layers._modules import parameter
from llmasos_xla.models.layers._windows import over_whole_steps
from llmasos_xla.models.layers.conv import DIMENSIONS
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.pretrained.names import CONV1D, DENSE, SAME, Layout, Name

STRIDES = (1, 2, 2, 1)
"""Of the four convolutions: a window's four spectra become one vector."""

_FIRST_TAP = Layout("first_tap", lambda a: a[:, :, 0].T, lambda a: a.T[:, :, None])
"""[cout, cin, 1], a convolution of width 1, as [cin, cout]."""


@dataclasses.dataclass(frozen=True)
class SileroVADConfig(Config):
    """Voice activity detection as in Silero VAD 5 (Silero Team 2024, github.com/snakers4/silero-vad).

    sound [batch, time] in [-1, 1], 16 kHz -> the logit of speech for each whole window of 512 samples,
    [batch, time / 512]; `predict` gives probabilities. A window is read with the 64 samples before it: a learned short
    Fourier transform, four convolutions, an LSTM over the windows. It streams (`lm.models.Stream`).

    Args:
        window: samples of a window.
        context: samples before it that are read again.
        fft_length: samples of a spectrum, taken every half of them.
        widths: features of the four convolutions.
        hidden: units of the LSTM.

    >>> config = SileroVADConfig()
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> net.apply(variables, jnp.zeros((1, 16000)), train=False)[0].shape
    (1, 31)
    """

    window: int = 512
    context: int = 64
    fft_length: int = 256
    widths: tuple[int, ...] = (128, 64, 64, 128)
    hidden: int = 128
    activation: str | None = "sigmoid"

    ends_in_activation: ClassVar[bool] = True
    family: ClassVar[str] = "silero_vad"
    inputs: ClassVar[tuple[str, ...]] = ("sound",)
    presets: ClassVar[Mapping[str, str]] = {"silero_vad": "silero_vad"}

    @classmethod
    def silero_vad(cls, **sizes) -> "SileroVADConfig":
        """The published net for 16 kHz, 309,633 parameters."""
        return cls(**sizes)

    def check(self) -> None:
        """Refuses windows whose spectra do not become one vector."""
        self._set(widths=tuple(self.widths))
        if len(self.widths) != len(STRIDES):
            raise ValueError(f"{self.who}: widths wants {len(STRIDES)} numbers, got {self.widths}")
        reach = self.context + self.window + self.fft_length // 4
        spectra = (reach - self.fft_length) // (self.fft_length // 2) + 1
        if not 1 <= spectra <= 4 or self.context < 1:
            raise ValueError(
                f"{self.who}: 1 to 4 spectra a window are wanted, window={self.window}, context={self.context} and "
                f"fft_length={self.fft_length} give {spectra}"
            )

    @property
    def stride(self) -> int:
        """Samples of a window."""
        return self.window

    @property
    def chunk(self) -> int:
        """A window at once: nobody waits."""
        return self.window

    def stream_state(self, batch: int) -> dict[str, jax.Array]:
        """What is carried before the first window: context and LSTM state, zeros."""
        sizes = {"context": self.context, "h": self.hidden, "c": self.hidden}
        return {name: jnp.zeros((batch, size), jnp.float32) for name, size in sizes.items()}

    def sample_shape(self) -> Shape:
        """Sound of any length."""
        return (None,)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with all arrays."""
        self.output_shape(shape)
        return _SileroVAD(self, rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """(windows,)."""
        sample_rank(self.who, shape, "time")
        if shape[0] is not None and shape[0] < self.window:
            raise ValueError(f"{self.who}: {shape[0]} samples are no whole window of {self.window}")
        return (None if shape[0] is None else shape[0] // self.window,)

    def names(self, source: str) -> Iterator[Name]:
        """The names of silero_vad_16k.safetensors ("torch")."""
        if source not in ("torch", "huggingface"):
            yield from super().names(source)  # raises
        yield Name("stft/kernel", "stft_conv.weight", CONV1D)
        for i in range(1, len(STRIDES) + 1):
            yield Name(f"conv{i}/kernel", f"conv{i}.weight", CONV1D)
            yield Name(f"conv{i}/bias", f"conv{i}.bias", SAME)
        yield Name("lstm/kernel", "lstm_cell.weight_ih", DENSE)
        yield Name("lstm/recurrent_kernel", "lstm_cell.weight_hh", DENSE)
        yield Name("lstm/bias", ("lstm_cell.bias_ih", "lstm_cell.bias_hh"), SAME)
        yield Name("classifier/kernel", "final_conv.weight", _FIRST_TAP)
        yield Name("classifier/bias", "final_conv.bias", SAME)


class _Conv(nnx.Module):
    """A convolution over time with torch's padding on both sides."""

    def __init__(self, cin: int, cout: int, width: int, stride: int, rngs: nnx.Rngs, use_bias: bool = True):
        self.stride, self.padding = stride, (width // 2 if use_bias else 0,) * 2
        self.kernel = parameter(rngs, "glorot_uniform", (width, cin, cout))
        self.bias = parameter(rngs, "zeros", (cout,)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias, activation = (None, None) if self.bias is None else (self.bias[...].astype(x.dtype), "relu")
        options = {"dimension_numbers": DIMENSIONS[1], "bias": bias, "activation": activation}
        kernel = self.kernel[...].astype(x.dtype)
        return over_whole_steps(lambda x: kernels.conv(x, kernel, (self.stride,), [self.padding], **options), x)


class _Recurrence(nnx.Module):
    """An LSTM's arrays; the bias is torch's two, [2, 4 * hidden], which are added."""

    def __init__(self, cin: int, hidden: int, rngs: nnx.Rngs):
        self.kernel = parameter(rngs, "glorot_uniform", (cin, 4 * hidden))
        self.recurrent_kernel = parameter(rngs, "orthogonal", (hidden, 4 * hidden))
        self.bias = parameter(rngs, "zeros", (2, 4 * hidden))

    def __call__(self, x: jax.Array, h: jax.Array, c: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        arrays = (self.kernel[...], self.recurrent_kernel[...], self.bias[...].sum(axis=0), h, c)
        return kernels.lstm(x, *(a.astype(x.dtype) for a in arrays))


class _SileroVAD(nnx.Module):
    def __init__(self, spec: SileroVADConfig, rngs: nnx.Rngs):
        self.spec = spec
        bins = spec.fft_length // 2 + 1
        self.stft = _Conv(1, 2 * bins, spec.fft_length, spec.fft_length // 2, rngs, use_bias=False)
        sizes = zip((bins, *spec.widths), spec.widths, STRIDES)
        for i, (cin, cout, stride) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", _Conv(cin, cout, 3, stride, rngs))
        self.lstm = _Recurrence(spec.widths[-1], spec.hidden, rngs)
        self.classifier = Dense(1).build((spec.hidden,), rngs)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec = self.spec
        x = spec.unbind(x)["sound"]
        assert x is not None
        spec.output_shape(x.shape[1:])
        x = x[:, : x.shape[1] // spec.window * spec.window]
        return self.stream(x, spec.stream_state(x.shape[0]))[0]

    def stream(
        self, x: jax.Array, state: dict[str, jax.Array], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits of whole windows [batch, time], and the state after them."""
        spec = self.spec
        x = jnp.concatenate([state["context"].astype(x.dtype), x], axis=1)
        windows = frames(x, spec.context + spec.window, spec.window)
        batch, count, length = windows.shape
        y = self._features(windows.reshape(batch * count, length)).reshape(batch, count, -1)
        y, (h, c) = self.lstm(y, state["h"], state["c"])
        logits = self.classifier(jax.nn.relu(y), train=False)[..., 0]
        after = {"context": x[:, x.shape[1] - spec.context :], "h": h, "c": c}
        return logits, {name: a.astype(state[name].dtype) for name, a in after.items()}

    def _features(self, x: jax.Array) -> jax.Array:
        """Windows [rows, samples] as vectors [rows, features]."""
        x = jnp.pad(x, ((0, 0), (0, self.spec.fft_length // 4)), mode="reflect")
        real, imaginary = jnp.split(self.stft(x[..., None]), 2, axis=-1)
        x = root(jnp.square(real) + jnp.square(imaginary), 0.5)
        for i in range(1, len(STRIDES) + 1):
            x = getattr(self, f"conv{i}")(x)
        return x.reshape(x.shape[0], -1)
