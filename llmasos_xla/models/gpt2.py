"""GPT-2 (Radford et al. 2019): a decoder with learned positions, normalized ahead of each half block."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models._parts import Dropped, FeedForward, Projection, Table, dropping, layer_norm, or_same
from llmasos_xla.models.generation import attend as cached
from llmasos_xla.models.generation.protocol import Cache, DecoderOnly, Memory, Step
from llmasos_xla.models.layers._attend import attend
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number
from llmasos_xla.models.pretrained.names import SAME, Layout, Name

Look = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Cache]]
"""(query, key, value) -> what the queries see, all [batch, time, heads, dim], and the new cache ({} without one)."""

_DEVIATION = 0.02
"""Of the initial values of kernels and embeddings."""

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


@dataclasses.dataclass(frozen=True)
class GPT2Config(DecoderOnly):
    """GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners").

    ids [batch, time] -> logits of the next id [batch, time, vocab]. `attention_mask` [batch, time] is 0 at padding,
    which may stand at the left or the right of a row and which no other step looks at; `positions` [batch, time] count
    the real steps of a row if they are not given. The output layer is the table of embeddings.

    Args:
        vocab: number of ids.
        context: the most steps of a row.
        width: features of a token.
        depth: number of blocks.
        heads: number of attention heads, a divisor of the width.
        hidden: features inside of the feed-forward network; 4 x width if None.
        bias: whether projections and normalizations have biases.
        activation: of the feed-forward network.
        epsilon: of the normalizations.
        dropout: share of the embeddings, of attention weights and of each half block's outputs dropped in training.
        end: the id that ends a text; None for none.

    >>> config = GPT2Config.nanogpt()
    >>> config.output_shape((64,))
    (64, 65)
    """

    vocab: int = 50257
    context: int = 1024  # pyright: ignore[reportIncompatibleMethodOverride]
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None
    bias: bool = True
    activation: str = "gelu_tanh"
    epsilon: float = 1e-5
    dropout: float = 0.0
    end: int | None = None

    family: ClassVar[str] = "gpt2"
    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask", "positions")
    presets: ClassVar[Mapping[str, str]] = {
        name: name for name in ("gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl", "nanogpt")
    }
    huggingface: ClassVar[tuple[str, ...]] = ("gpt2",)
    ignored: ClassVar[tuple[str, ...]] = (r"\.attn\.(masked_)?bias$",)

    @classmethod
    def gpt2(cls, **sizes: Any) -> "GPT2Config":
        """The smallest, 124 million parameters."""
        return cls(**{"end": 50256, **sizes})

    @classmethod
    def gpt2_medium(cls, **sizes: Any) -> "GPT2Config":
        """355 million parameters."""
        return cls.gpt2(**{"width": 1024, "depth": 24, "heads": 16, **sizes})

    @classmethod
    def gpt2_large(cls, **sizes: Any) -> "GPT2Config":
        """774 million parameters."""
        return cls.gpt2(**{"width": 1280, "depth": 36, "heads": 20, **sizes})

    @classmethod
    def gpt2_xl(cls, **sizes: Any) -> "GPT2Config":
        """1.56 billion parameters."""
        return cls.gpt2(**{"width": 1600, "depth": 48, "heads": 25, **sizes})

    @classmethod
    def nanogpt(cls, **sizes: Any) -> "GPT2Config":
        """nanoGPT's configuration for characters on a CPU: 4 blocks of width 128, 0.80 million parameters."""
        small = {"vocab": 65, "context": 64, "width": 128, "depth": 4, "heads": 4, "bias": False, "activation": "gelu"}
        return cls(**{**small, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "GPT2Config":
        """Of GPT2LMHeadModel's config.json."""
        activation = config.get("activation_function", "gelu_new")
        for refused, usual in (
            ("scale_attn_by_inverse_layer_idx", False),
            ("scale_attn_weights", True),
            ("add_cross_attention", False),
            ("tie_word_embeddings", True),
        ):
            if config.get(refused, usual) != usual:
                raise ValueError(f"{cls.__name__}: {refused}={config[refused]} of the config.json is not built here")
        if activation not in _ACTIVATIONS:
            known = ", ".join(sorted(_ACTIVATIONS))
            raise ValueError(f"{cls.__name__}: activation_function {activation!r} is not built here; known: {known}")
        end = config.get("eos_token_id", 50256)
        given = {
            "vocab": config.get("vocab_size", 50257),
            "context": config.get("n_positions", 1024),
            "width": config.get("n_embd", 768),
            "depth": config.get("n_layer", 12),
            "heads": config.get("n_head", 12),
            "hidden": config.get("n_inner"),
            "activation": _ACTIVATIONS[activation],
            "epsilon": config.get("layer_norm_epsilon", 1e-5),
            "end": end[0] if isinstance(end, list) and end else end,
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses a width that its heads do not divide."""
        if self.width % self.heads:
            raise ValueError(f"{self.who}: a width of {self.width} does not divide into {self.heads} heads")
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        if number(self.who, "epsilon", self.epsilon, least=0.0) == 0:
            raise ValueError(f"{self.who}: epsilon wants a positive number, got 0")

    @property
    def tokens(self) -> bool:
        """True: it reads ids."""
        return True

    @property
    def dim(self) -> int:
        """Features of a head."""
        return self.width // self.heads

    @property
    def inner(self) -> int:
        """Features inside of the feed-forward network."""
        return self.hidden or 4 * self.width

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id that ends a text."""
        return () if self.end is None else (self.end,)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _GPT2(self, rngs)

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """Keys and values of every block."""
        return {
            f"{i}/{name}": a
            for i in range(self.depth)
            for name, a in cached.slots(batch, length, self.heads, self.dim, dtype).items()
        }

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface"), of GPT2LMHeadModel."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        yield Name("tokens/embeddings", "transformer.wte.weight", SAME, copies=("lm_head.weight",))
        yield Name("positions/embeddings", "transformer.wpe.weight", SAME)
        qkv, qkv_bias, output = _layouts(self.heads, self.dim)
        for i in range(self.depth):
            here, there = f"blocks/{i}", f"transformer.h.{i}"
            yield from self._both(f"{here}/attention_norm", f"{there}.ln_1", SAME, SAME, "scale")
            yield from self._both(f"{here}/attention/qkv", f"{there}.attn.c_attn", qkv, qkv_bias)
            yield from self._both(f"{here}/attention/output", f"{there}.attn.c_proj", output, SAME)
            yield from self._both(f"{here}/mlp_norm", f"{there}.ln_2", SAME, SAME, "scale")
            yield from self._both(f"{here}/mlp/up", f"{there}.mlp.c_fc", SAME, SAME)
            yield from self._both(f"{here}/mlp/down", f"{there}.mlp.c_proj", SAME, SAME)
        yield from self._both("last_norm", "transformer.ln_f", SAME, SAME, "scale")

    def _both(self, ours: str, theirs: str, weight: Layout, bias: Layout, first: str = "kernel") -> Iterator[Name]:
        yield Name(f"{ours}/{first}", f"{theirs}.weight", weight)
        if self.bias:
            yield Name(f"{ours}/bias", f"{theirs}.bias", bias)


def _layouts(heads: int, dim: int) -> tuple[Layout, Layout, Layout]:
    """How the fused projection's kernel and bias and the output's kernel lie; GPT-2's kernels are [cin, cout].

    Heads come first of the fused axes, so that they can be divided over devices.
    """
    axes = (heads, 3, dim)
    return (
        Layout(
            f"fused{axes}",
            lambda a: a.reshape(-1, 3, heads, dim).transpose(0, 2, 1, 3),
            lambda a: a.transpose(0, 2, 1, 3).reshape(a.shape[0], -1),
        ),
        Layout(
            f"fused_bias{axes}",
            lambda a: a.reshape(3, heads, dim).transpose(1, 0, 2),
            lambda a: a.transpose(1, 0, 2).reshape(-1),
        ),
        Layout(
            f"rows({heads}, {dim})",
            lambda a: a.reshape(heads, dim, a.shape[-1]),
            lambda a: a.reshape(-1, a.shape[-1]),
        ),
    )


class _Attention(nnx.Module):
    def __init__(self, spec: GPT2Config, rngs: nnx.Rngs):
        width, heads, dim = spec.width, spec.heads, spec.dim
        self.qkv = Projection((width, heads, 3, dim), rngs, bias=spec.bias, deviation=_DEVIATION)
        last = _deviation_last(spec)
        self.output = Projection((heads, dim, width), rngs, summed=2, bias=spec.bias, deviation=last)


class _Block(nnx.Module):
    def __init__(self, spec: GPT2Config, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = _norm(spec, rngs), _norm(spec, rngs)
        self.attention = _Attention(spec, rngs)
        deviations = {"deviation": _DEVIATION, "deviation_last": _deviation_last(spec)}
        self.mlp = FeedForward(spec.width, spec.inner, spec.activation, rngs, bias=spec.bias, **deviations)

    def __call__(self, x: jax.Array, look: Look, dropped: Dropped) -> tuple[jax.Array, Cache]:
        qkv = self.attention.qkv(self.attention_norm(x, train=False))
        # Slices would be padded with zeros and summed up in the backward pass.
        query, key, value = (jnp.squeeze(a, -2) for a in jnp.split(qkv, 3, axis=-2))
        seen, cache = look(query, key, value)
        x = x + dropped(self.attention.output(seen))
        return x + dropped(self.mlp(self.mlp_norm(x, train=False))), cache


class _GPT2(nnx.Module):
    def __init__(self, spec: GPT2Config, rngs: nnx.Rngs):
        self.spec = spec
        self.tokens = Table(spec.who, spec.vocab, spec.width, _DEVIATION, rngs)
        self.positions = Table(spec.who, spec.context, spec.width, _DEVIATION, rngs)
        self.blocks = nnx.List([_Block(spec, rngs) for _ in range(spec.depth)])
        self.last_norm = _norm(spec, rngs)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        ids, positions = given["ids"], given["positions"]
        assert ids is not None
        mask = None if given["attention_mask"] is None else given["attention_mask"] != 0
        if ids.shape[1] > spec.context:
            raise ValueError(f"{spec.who}: rows of {ids.shape[1]} ids came, it reads {spec.context} at most (context)")
        if positions is None:
            positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
            if mask is not None:
                positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
        dropped_weights = dropping(spec.who, spec.dropout, train, rngs)
        dropped = or_same(dropped_weights)

        def look(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Cache]:
            return attend(query, key, value, mask, causal=True, dropped=dropped_weights), {}

        y = dropped(self._embedded(ids, positions))
        for block in self.blocks:
            y, _ = block(y, look, dropped)
        return self._logits(y)

    def decode(
        self, step: Step, cache: Cache, memory: Memory, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, Cache]:
        """See `Generative`."""
        x = self._embedded(step.ids, step.positions)
        for i, block in enumerate(self.blocks):
            look = functools.partial(cached.to_cache, cache=cached.part(cache, i), step=step)
            x, new = block(x, look, lambda y: y)
            cache = cached.with_part(cache, i, new)
        return self._logits(x[:, -1:])[:, 0], cache

    def _embedded(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        x = self.tokens(ids)
        return x + jnp.broadcast_to(self.positions(positions), x.shape)

    def _logits(self, x: jax.Array) -> jax.Array:
        return self.tokens.logits(self.last_norm(x, train=False))


def _norm(spec: GPT2Config, rngs: nnx.Rngs) -> Any:
    return layer_norm(spec.width, spec.epsilon, rngs, bias=spec.bias)


def _deviation_last(spec: GPT2Config) -> float:
    """What is added to the stream grows with the depth: the projections that do so start smaller."""
    return _DEVIATION / math.sqrt(2 * spec.depth)
