"""Llama (Touvron et al. 2023): rotary positions, RMS normalization, gated feed-forward, shared heads of keys."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.core import Variables
from llmasos_xla.models.generation import attend as cached
from llmasos_xla.models.generation.protocol import Cache, DecoderOnly, Memory, Step
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers.decoder import Decoder, DecoderModule
from llmasos_xla.models.layers.dense import Dense, affine
from llmasos_xla.models.layers.embedding import Embedding, look_up
from llmasos_xla.models.layers.rms import RMSNormalization
from llmasos_xla.models.pretrained.names import DENSE, SAME, Name, each, heads_in, heads_in_turned, heads_out

_LLAMA3_SCALING = (8.0, 1.0, 4.0, 8192.0)


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderOnly):
    """Llama (Touvron et al. 2023, "LLaMA: open and efficient foundation language models") and what is built like it.

    ids [batch, time] -> logits of the next id [batch, time, vocab]. `attention_mask` [batch, time] is 0 at padding,
    which may stand at the left or the right of a row and which no other step looks at. `positions` [batch, time] count
    from 0 if they are not given; only their differences matter.

    The blocks are those of `lm.layers.Decoder`: stacked arrays in one scan, which compiles as fast for 80 blocks as for
    2; with `scan=False` each has its own arrays, which runs faster on a CPU where the blocks are small.

    Args:
        vocab: number of ids.
        width: features of a token.
        depth: number of blocks.
        heads: number of query heads.
        kv_heads: heads of keys and values, a divisor of heads (Ainslie et al. 2023); heads if None.
        key_dim: features of a head; width / heads if None.
        hidden: features inside of the feed-forward network; 8/3 of the width up to a multiple of 64 if None.
        longest: the most steps of a row.
        rope_base: base of the rotary frequencies.
        rope_scaling: (factor,) or Llama 3.1's (factor, low, high, context), as `lm.layers.Decoder` has it.
        epsilon: of the normalizations.
        tied: whether the output layer is the table of embeddings.
        dropout: share of each half block's outputs dropped in training.
        rematerialize: what the derivative computes again, as `lm.layers.Decoder` has it.
        scan: whether the blocks' arrays are stacked.
        ends: the ids that end a text.

    >>> LlamaConfig.stories260k().output_shape((20,))
    (20, 512)
    """

    vocab: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int | None = None
    key_dim: int | None = None
    hidden: int | None = None
    longest: int = 2048
    rope_base: float = 10000.0
    rope_scaling: tuple[float, ...] | None = None
    epsilon: float = 1e-5
    tied: bool = False
    dropout: float = 0.0
    rematerialize: str = "none"
    scan: bool = True
    ends: tuple[int, ...] = ()

    family: ClassVar[str] = "llama"
    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask", "positions")
    presets: ClassVar[Mapping[str, str]] = {
        name: name
        for name in (
            "llama",
            "llama2_7b",
            "llama2_13b",
            "llama3_8b",
            "llama31_8b",
            "llama32_1b",
            "tinyllama",
            "stories260k",
        )
    }
    huggingface: ClassVar[tuple[str, ...]] = ("llama",)
    ignored: ClassVar[tuple[str, ...]] = (r"rotary_emb\.(original_)?inv_freq$", r"^freqs_(cos|sin)$")

    @classmethod
    def llama(cls, **sizes: Any) -> "LlamaConfig":
        """The first one's smallest, 6.7 billion parameters; other sizes as they are said."""
        return cls(**{"hidden": 11008, "epsilon": 1e-6, "ends": (2,), **sizes})

    @classmethod
    def llama2_7b(cls, **sizes: Any) -> "LlamaConfig":
        """Llama 2, 6.7 billion parameters."""
        return cls(**{"hidden": 11008, "longest": 4096, "ends": (2,), **sizes})

    @classmethod
    def llama2_13b(cls, **sizes: Any) -> "LlamaConfig":
        """Llama 2, 13.0 billion parameters."""
        return cls.llama2_7b(**{"width": 5120, "depth": 40, "heads": 40, "hidden": 13824, **sizes})

    @classmethod
    def llama3_8b(cls, **sizes: Any) -> "LlamaConfig":
        """Llama 3, 8.0 billion parameters."""
        given = {"vocab": 128256, "kv_heads": 8, "hidden": 14336, "longest": 8192, "rope_base": 500000.0}
        return cls(**{**given, "ends": (128001, 128009), **sizes})

    @classmethod
    def llama31_8b(cls, **sizes: Any) -> "LlamaConfig":
        """Llama 3.1: Llama 3 with positions stretched to 131072 steps."""
        return cls.llama3_8b(
            **{"longest": 131072, "rope_scaling": _LLAMA3_SCALING, "ends": (128001, 128008, 128009), **sizes}
        )

    @classmethod
    def llama32_1b(cls, **sizes: Any) -> "LlamaConfig":
        """Llama 3.2, 1.24 billion parameters."""
        given = {"width": 2048, "depth": 16, "key_dim": 64, "hidden": 8192, "tied": True}
        return cls.llama31_8b(**{**given, "rope_scaling": (32.0, 1.0, 4.0, 8192.0), **sizes})

    @classmethod
    def tinyllama(cls, **sizes: Any) -> "LlamaConfig":
        """TinyLlama (Zhang et al. 2024), 1.1 billion parameters."""
        return cls(**{"width": 2048, "depth": 22, "kv_heads": 4, "hidden": 5632, "ends": (2,), **sizes})

    @classmethod
    def stories260k(cls, **sizes: Any) -> "LlamaConfig":
        """llama2.c's smallest model of children's stories, 260 thousand parameters; id 1 begins and ends one."""
        given = {"vocab": 512, "width": 64, "depth": 5, "heads": 8, "kv_heads": 4, "hidden": 172, "longest": 512}
        return cls(**{**given, "tied": True, "ends": (1,), **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "LlamaConfig":
        """Of LlamaForCausalLM's config.json."""
        for refused, usual in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
            if config.get(refused, usual) != usual:
                raise ValueError(f"{cls.__name__}: {refused}={config[refused]!r} of the config.json is not built here")
        end = config.get("eos_token_id", 2)
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        given = {
            "vocab": config.get("vocab_size", 32000),
            "width": config.get("hidden_size", 4096),
            "depth": config.get("num_hidden_layers", 32),
            "heads": config.get("num_attention_heads", 32),
            "kv_heads": config.get("num_key_value_heads"),
            "key_dim": config.get("head_dim"),
            "hidden": config.get("intermediate_size", 11008),
            "longest": config.get("max_position_embeddings", 2048),
            "rope_base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            "rope_scaling": _scaling(cls.__name__, rope),
            "epsilon": config.get("rms_norm_eps", 1e-6),
            "tied": config.get("tie_word_embeddings", False),
            "ends": tuple(end) if isinstance(end, list | tuple) else () if end is None else (end,),
        }
        return cls(**{**given, **sizes})

    @classmethod
    def from_llama2c(cls, config: Mapping[str, Any], **sizes: Any) -> "LlamaConfig":
        """Of the sizes in the header of llama2.c's .bin."""
        given = {
            "vocab": config["vocab_size"],
            "width": config["dim"],
            "depth": config["n_layers"],
            "heads": config["n_heads"],
            "kv_heads": config["n_kv_heads"],
            "hidden": config["hidden_dim"],
            "longest": config["max_seq_len"],
            "tied": config["shared_classifier"],
            "ends": (1,),
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses what its blocks refuse."""
        self._set(ends=tuple(self.ends))
        decoder = self.decoder()
        decoder.shapes(self.width)
        self._set(rope_scaling=decoder.rope_scaling)

    @property
    def tokens(self) -> bool:
        """True: it reads ids."""
        return True

    @property
    def context(self) -> int:
        """The most steps of a row."""
        return self.longest

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return self.ends

    def decoder(self, depth: int | None = None) -> Decoder:
        """The blocks, or a part of them."""
        return Decoder(
            depth or self.depth,
            self.heads,
            key_dim=self.key_dim,
            kv_heads=self.kv_heads,
            hidden_dim=self.hidden,
            rope_base=self.rope_base,
            rope_scaling=self.rope_scaling,
            epsilon=self.epsilon,
            dropout=self.dropout,
            rematerialize=self.rematerialize,
        )

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _Llama(self, rngs)

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """Keys and values of every block."""
        _, heads, dim = self.decoder().shapes(self.width)["attention/key/kernel"]
        return {
            f"{i}/{name}": a
            for i in range(self.depth)
            for name, a in cached.slots(batch, length, heads, dim, dtype).items()
        }

    def serving(self, variables: Variables) -> "tuple[LlamaConfig, Variables]":
        """With arrays of each block's own."""
        if not self.scan:
            return self, variables
        first = f"{self.name or self.base_name}/"
        params = {}
        for name, a in variables.params.items():
            if name.startswith(f"{first}decoder/"):
                last = name.removeprefix(f"{first}decoder/")
                params |= {f"{first}blocks/{i}/{last}": a[i : i + 1] for i in range(self.depth)}
            else:
                params[name] = a
        return dataclasses.replace(self, scan=False), Variables(params, variables.state)

    def names(self, source: str) -> Iterator[Name]:
        """Names of Hugging Face's LlamaForCausalLM ("huggingface"), and of llama2.c's .bin ("llama2.c")."""
        if source == "llama2.c" and self.scan:
            yield from self._names_of_llama2c()
        elif source == "huggingface":
            yield from self._names_of_huggingface()
        else:
            yield from super().names(source)  # raises

    def _names_of_huggingface(self) -> Iterator[Name]:
        copies = ("lm_head.weight",) if self.tied else ()
        yield Name("tokens/embeddings", "model.embed_tokens.weight", SAME, copies=copies)
        heads, kv_heads = self.heads, self.kv_heads or self.heads
        for ours, theirs, layout in (
            ("attention_norm/scale", "input_layernorm", SAME),
            ("attention/query/kernel", "self_attn.q_proj", heads_in(heads)),
            ("attention/key/kernel", "self_attn.k_proj", heads_in(kv_heads)),
            ("attention/value/kernel", "self_attn.v_proj", heads_in(kv_heads)),
            ("attention/output/kernel", "self_attn.o_proj", heads_out(heads)),
            ("mlp_norm/scale", "post_attention_layernorm", SAME),
            ("mlp/gate/kernel", "mlp.gate_proj", DENSE),
            ("mlp/up/kernel", "mlp.up_proj", DENSE),
            ("mlp/down/kernel", "mlp.down_proj", DENSE),
        ):
            sources = [f"model.layers.{i}.{theirs}.weight" for i in range(self.depth)]
            if self.scan:
                yield Name(f"decoder/{ours}", sources, layout)
            else:
                yield from (Name(f"blocks/{i}/{ours}", [s], layout) for i, s in enumerate(sources))
        yield Name("last_norm/scale", "model.norm.weight", SAME)
        if not self.tied:
            yield Name("head/kernel", "lm_head.weight", DENSE)

    def _names_of_llama2c(self) -> Iterator[Name]:
        heads, kv_heads = self.heads, self.kv_heads or self.heads
        yield Name("tokens/embeddings", "tok_embeddings", SAME)
        for ours, theirs, layout in (
            ("attention_norm/scale", "attention_norm", SAME),
            ("attention/query/kernel", "wq", each(heads_in_turned(heads))),
            ("attention/key/kernel", "wk", each(heads_in_turned(kv_heads))),
            ("attention/value/kernel", "wv", each(heads_in(kv_heads))),
            ("attention/output/kernel", "wo", each(heads_out(heads))),
            ("mlp_norm/scale", "ffn_norm", SAME),
            ("mlp/gate/kernel", "w1", each(DENSE)),
            ("mlp/down/kernel", "w2", each(DENSE)),
            ("mlp/up/kernel", "w3", each(DENSE)),
        ):
            yield Name(f"decoder/{ours}", theirs, layout)
        yield Name("last_norm/scale", "norm", SAME)
        if not self.tied:
            yield Name("head/kernel", "output", DENSE)


class _Llama(nnx.Module):
    def __init__(self, spec: LlamaConfig, rngs: nnx.Rngs):
        self.spec = spec
        table: Any = Embedding(spec.vocab, spec.width, "normal")
        self.tokens = table.build((None,), rngs)
        if spec.scan:
            prefix = f"{spec.name or spec.base_name}/decoder"
            self.decoder = DecoderModule(spec.decoder(), spec.width, rngs, prefix)
        else:
            self.blocks = nnx.List([DecoderModule(spec.decoder(1), spec.width, rngs) for _ in range(spec.depth)])
        self.last_norm: Any = RMSNormalization(spec.epsilon).build((None, spec.width), rngs)
        head: Any = None if spec.tied else Dense(spec.vocab, use_bias=False).build((None, spec.width), rngs)
        self.head = head

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        ids, positions = given["ids"], given["positions"]
        assert ids is not None
        if ids.shape[1] > spec.longest:
            raise ValueError(f"{spec.who}: rows of {ids.shape[1]} ids came, it reads {spec.longest} at most (longest)")
        mask = None if given["attention_mask"] is None else given["attention_mask"] != 0
        y = look_up(self.tokens.embeddings[...], ids, spec.who)
        for part in self._parts():
            y, _ = part.masked(y, mask, train=train, rngs=rngs, positions=positions)
        return self._logits(y)

    def decode(
        self, step: Step, cache: Cache, memory: Memory, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, Cache]:
        """See `Generative`."""
        x, new, first = look_up(self.tokens.embeddings[...], step.ids, self.spec.who), dict(cache), 0

        def look(first: int, i: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            seen, after = cached.to_cache(query, key, value, cached.part(cache, first + i), step)
            new.update(cached.with_part({}, first + i, after))
            return seen

        for part in self._parts():
            x = part.step(x, step.positions, lambda i, *qkv, first=first: look(first, i, *qkv))
            first += part.spec.depth
        return self._logits(x[:, -1:])[:, 0], new

    def _parts(self) -> list[DecoderModule]:
        return [self.decoder] if self.spec.scan else list(self.blocks)

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.last_norm(x, train=False)
        if self.head is None:
            return kernels.dense(x, self.tokens.embeddings[...].astype(x.dtype), transpose_kernel=True)
        return affine(x, self.head.kernel[...], None)


def _scaling(who: str, rope: Mapping[str, Any]) -> tuple[float, ...] | None:
    """`rope_scaling` or `rope_parameters` of a config.json."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return (float(rope["factor"]),)
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return tuple(float(rope[key]) for key in keys)
    raise ValueError(f"{who}: rope_type {kind!r} of the config.json is not built here; known: default, linear, llama3")
