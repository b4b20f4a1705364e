"""Speech recognizers trained by CTC: spectrogram, strided convolutions, a recurrent or Conformer body, logits."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models import conformer
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, one_of, sample_rank, whole
from llmasos_xla.models.layers._modules import parameter, random_key
from llmasos_xla.models.layers._windows import over_whole_steps
from llmasos_xla.models.layers.conv import DIMENSIONS
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.layers.log_mel import LogMel
from llmasos_xla.models.layers.normalization import BatchNormalization
from llmasos_xla.models.layers.recurrent import GRU, LSTM
from llmasos_xla.models.layers.regularization import drop
from llmasos_xla.models.layers.wrappers import Bidirectional
from llmasos_xla.models.pretrained.names import Name, batch_norm, dense

State = dict[str, jax.Array]

BODIES = {"lstm": LSTM, "gru": GRU, "conformer": None}

CERTAIN = 30.0
"""By how much the logit of the blank is above the others in steps of padding: they add nothing to a loss or a text."""


@dataclasses.dataclass(frozen=True)
class CTCConfig(Config):
    """A recognizer of what is said, by connectionist temporal classification (Graves et al. 2006).

    sound [batch, time] -> logits [batch, steps, vocab], id 0 being the blank. Log-mel features, normalized; strided
    convolutions, each halving time; `depth` layers of LSTM, GRU, or Conformer blocks (Gulati et al. 2020). It is
    trained by `compile(loss="ctc")` on labels [batch, n] padded with 0, and read by `models.ctc_text` or
    `models.beam_search`. `lengths` [batch] say how many samples of a row are sound, the others being padding, which
    changes nothing before it; its own steps say "blank" with certainty, so that nobody has to know where they begin.

    Causal, the default, nothing looks ahead (attention sees `left` steps back), and the network streams:
    `network.stream()`. Otherwise recurrent layers run in both directions and attention sees everything.

    Args:
        vocab: number of logits, the blank's among them.
        width: features of a step.
        depth: number of layers or blocks.
        body: "lstm", "gru" or "conformer".
        causal: whether nothing looks ahead.
        subsampling: frames that become one step, a power of 2.
        channels: features of the strided convolutions.
        num_heads: heads of attention.
        hidden_dim: features inside of a Conformer's feed-forward networks; 4 width if None.
        window: steps of a Conformer's convolution.
        left: steps before itself that causal attention sees.
        dropout: share that is dropped in training.
        features: the spectrogram; None if features [batch, frames, channels] come in the place of sound.

    >>> config = CTCConfig(vocab=11, width=16, depth=1)
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> net.apply(variables, jnp.zeros((2, 16000)), train=False)[0].shape
    (2, 25, 11)
    """

    vocab: int = 32
    width: int = 256
    depth: int = 4
    body: str = "lstm"
    causal: bool = True
    subsampling: int = 4
    channels: int = 32
    num_heads: int = 4
    hidden_dim: int | None = None
    window: int = 15
    left: int = 64
    dropout: float = 0.1
    features: LogMel | None = LogMel()  # noqa: RUF009  (it is frozen)

    family: ClassVar[str] = "ctc"
    inputs: ClassVar[tuple[str, ...]] = ("sound", "lengths")
    presets: ClassVar[Mapping[str, str]] = {
        "ctc_lstm": "lstm",
        "ctc_gru": "gru",
        "conformer_small": "conformer_small",
        "conformer_medium": "conformer_medium",
    }
    ignored: ClassVar[tuple[str, ...]] = (r"num_batches_tracked$",)

    @classmethod
    def lstm(cls, **sizes) -> "CTCConfig":
        """Four causal LSTMs of 256 units."""
        return cls(**sizes)

    @classmethod
    def gru(cls, **sizes) -> "CTCConfig":
        """Four causal GRUs of 256 units."""
        return cls(**{"body": "gru", **sizes})

    @classmethod
    def conformer_small(cls, **sizes) -> "CTCConfig":
        """The paper's small encoder: 16 blocks of width 144, window 31."""
        return cls(**{"width": 144, "depth": 16, "body": "conformer", "channels": 144, "window": 31, **sizes})

    @classmethod
    def conformer_medium(cls, **sizes) -> "CTCConfig":
        """The paper's medium encoder: 16 blocks of width 256, window 31."""
        return cls(**{"width": 256, "depth": 16, "body": "conformer", "channels": 256, "window": 31, **sizes})

    def check(self) -> None:
        """Refuses bodies that are not known, and sizes that do not divide."""
        self._set(body=one_of(self.who, "body", self.body, BODIES))
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        if self.subsampling & (self.subsampling - 1):
            raise ValueError(f"{self.who}: subsampling wants a power of 2, got {self.subsampling}")
        if self.body == "conformer" and self.width % self.num_heads:
            raise ValueError(f"{self.who}: width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        if self.hidden_dim is not None:
            self._set(hidden_dim=whole(self.who, "hidden_dim", self.hidden_dim))
        if self.features is not None and not isinstance(self.features, LogMel):
            raise ValueError(f"{self.who}: features wants a LogMel layer or None, got {type(self.features).__name__}")

    @property
    def stride(self) -> int:
        """Samples (or frames, without `features`) of a step."""
        return self.subsampling * (1 if self.features is None else self.features.hop)

    @property
    def chunk(self) -> int:
        """Samples that a stream computes at once if not said: 0.32 s, or 32 frames."""
        samples = 32 if self.features is None else 0.32 * self.features.rate
        return max(1, round(samples / self.stride)) * self.stride

    @property
    def sizes(self) -> conformer.Sizes:
        """Of a Conformer's blocks."""
        left = self.left if self.causal else None
        return conformer.Sizes(
            self.width, self.num_heads, self.hidden_dim or 4 * self.width, self.window, left, self.dropout
        )

    def sample_shape(self) -> Shape:
        """Sound of any length."""
        if self.features is None:
            raise ValueError(f"{self.who}: without features= give input_shape=(None, channels)")
        return (None,)

    @property
    def integers(self) -> Mapping[str, int | None]:
        """Lengths are whole numbers."""
        return {"lengths": None}

    def input_shapes(self, shape: Shape) -> dict[str, Shape]:
        """A length is one number."""
        return {"sound": shape, "lengths": ()}

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with all arrays."""
        self.output_shape(shape)
        return _CTC(self, self._channels(shape), rngs)

    def _channels(self, shape: Shape) -> int:
        if self.features is not None:
            return self.features.mels
        assert shape[1] is not None
        return shape[1]

    def output_shape(self, shape: Shape) -> Shape:
        """(steps, vocab)."""
        sample_rank(self.who, shape, "time" if self.features is not None else "frames, channels")
        if shape[0] is not None and shape[0] < self.stride:
            raise ValueError(f"{self.who}: {shape[0]} samples are no step of {self.stride}")
        return (None if shape[0] is None else shape[0] // self.stride, self.vocab)

    def stream_state(self, batch: int) -> State:
        """What is carried before the first sample; raises ValueError where something looks ahead."""
        if not self.causal:
            raise ValueError(f"{self.who}: it looks ahead; streaming wants causal=True")
        return self._zeros(batch, self._channels(self.input_shape or self.sample_shape()))

    def _zeros(self, batch: int, channels: int) -> State:
        """What stands before the first sample."""
        state = {}
        if self.features is not None:
            self.features.check_streams()
            state["sound"] = jnp.zeros((batch, self.features.kept))
        for i, (mels, cin) in enumerate(self.convolutions(channels)):
            state[f"subsampling/{i}"] = jnp.zeros((batch, 1, mels, cin))
        for i in range(self.depth if self.causal else 0):
            if self.body == "conformer":
                of_block = conformer.stream_state(self.sizes, batch)
            else:
                of_block = {name: jnp.zeros((batch, self.width)) for name in ("h", "c")[: 2 - (self.body == "gru")]}
            state |= {f"blocks/{i}/{name}": a for name, a in of_block.items()}
        return state

    def convolutions(self, mels: int) -> list[tuple[int, int]]:
        """Rows of mels and features that each strided convolution reads."""
        found = []
        for i in range(int(math.log2(self.subsampling))):
            found.append((mels, self.channels if i else 1))
            mels = -(-mels // 2)
        return found

    def names(self, source: str) -> Iterator[Name]:
        """Of a Conformer, Parakeet's names of blocks ("torch", "huggingface"), which is what it is compared with."""
        if source not in ("torch", "huggingface") or self.body != "conformer" or self.subsampling > 1:
            yield from super().names(source)  # raises
        yield from batch_norm("features_norm", "features_norm")
        yield from dense("projection", "projection")
        for i in range(self.depth):
            yield from conformer.names(f"blocks/{i}", f"layers.{i}", self.num_heads)
        yield from dense("classifier", "classifier")


class _Strided(nnx.Module):
    """A 3x3 convolution of [batch, frames, mels, cin] that halves both; a step sees its two frames and one before."""

    def __init__(self, cin: int, cout: int, rngs: nnx.Rngs):
        self.kernel = parameter(rngs, "he_uniform", (3, 3, cin, cout))
        self.bias = parameter(rngs, "zeros", (cout,))

    def __call__(self, x: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The output, and the last frame."""
        x = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        options = {"dimension_numbers": DIMENSIONS[2], "bias": bias, "activation": "relu"}
        y = over_whole_steps(lambda x: kernels.conv(x, kernel, (2, 2), [(0, 0), (1, 1)], **options), x)
        return y, x[:, -1:].astype(before.dtype)


class _CTC(nnx.Module):
    def __init__(self, spec: CTCConfig, channels: int, rngs: nnx.Rngs):
        self.spec, self.mels = spec, channels
        self.features_norm: Any = BatchNormalization(momentum=0.9, epsilon=1e-5).build((None, channels), rngs)
        convolutions = spec.convolutions(channels)
        self.subsampling = nnx.List([_Strided(cin, spec.channels, rngs) for _, cin in convolutions])
        flat = -(-convolutions[-1][0] // 2) * spec.channels if convolutions else channels
        self.projection = Dense(spec.width).build((None, flat), rngs)
        width, blocks = spec.width, []
        for _ in range(spec.depth):
            if spec.body == "conformer":
                blocks.append(conformer.Block(spec.sizes, rngs))
                continue
            layer: Any = BODIES[spec.body](spec.width, return_sequences=True)
            layer = layer if spec.causal else Bidirectional(layer)
            blocks.append(layer.build((None, width), rngs))
            width = spec.width if spec.causal else 2 * spec.width
        self.blocks = nnx.List(blocks)
        self.classifier = Dense(spec.vocab).build((None, width), rngs)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec = self.spec
        given = spec.unbind(x)
        sound, lengths = given["sound"], given["lengths"]
        assert sound is not None
        spec.output_shape(sound.shape[1:])
        if lengths is not None and lengths.shape != sound.shape[:1]:
            raise ValueError(
                f"{spec.who}: one length for each row is wanted, got {lengths.shape} for sound {sound.shape}"
            )
        whole_steps = sound.shape[1] // spec.stride * spec.stride
        state = spec._zeros(sound.shape[0], self.mels)
        return self._run(sound[:, :whole_steps], lengths, state, train=train, rngs=rngs)[0]

    def stream(
        self, x: jax.Array, state: State, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, State]:
        """The logits of whole strides of sound [batch, time], and the state after them."""
        return self._run(x, None, state, train=train, rngs=rngs)

    def _run(
        self, x: jax.Array, lengths: jax.Array | None, state: State, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, State]:
        spec, after = self.spec, {}
        hop = 1 if spec.features is None else spec.features.hop
        if spec.features is not None:
            x, after["sound"] = spec.features.stream(x, state["sound"])
        x, _ = self.features_norm.masked(x, _mask(lengths, hop, x.shape[1]), train=train, rngs=rngs)
        if self.subsampling:
            x = x[..., None]
            for i, convolution in enumerate(self.subsampling):
                x, after[f"subsampling/{i}"] = convolution(x, state[f"subsampling/{i}"])
            x = x.reshape(*x.shape[:2], -1)
        x = self._dropped(self.projection(x, train=train), train, rngs)
        mask = _mask(lengths, spec.stride, x.shape[1])
        for i, block in enumerate(self.blocks):
            first = f"blocks/{i}/"
            of_block = {name.removeprefix(first): a for name, a in state.items() if name.startswith(first)}
            x, of_block = self._block(block, x, mask, of_block, train, rngs)
            after |= {first + name: a for name, a in of_block.items()}
        logits = self.classifier(x, train=train)
        if mask is not None:
            blank = jnp.where(jnp.arange(spec.vocab) == 0, 0.0, -CERTAIN).astype(logits.dtype)
            logits = jnp.where(mask[..., None], logits, blank[None, None])
        return logits, {name: a.astype(state[name].dtype) for name, a in after.items()}

    def _block(
        self, block: Any, x: jax.Array, mask: jax.Array | None, state: State, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, State]:
        if self.spec.body == "conformer":
            return block(x, mask, state if self.spec.causal else None, train=train, rngs=rngs)
        if not self.spec.causal:
            return self._dropped(block.masked(x, mask, train=train, rngs=rngs)[0], train, rngs), {}
        before = {f"{name}0": a.astype(x.dtype) for name, a in state.items()}
        y, after = block.spec.op(x, **block.arrays(x, train=train, rngs=rngs), **block.spec.options, **before)
        h, *c = after if isinstance(after, tuple) else (after,)
        return self._dropped(y, train, rngs), {"h": h, **({"c": c[0]} if c else {})}

    def _dropped(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        rate = self.spec.dropout
        return drop(x, random_key(rngs, self.spec.who), rate, x.shape) if train and rate else x


def _mask(lengths: jax.Array | None, stride: int, steps: int) -> jax.Array | None:
    """Which steps are whole strides of sound, [batch, steps]."""
    return None if lengths is None else jnp.arange(steps)[None] < (lengths // stride)[:, None]
