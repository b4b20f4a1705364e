"""T5 (Raffel et al. 2020): an encoder and a decoder with relative positions, text to text."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models._parts import Dropped, Projection, Table, dropping, or_same
from llmasos_xla.models.generation import attend as cached
from llmasos_xla.models.generation.protocol import Cache, EncoderDecoder, Memory, Step
from llmasos_xla.models.layers._attend import attend
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, whole
from llmasos_xla.models.layers._relative import bias_from, bias_within, buckets
from llmasos_xla.models.layers.rms import RMSNormalization, check_epsilon
from llmasos_xla.models.pretrained import names as n
from llmasos_xla.models.pretrained.names import SAME, Name

Look = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Cache]]
"""(query, key, value) -> what the queries see, all [batch, time, heads, dim], and the new cache ({} without one)."""
Cross = Callable[["_Attention", jax.Array], jax.Array]
"""(attention, its input) -> what the encoder's steps give to it."""

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


@dataclasses.dataclass(frozen=True)
class T5Config(EncoderDecoder):
    """T5 (Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text transformer").

    int ids [batch, time] and `decoder_input_ids` [batch, steps], which are the wanted ids one place later, behind
    `start_id` -> logits [batch, steps, vocab] of the wanted ids. `attention_mask` [batch, time] and
    `decoder_attention_mask` [batch, steps] are 0 where a step is padding, which changes no real step's output.

    Args:
        vocab: number of ids.
        width: features of a token.
        depth: number of encoder blocks.
        decoder_depth: number of decoder blocks; as many if None.
        heads: number of attention heads.
        key_dim: features of a head.
        hidden: features inside of the feed-forward network.
        gated: whether a second product gates the feed-forward network (version 1.1; Shazeer 2020).
        activation: of the feed-forward network.
        buckets: numbers of each head for relative positions.
        farthest: distance from which on all have one number.
        epsilon: of the normalizations.
        dropout: share of what is dropped in training, of attention weights too.
        tied: whether the output layer is the table of embeddings.
        scaled: whether the output layer's input is multiplied by width ** -0.5.
        start_id: what the decoder reads first.
        end: the id that ends a text; None for none.

    >>> config = T5Config.t5(vocab=30, width=8, depth=1, heads=2, key_dim=4, hidden=16)
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> x = {"ids": jnp.array([[5, 6, 1]]), "decoder_input_ids": jnp.array([[0, 7]])}
    >>> net.apply(variables, x, train=False)[0].shape
    (1, 2, 30)
    """

    vocab: int = 32128
    width: int = 512
    depth: int = 6
    decoder_depth: int | None = None
    heads: int = 8
    key_dim: int = 64
    hidden: int = 2048
    gated: bool = False
    activation: str = "relu"
    buckets: int = 32
    farthest: int = 128
    epsilon: float = 1e-6
    dropout: float = 0.1
    tied: bool = True
    scaled: bool = True
    start_id: int = dataclasses.field(default=0, metadata={"checked": False})
    end: int | None = 1

    family: ClassVar[str] = "t5"
    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    encoder_inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask")
    presets: ClassVar[Mapping[str, str]] = {
        "t5": "t5", "t5_base": "base", "t5_large": "large",
        "flan_t5_small": "flan_small", "flan_t5_base": "flan_base", "flan_t5_large": "flan_large",
    }  # fmt: skip
    huggingface: ClassVar[tuple[str, ...]] = ("t5",)
    # A number that old files have and nothing reads.
    ignored: ClassVar[tuple[str, ...]] = (r"EncDecAttention\.relative_attention_bias",)

    @classmethod
    def t5(cls, **sizes: Any) -> "T5Config":
        """T5 small, 60 million parameters."""
        return cls(**sizes)

    @classmethod
    def base(cls, **sizes: Any) -> "T5Config":
        """T5 base, 223 million parameters."""
        return cls(**{"width": 768, "depth": 12, "heads": 12, "hidden": 3072, **sizes})

    @classmethod
    def large(cls, **sizes: Any) -> "T5Config":
        """T5 large, 738 million parameters."""
        return cls(**{"width": 1024, "depth": 24, "heads": 16, "hidden": 4096, **sizes})

    @classmethod
    def flan_small(cls, **sizes: Any) -> "T5Config":
        """Flan-T5 small (Chung et al. 2022), of T5 1.1's form: 77 million parameters."""
        return cls(**{**_NEWER, "depth": 8, "heads": 6, "hidden": 1024, **sizes})

    @classmethod
    def flan_base(cls, **sizes: Any) -> "T5Config":
        """Flan-T5 base, 248 million parameters."""
        return cls(**{**_NEWER, "width": 768, "depth": 12, "heads": 12, **sizes})

    @classmethod
    def flan_large(cls, **sizes: Any) -> "T5Config":
        """Flan-T5 large, 783 million parameters."""
        return cls(**{**_NEWER, "width": 1024, "depth": 24, "heads": 16, "hidden": 2816, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "T5Config":
        """Of T5ForConditionalGeneration's config.json."""
        parts = str(config.get("feed_forward_proj", "relu")).split("-")
        # The one name that means the approximation without saying so.
        activation = "gelu_new" if parts == ["gated", "gelu"] else parts[-1]
        if activation not in _ACTIVATIONS or parts[:-1] not in ([], ["gated"]):
            raise ValueError(
                f"{cls.__name__}: feed_forward_proj {config['feed_forward_proj']!r} is not built here; known: "
                f"{', '.join(sorted(_ACTIVATIONS))}, each also with gated- before it"
            )
        tied = config.get("tie_word_embeddings", True) is not False
        end = config.get("eos_token_id", 1)
        given = {
            "vocab": config["vocab_size"],
            "width": config["d_model"],
            "depth": config["num_layers"],
            "decoder_depth": config.get("num_decoder_layers"),
            "heads": config["num_heads"],
            "key_dim": config["d_kv"],
            "hidden": config["d_ff"],
            "gated": len(parts) > 1,
            "activation": _ACTIVATIONS[activation],
            "buckets": config.get("relative_attention_num_buckets", 32),
            "farthest": config.get("relative_attention_max_distance", 128),
            "epsilon": config.get("layer_norm_epsilon", 1e-6),
            "dropout": config.get("dropout_rate", 0.1),
            "tied": tied,
            "scaled": config.get("scale_decoder_outputs", tied),
            "start_id": config.get("decoder_start_token_id") or 0,
            "end": end[0] if isinstance(end, list) else end,
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses dropout outside [0, 1) and buckets that no distance falls into."""
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        check_epsilon(self.who, self.epsilon)
        self._set(start_id=whole(self.who, "start_id", self.start_id, least=0))
        if self.buckets < 4 or self.farthest <= self.buckets // 2:
            raise ValueError(
                f"{self.who}: buckets wants 4 or more and farthest more than half of them, got {self.buckets} and "
                f"{self.farthest}"
            )

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _T5(self, rngs)

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """Keys and values of every decoder block."""
        return {
            f"{i}/{name}": a
            for i in range(self.decoder_depth or self.depth)
            for name, a in cached.slots(batch, length, self.heads, self.key_dim, dtype).items()
        }

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface")."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        yield Name("tokens/embeddings", "shared.weight", SAME, copies=(*copies, *(("lm_head.weight",) * self.tied)))
        if not self.tied:
            yield Name("head/kernel", "lm_head.weight", n.DENSE)
        for stack, depth in (("encoder", self.depth), ("decoder", self.decoder_depth or self.depth)):
            parts = [("attention", "SelfAttention")]
            parts += [("cross_attention", "EncDecAttention")] if stack == "decoder" else []
            theirs = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            yield Name(f"{stack}/relative/embeddings", theirs, SAME)
            yield Name(f"{stack}/last_norm/scale", f"{stack}.final_layer_norm.weight", SAME)
            for i in range(depth):
                here, there = f"{stack}/blocks/{i}", f"{stack}.block.{i}.layer"
                for at, (ours, theirs) in enumerate(parts):
                    yield Name(f"{here}/{ours}_norm/scale", f"{there}.{at}.layer_norm.weight", SAME)
                    for name in ("query", "key", "value"):
                        theirs_in = f"{there}.{at}.{theirs}.{name[0]}.weight"
                        yield Name(f"{here}/{ours}/{name}/kernel", theirs_in, n.heads_in(self.heads))
                    theirs_out = f"{there}.{at}.{theirs}.o.weight"
                    yield Name(f"{here}/{ours}/output/kernel", theirs_out, n.heads_out(self.heads))
                last = f"{there}.{len(parts)}"
                yield Name(f"{here}/mlp_norm/scale", f"{last}.layer_norm.weight", SAME)
                names = {"gate": "wi_0", "up": "wi_1"} if self.gated else {"up": "wi"}
                for ours, theirs in (names | {"down": "wo"}).items():
                    yield Name(f"{here}/mlp/{ours}/kernel", f"{last}.DenseReluDense.{theirs}.weight", n.DENSE)


_NEWER = {"gated": True, "activation": "gelu_tanh", "tied": False, "scaled": False}
"""What T5 1.1 changed."""


class _Attention(nnx.Module):
    def __init__(self, spec: T5Config, rngs: nnx.Rngs):
        axes = (spec.heads, spec.key_dim)
        # Scores are not divided by the root of key_dim: queries start smaller instead.
        starts = ((spec.width * spec.key_dim) ** -0.5, spec.width**-0.5, spec.width**-0.5)
        self.query, self.key, self.value = (
            Projection((spec.width, *axes), rngs, bias=False, deviation=deviation) for deviation in starts
        )
        deviation = (spec.heads * spec.key_dim) ** -0.5
        self.output = Projection((*axes, spec.width), rngs, summed=2, bias=False, deviation=deviation)


class _FeedForward(nnx.Module):
    def __init__(self, spec: T5Config, rngs: nnx.Rngs):
        self.activation, self.gated = spec.activation, spec.gated
        shape, deviation = (spec.width, spec.hidden), spec.width**-0.5
        if spec.gated:
            self.gate = Projection(shape, rngs, bias=False, deviation=deviation)
        self.up = Projection(shape, rngs, bias=False, deviation=deviation)
        self.down = Projection(shape[::-1], rngs, bias=False, deviation=spec.hidden**-0.5)

    def __call__(self, x: jax.Array, dropped: Dropped) -> jax.Array:
        h = self.gate(x, self.activation) * self.up(x) if self.gated else self.up(x, self.activation)
        return self.down(dropped(h))


class _Block(nnx.Module):
    def __init__(self, spec: T5Config, decoder: bool, rngs: nnx.Rngs):
        self.attention, self.attention_norm = _Attention(spec, rngs), _norm(spec, rngs)
        if decoder:
            self.cross_attention, self.cross_attention_norm = _Attention(spec, rngs), _norm(spec, rngs)
        self.mlp, self.mlp_norm = _FeedForward(spec, rngs), _norm(spec, rngs)

    def __call__(self, x: jax.Array, look: Look, cross: Cross | None, dropped: Dropped) -> tuple[jax.Array, Cache]:
        h, own = self.attention_norm(x, train=False), self.attention
        seen, cache = look(own.query(h), own.key(h), own.value(h))
        x = x + dropped(own.output(seen))
        if cross is not None:
            seen = cross(self.cross_attention, self.cross_attention_norm(x, train=False))
            x = x + dropped(self.cross_attention.output(seen))
        return x + dropped(self.mlp(self.mlp_norm(x, train=False), dropped)), cache


class _Stack(nnx.Module):
    """The blocks of encoder or decoder."""

    def __init__(self, spec: T5Config, depth: int, decoder: bool, rngs: nnx.Rngs):
        self.spec, self.decoder = spec, decoder
        self.relative = Table(spec.who, spec.buckets, spec.heads, spec.width**-0.5, rngs)
        self.blocks = nnx.List([_Block(spec, decoder, rngs) for _ in range(depth)])
        self.last_norm = _norm(spec, rngs)

    @property
    def numbers(self) -> Any:
        """The bucket of each distance."""
        return buckets(self.spec.buckets, self.spec.farthest, both_ways=not self.decoder)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, cross: Cross | None, dropped: Dropped, weights: Dropped | None
    ) -> jax.Array:
        bias = bias_within(self.relative.embeddings[...], self.numbers, x.shape[1])

        def look(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
            return attend(query, key, value, mask, causal=self.decoder, scale=1.0, bias=bias, dropped=weights), {}

        x = dropped(x)
        for block in self.blocks:
            x, _ = block(x, look, cross, dropped)
        return dropped(self.last_norm(x, train=False))


class _T5(nnx.Module):
    def __init__(self, spec: T5Config, rngs: nnx.Rngs):
        self.spec = spec
        # Tied and scaled, vectors of size 1 give logits of size 1; otherwise they only enter sums of size 1.
        self.tokens = Table(spec.who, spec.vocab, spec.width, 1.0, rngs)
        self.encoder = _Stack(spec, spec.depth, False, rngs)
        self.decoder = _Stack(spec, spec.decoder_depth or spec.depth, True, rngs)
        if not spec.tied:
            self.head = Projection((spec.width, spec.vocab), rngs, bias=False, deviation=spec.width**-0.5)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        steps, of_steps = given["decoder_input_ids"], given["decoder_attention_mask"]
        if steps is None:
            raise ValueError(f"{spec.who}: the input 'decoder_input_ids' is missing: the wanted ids behind start_id")
        weights = dropping(spec.who, spec.dropout, train, rngs)
        dropped = or_same(weights)
        memory, mask = self._encoded(given, dropped, weights)

        def cross(attention: _Attention, h: jax.Array) -> jax.Array:
            keys, values = attention.key(memory), attention.value(memory)
            return attend(attention.query(h), keys, values, mask, causal=False, scale=1.0, dropped=weights)

        real = None if of_steps is None else of_steps.astype(bool)
        return self._logits(self.decoder(self.tokens(steps), real, cross, dropped, weights))

    def encode(self, x: Any, *, train: bool, rngs: nnx.Rngs | None) -> Memory:
        """See `Generative`: the keys and values that the decoder's blocks ask for, and which of them are real."""
        given = self.spec.unbind(x)
        memory, mask = self._encoded(given, lambda x: x, None)
        real = jnp.ones(memory.shape[:2], bool) if mask is None else mask
        arrays = {"real": real}
        for i, block in enumerate(self.decoder.blocks):
            for name in ("key", "value"):
                arrays[f"{i}/{name}"] = cached.lie(getattr(block.cross_attention, name)(memory))
        return arrays

    def decode(
        self, step: Step, cache: Cache, memory: Memory, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, Cache]:
        """See `Generative`."""
        x, decoder = self.tokens(step.ids), self.decoder
        time, length = step.ids.shape[1], step.seen.shape[1]
        places = step.index + jnp.arange(time, dtype=jnp.int32)
        slots = jnp.arange(length, dtype=jnp.int32)
        bias = bias_from(decoder.relative.embeddings[...], decoder.numbers, places, slots)
        real = jnp.broadcast_to(memory["real"][:, None], (len(x), time, memory["real"].shape[1]))
        for i, block in enumerate(decoder.blocks):
            look = functools.partial(cached.to_cache, cache=cached.part(cache, i), step=step, scale=1.0, bias=bias)
            asked = cached.part(memory, i)

            def cross(attention: _Attention, h: jax.Array, asked: Memory = asked) -> jax.Array:
                return cached.over(attention.query(h), asked["key"], asked["value"], real, scale=1.0)

            x, new = block(x, look, cross, lambda y: y)
            cache = cached.with_part(cache, i, new)
        return self._logits(decoder.last_norm(x[:, -1:], train=False))[:, 0], cache

    def _encoded(
        self, given: Mapping[str, Any], dropped: Dropped, weights: Dropped | None
    ) -> tuple[jax.Array, jax.Array | None]:
        mask = None if given["attention_mask"] is None else given["attention_mask"].astype(bool)
        return self.encoder(self.tokens(given["ids"]), mask, None, dropped, weights), mask

    def _logits(self, x: jax.Array) -> jax.Array:
        x = x * self.spec.width**-0.5 if self.spec.scaled else x
        return self.tokens.logits(x) if self.spec.tied else self.head(x)


def _norm(spec: T5Config, rngs: nnx.Rngs) -> nnx.Module:
    return RMSNormalization(spec.epsilon).build((None, spec.width), rngs)
