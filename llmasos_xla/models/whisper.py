"""Whisper (Radford et al. 2022): an encoder of log-mel spectrograms and a decoder that writes what was said."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models._parts import (
    Dropped,
    FeedForward,
    Projection,
    Table,
    dropping,
    layer_norm,
    normal,
    or_same,
)
from llmasos_xla.models.generation import attend as cached
from llmasos_xla.models.generation.protocol import Cache, Generative, Memory, Step
from llmasos_xla.models.layers._attend import attend
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, sample_rank
from llmasos_xla.models.layers._windows import over_whole_steps
from llmasos_xla.models.layers.conv import DIMENSIONS
from llmasos_xla.models.layers.log_mel import LogMel
from llmasos_xla.models.pretrained import names as table
from llmasos_xla.models.pretrained.names import CONV1D, SAME, Name

_DEVIATION = 0.02
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class WhisperConfig(Generative):
    """Whisper (Radford et al. 2022, "Robust speech recognition via large-scale weak supervision").

    input_features [batch, frames, mels], as `config.features` makes them of sound, and decoder_input_ids [batch, time]
    -> logits of the next id [batch, time, vocab]. Frames come before mels, as everywhere here; Hugging Face has them
    the other way around. 30 s are 3,000 frames, which is the most; fewer are read as they are. decoder_attention_mask
    [batch, time] is 0 at padding. Without decoder_input_ids they are `start_ids`. The output layer is the decoder's
    table of embeddings.

    Args:
        vocab: number of ids.
        width: features of a step.
        depth: number of the encoder's blocks.
        decoder_depth: of the decoder's; depth if None.
        num_heads: heads of attention.
        decoder_heads: of the decoder; num_heads if None.
        hidden_dim: features inside of the feed-forward networks; 4 width if None.
        decoder_hidden_dim: of the decoder; hidden_dim if None.
        mels: rows of the spectrogram.
        source: the most steps of the encoder, half as many as frames.
        context: the most ids of a text.
        dropout: share that is dropped in training.
        start_ids: what every text begins with: start, language, task, "no time stamps".
        end: the id that ends a text.
        suppressed: ids that are never written.
        suppressed_first: ids that are not written as the first.

    >>> config = WhisperConfig.tiny()
    >>> config.output_shape((3000, 80))
    (None, 51865)
    """

    vocab: int = 51865
    width: int = 384
    depth: int = 4
    decoder_depth: int | None = None
    num_heads: int = 6
    decoder_heads: int | None = None
    hidden_dim: int | None = None
    decoder_hidden_dim: int | None = None
    mels: int = 80
    source: int = 1500
    context: int = 448  # pyright: ignore[reportIncompatibleMethodOverride]
    dropout: float = 0.0
    start_ids: tuple[int, ...] = (50258, 50259, 50359, 50363)
    end: int = 50257
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = (220, 50257)

    family: ClassVar[str] = "whisper"
    inputs: ClassVar[tuple[str, ...]] = ("input_features", "decoder_input_ids", "decoder_attention_mask")
    encoder_inputs: ClassVar[tuple[str, ...]] = ("input_features",)
    presets: ClassVar[Mapping[str, str]] = {
        "whisper": "tiny",
        **{f"whisper_{size}": size for size in ("tiny", "base", "small", "medium", "large", "turbo")},
    }
    huggingface: ClassVar[tuple[str, ...]] = ("whisper",)

    @classmethod
    def tiny(cls, **sizes: Any) -> "WhisperConfig":
        """Width 384, 4 and 4 blocks, 38 million parameters."""
        return cls(**sizes)

    @classmethod
    def base(cls, **sizes: Any) -> "WhisperConfig":
        """Width 512, 6 and 6 blocks, 73 million."""
        return cls(**{"width": 512, "depth": 6, "num_heads": 8, **sizes})

    @classmethod
    def small(cls, **sizes: Any) -> "WhisperConfig":
        """Width 768, 12 and 12 blocks, 242 million."""
        return cls(**{"width": 768, "depth": 12, "num_heads": 12, **sizes})

    @classmethod
    def medium(cls, **sizes: Any) -> "WhisperConfig":
        """Width 1024, 24 and 24 blocks, 764 million."""
        return cls(**{"width": 1024, "depth": 24, "num_heads": 16, **sizes})

    @classmethod
    def large(cls, **sizes: Any) -> "WhisperConfig":
        """Large-v3: width 1280, 32 and 32 blocks, 128 mels, 1.54 billion."""
        third = {"vocab": 51866, "mels": 128, "start_ids": (50258, 50259, 50360, 50364)}
        return cls(**{"width": 1280, "depth": 32, "num_heads": 20, **third, **sizes})

    @classmethod
    def turbo(cls, **sizes: Any) -> "WhisperConfig":
        """Large-v3 with 4 blocks in the decoder, 809 million."""
        return cls.large(**{"decoder_depth": 4, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "WhisperConfig":
        """Of WhisperForConditionalGeneration's config.json; where it forces no language and task, say `start_ids=`."""
        for refused, usual in (
            ("scale_embedding", False),
            ("activation_function", "gelu"),
            ("tie_word_embeddings", True),
        ):
            if config.get(refused, usual) != usual:
                raise ValueError(f"{cls.__name__}: {refused}={config[refused]!r} of the config.json is not built here")
        end = config.get("eos_token_id", 50256)
        given = {
            "vocab": config.get("vocab_size", 51865),
            "width": config.get("d_model", 384),
            "depth": config.get("encoder_layers", 4),
            "decoder_depth": config.get("decoder_layers", 4),
            "num_heads": config.get("encoder_attention_heads", 6),
            "decoder_heads": config.get("decoder_attention_heads", 6),
            "hidden_dim": config.get("encoder_ffn_dim", 1536),
            "decoder_hidden_dim": config.get("decoder_ffn_dim", 1536),
            "mels": config.get("num_mel_bins", 80),
            "source": config.get("max_source_positions", 1500),
            "context": config.get("max_target_positions", 448),
            "start_ids": (config.get("decoder_start_token_id", 50257), *_forced(config)),
            "end": end[0] if isinstance(end, list) else end,
            "suppressed": tuple(config.get("suppress_tokens") or ()),
            "suppressed_first": tuple(config.get("begin_suppress_tokens") or ()),
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses a width that heads do not divide."""
        for name in ("start_ids", "suppressed", "suppressed_first"):
            self._set(**{name: tuple(getattr(self, name))})
        for heads in (self.num_heads, self.decoder_heads or self.num_heads):
            if self.width % heads:
                raise ValueError(f"{self.who}: a width of {self.width} does not divide into {heads} heads")
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    @property
    def features(self) -> LogMel:
        """What makes input_features of sound at 16 kHz."""
        return LogMel.whisper(self.mels)

    @property
    def heads_to_write(self) -> int:
        """Heads of the decoder."""
        return self.decoder_heads or self.num_heads

    @property
    def first_ids(self) -> tuple[int, ...]:
        """What a text begins with."""
        return self.start_ids

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id that ends a text."""
        return (self.end,)

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        """What is heard and what is said."""
        return ("input_features", "decoder_input_ids")

    def sample_shape(self) -> Shape:
        """Any number of frames."""
        return (None, self.mels)

    def output_shape(self, shape: Shape) -> Shape:
        """(time of the decoder, vocab); raises ValueError for features of other sizes."""
        sample_rank(self.who, shape, "frames, mels")
        if shape[1] != self.mels:
            raise ValueError(
                f"{self.who}: input_features [batch, frames, {self.mels}] are wanted, got {shape[1]} mels; Hugging "
                "Face's come as [batch, mels, frames]"
            )
        if shape[0] is not None and shape[0] > 2 * self.source:
            raise ValueError(f"{self.who}: {shape[0]} frames came, it reads {2 * self.source} at most")
        return (None, self.vocab)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _Whisper(self, rngs)

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """Keys and values of the decoder's blocks."""
        heads = self.heads_to_write
        return {
            f"{i}/{name}": a
            for i in range(self.decoder_depth or self.depth)
            for name, a in cached.slots(batch, length, heads, self.width // heads, dtype).items()
        }

    def adjust(self, logits: jax.Array, ids: jax.Array, count: jax.Array) -> jax.Array:
        """Ids that are never written, and those that are not written first, set to -inf."""
        never, first = np.zeros(self.vocab, bool), np.zeros(self.vocab, bool)
        never[list(self.suppressed)], first[list(self.suppressed_first)] = True, True
        barred = jnp.asarray(never)[None] | (jnp.asarray(first)[None] & (count == 0))
        return jnp.where(barred, -jnp.inf, logits)

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface"), of WhisperForConditionalGeneration."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        for name in ("conv1", "conv2"):
            yield Name(f"encoder/{name}/kernel", f"model.encoder.{name}.weight", CONV1D)
            yield Name(f"encoder/{name}/bias", f"model.encoder.{name}.bias", SAME)
        copies = ("proj_out.weight",)
        yield Name("decoder/tokens/embeddings", "model.decoder.embed_tokens.weight", SAME, copies=copies)
        decoder_depth = self.decoder_depth or self.depth
        for side, depth, heads in (
            ("encoder", self.depth, self.num_heads),
            ("decoder", decoder_depth, self.heads_to_write),
        ):
            yield Name(f"{side}/positions/embeddings", f"model.{side}.embed_positions.weight", SAME)
            for i in range(depth):
                here, there = f"{side}/blocks/{i}", f"model.{side}.layers.{i}"
                for ours, theirs in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
                    if ours == "attention" or side == "decoder":
                        yield from table.layer_norm(f"{here}/{ours}_norm", f"{there}.{theirs}_layer_norm")
                        yield from _attention(f"{here}/{ours}", f"{there}.{theirs}", heads)
                yield from table.layer_norm(f"{here}/mlp_norm", f"{there}.final_layer_norm")
                yield from table.dense(f"{here}/mlp/up", f"{there}.fc1")
                yield from table.dense(f"{here}/mlp/down", f"{there}.fc2")
            yield from table.layer_norm(f"{side}/last_norm", f"model.{side}.layer_norm")


def _forced(config: Mapping[str, Any]) -> list[int]:
    """The ids that a config.json puts behind the first: language, task, "no time stamps"."""
    ids = [i for _, i in sorted(config.get("forced_decoder_ids") or [], key=lambda pair: pair[0])]
    return [] if None in ids else ids


def _attention(ours: str, theirs: str, heads: int) -> Iterator[Name]:
    for name in ("query", "key", "value"):
        yield Name(f"{ours}/{name}/kernel", f"{theirs}.{name[0]}_proj.weight", table.heads_in(heads))
        if name != "key":
            yield Name(f"{ours}/{name}/bias", f"{theirs}.{name[0]}_proj.bias", table.heads_bias(heads))
    yield Name(f"{ours}/output/kernel", f"{theirs}.out_proj.weight", table.heads_out(heads))
    yield Name(f"{ours}/output/bias", f"{theirs}.out_proj.bias", SAME)


class _Conv(nnx.Module):
    """A convolution over three steps, with one of padding on both sides."""

    def __init__(self, cin: int, cout: int, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.kernel = normal(rngs, (3, cin, cout), (3 * cin) ** -0.5)
        self.bias = nnx.Param(jnp.zeros((cout,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.result_type(x, self.kernel[...])
        kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
        options = {"dimension_numbers": DIMENSIONS[1], "bias": bias, "activation": "gelu"}
        return over_whole_steps(lambda x: kernels.conv(x, kernel, (self.stride,), [(1, 1)], **options), x.astype(dtype))


class _Attention(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        into = (width, heads, width // heads)
        self.query, self.value = (Projection(into, rngs, deviation=_DEVIATION) for _ in range(2))
        self.key = Projection(into, rngs, bias=False, deviation=_DEVIATION)
        self.output = Projection((*into[1:], width), rngs, summed=2, deviation=_DEVIATION)


class _Block(nnx.Module):
    """Of the encoder, or with `crossed` of the decoder."""

    def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs, *, crossed: bool):
        self.attention_norm, self.attention = layer_norm(width, _EPSILON, rngs), _Attention(width, heads, rngs)
        if crossed:
            self.cross_attention_norm = layer_norm(width, _EPSILON, rngs)
            self.cross_attention = _Attention(width, heads, rngs)
        self.mlp_norm = layer_norm(width, _EPSILON, rngs)
        self.mlp = FeedForward(width, hidden, "gelu", rngs, deviation=_DEVIATION)

    def __call__(self, x: jax.Array, look: Any, memory: Memory | None, dropped: Dropped) -> tuple[jax.Array, Cache]:
        """`look(query, key, value)` gives what is seen of the own sequence, and a new cache."""
        h = self.attention_norm(x, train=False)
        seen, cache = look(self.attention.query(h), self.attention.key(h), self.attention.value(h))
        x = x + dropped(self.attention.output(seen))
        if memory is not None:
            query = self.cross_attention.query(self.cross_attention_norm(x, train=False))
            heard = cached.over(query, memory["key"], memory["value"])
            x = x + dropped(self.cross_attention.output(heard))
        return x + dropped(self.mlp(self.mlp_norm(x, train=False))), cache

    def remember(self, heard: jax.Array) -> Memory:
        """Keys and values of what the encoder gave."""
        arrays = {"key": self.cross_attention.key(heard), "value": self.cross_attention.value(heard)}
        return {name: cached.lie(a) for name, a in arrays.items()}


class _Encoder(nnx.Module):
    def __init__(self, spec: WhisperConfig, rngs: nnx.Rngs):
        self.conv1 = _Conv(spec.mels, spec.width, 1, rngs)
        self.conv2 = _Conv(spec.width, spec.width, 2, rngs)
        self.positions = Table(spec.who, spec.source, spec.width, _DEVIATION, rngs)
        self.positions.embeddings[...] = jnp.asarray(_sinusoids(spec.source, spec.width), jnp.float32)
        sizes = (spec.width, spec.num_heads, spec.hidden_dim or 4 * spec.width)
        self.blocks = nnx.List([_Block(*sizes, rngs, crossed=False) for _ in range(spec.depth)])
        self.last_norm = layer_norm(spec.width, _EPSILON, rngs)

    def __call__(self, x: jax.Array, dropped: Dropped) -> jax.Array:
        x = self.conv2(self.conv1(x))
        x = dropped(x + self.positions.embeddings[...][None, : x.shape[1]].astype(x.dtype))

        def look(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
            return attend(query, key, value, None, causal=False), {}

        for block in self.blocks:
            x, _ = block(x, look, None, dropped)
        return self.last_norm(x, train=False)


class _Decoder(nnx.Module):
    def __init__(self, spec: WhisperConfig, rngs: nnx.Rngs):
        self.tokens = Table(spec.who, spec.vocab, spec.width, _DEVIATION, rngs)
        self.positions = Table(spec.who, spec.context, spec.width, _DEVIATION, rngs)
        sizes = (spec.width, spec.heads_to_write, spec.decoder_hidden_dim or spec.hidden_dim or 4 * spec.width)
        depth = spec.decoder_depth or spec.depth
        self.blocks = nnx.List([_Block(*sizes, rngs, crossed=True) for _ in range(depth)])
        self.last_norm = layer_norm(spec.width, _EPSILON, rngs)

    def embedded(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.tokens(ids)
        return x + jnp.broadcast_to(self.positions(positions), x.shape)

    def logits(self, x: jax.Array) -> jax.Array:
        return self.tokens.logits(self.last_norm(x, train=False))


class _Whisper(nnx.Module):
    def __init__(self, spec: WhisperConfig, rngs: nnx.Rngs):
        self.spec = spec
        self.encoder, self.decoder = _Encoder(spec, rngs), _Decoder(spec, rngs)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        ids, mask = given["decoder_input_ids"], given["decoder_attention_mask"]
        if ids is None:
            ids = jnp.tile(jnp.asarray(spec.start_ids, jnp.int32)[None], (given["input_features"].shape[0], 1))
        if ids.shape[1] > spec.context:
            raise ValueError(f"{spec.who}: rows of {ids.shape[1]} ids came, it reads {spec.context} at most (context)")
        mask = None if mask is None else mask != 0
        positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
        if mask is not None:
            positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
        dropped = or_same(dropping(spec.who, spec.dropout, train, rngs))
        memory = self._memory(given["input_features"], dropped)

        def look(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
            return attend(query, key, value, mask, causal=True), {}

        y = dropped(self.decoder.embedded(ids, positions))
        for i, block in enumerate(self.decoder.blocks):
            y, _ = block(y, look, cached.part(memory, i), dropped)
        return self.decoder.logits(y)

    def encode(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> Memory:
        """Keys and values of each of the decoder's blocks for what was heard."""
        return self._memory(self.spec.unbind(x)["input_features"], lambda y: y)

    def decode(
        self, step: Step, cache: Cache, memory: Memory, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, Cache]:
        """See `Generative`."""
        x = self.decoder.embedded(step.ids, step.positions)
        for i, block in enumerate(self.decoder.blocks):
            look = functools.partial(cached.to_cache, cache=cached.part(cache, i), step=step)
            x, new = block(x, look, cached.part(memory, i), lambda y: y)
            cache = cached.with_part(cache, i, new)
        return self.decoder.logits(x[:, -1:])[:, 0], cache

    def _memory(self, features: jax.Array, dropped: Dropped) -> Memory:
        self.spec.output_shape(features.shape[1:])
        heard = self.encoder(features, dropped)
        memory = {}
        for i, block in enumerate(self.decoder.blocks):
            memory = cached.with_part(memory, i, block.remember(heard))
        return memory


def _sinusoids(length: int, width: int) -> np.ndarray:
    """Sines, then cosines, of frequencies from 1 to 1 / 10000: [length, width]."""
    half = max(width // 2, 1)
    angles = np.arange(length)[:, None] * np.exp(-np.log(10000.0) / max(half - 1, 1) * np.arange(half))[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
