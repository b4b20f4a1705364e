"""BERT (Devlin et al. 2019): a bidirectional encoder with heads for classes, tokens, hidden words and sentences."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models._parts import (
    Dropped,
    FeedForward,
    Projection,
    SelfAttention,
    Table,
    dropping,
    layer_norm,
    or_same,
)
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, one_of, sample_rank
from llmasos_xla.models.pretrained import names as n
from llmasos_xla.models.pretrained.names import SAME, Name

TASKS = ("classification", "tokens", "masked-lm", "embeddings", "hidden")
"""What a BERT may be asked for."""

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
}  # fmt: skip
"""Hugging Face's names -> ours."""

_ARCHITECTURES = {
    "BertForSequenceClassification": "classification",
    "BertForTokenClassification": "tokens",
    "BertForMaskedLM": "masked-lm",
    "BertForPreTraining": "masked-lm",
    "BertModel": "hidden",
}

_DEVIATION = 0.02
"""Of the initial values of kernels and tables."""


@dataclasses.dataclass(frozen=True)
class BertConfig(Config):
    """BERT (Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers for language understanding").

    int ids [batch, time] -> what the task says. `attention_mask` [batch, time] is 0 where a step is padding, which
    changes no real step's output; `token_type_ids` [batch, time] tell the first text from the second, 0 if not given.

    | task | output |
    | --- | --- |
    | "classification" | logits [batch, classes], of the first step through the pooler |
    | "tokens" | logits [batch, time, classes] |
    | "masked-lm" | logits [batch, time, vocab]; the output layer is the table of embeddings |
    | "embeddings" | [batch, width]: the mean over real steps, of length 1 if `normalize` (Reimers and Gurevych 2019) |
    | "hidden" | [batch, time, width] |

    Args:
        vocab: number of ids.
        context: the most steps of a row.
        width: features of a token.
        depth: number of blocks.
        heads: number of attention heads, a divisor of the width.
        hidden: features inside of the feed-forward network.
        types: number of token types.
        activation: of the feed-forward network.
        epsilon: of the normalizations.
        dropout: share of embeddings and half blocks' outputs that is dropped in training.
        attention_dropout: share of attention weights that is dropped in training.
        task: one of the above.
        classes: number of logits of "classification" and "tokens".
        normalize: whether "embeddings" have length 1.

    >>> config = BertConfig(vocab=30, width=8, depth=1, heads=2, hidden=16, task="classification", classes=3)
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> net.apply(variables, {"ids": jnp.array([[5, 6, 0]]), "attention_mask": jnp.array([[1, 1, 0]])})[0].shape
    (1, 3)
    """

    vocab: int = 30522
    context: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    types: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    task: str = "classification"
    classes: int = 2
    normalize: bool = True

    family: ClassVar[str] = "bert"
    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask", "token_type_ids")
    presets: ClassVar[Mapping[str, str]] = {"bert": "base", "bert_large": "large", "minilm": "minilm"}
    huggingface: ClassVar[tuple[str, ...]] = ("bert",)
    # What stands on top for other tasks than the one that is asked for.
    ignored: ClassVar[tuple[str, ...]] = (
        r"(^|\.)embeddings\.position_ids$", r"(^|\.)pooler\.", r"^cls\.", r"^classifier\.", r"^qa_outputs\."
    )  # fmt: skip

    @classmethod
    def base(cls, **sizes: Any) -> "BertConfig":
        """BERT base, 110 million parameters."""
        return cls(**sizes)

    @classmethod
    def large(cls, **sizes: Any) -> "BertConfig":
        """BERT large, 340 million parameters."""
        return cls(**{"width": 1024, "depth": 24, "heads": 16, "hidden": 4096, **sizes})

    @classmethod
    def minilm(cls, **sizes: Any) -> "BertConfig":
        """all-MiniLM-L6-v2: 22.7 million parameters, sentence embeddings of 384 features (Wang et al. 2020)."""
        return cls(**{"width": 384, "depth": 6, "hidden": 1536, "task": "embeddings", **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "BertConfig":
        """Of a BertModel's or BertFor...'s config.json; the task is the architecture's unless `task` is given."""
        activation = config.get("hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            raise ValueError(f"{cls.__name__}: hidden_act {activation!r} is not built here; known: {known}")
        for refused, usual in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if config.get(refused, usual) != usual:
                raise ValueError(f"{cls.__name__}: {refused}={config[refused]!r} of the config.json is not built here")
        architecture = (config.get("architectures") or ["BertModel"])[0]
        if "task" not in sizes and architecture not in _ARCHITECTURES:
            raise ValueError(
                f"{cls.__name__}: there is no head for {architecture!r}; say what is wanted, task= one of "
                f"{', '.join(TASKS)}"
            )
        labels = config.get("id2label")
        given = {
            "vocab": config["vocab_size"],
            "context": config["max_position_embeddings"],
            "width": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "hidden": config["intermediate_size"],
            "types": config.get("type_vocab_size", 2),
            "activation": ACTIVATIONS[activation],
            "epsilon": config.get("layer_norm_eps", 1e-12),
            "dropout": config.get("hidden_dropout_prob", 0.1),
            "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
            "task": _ARCHITECTURES.get(architecture),
            "classes": config.get("num_labels", 2) if labels is None else len(labels),
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses unknown tasks and a width that its heads do not divide."""
        self._set(task=one_of(self.who, "task", self.task, TASKS))
        if self.width % self.heads:
            raise ValueError(f"{self.who}: a width of {self.width} does not divide into {self.heads} heads")
        for name in ("dropout", "attention_dropout"):
            number(self.who, name, getattr(self, name), least=0.0, below=1.0)
        if number(self.who, "epsilon", self.epsilon, least=0.0) == 0:
            raise ValueError(f"{self.who}: epsilon wants a positive number, got 0")

    @property
    def integers(self) -> Mapping[str, int | None]:
        """Ids, mask and types are."""
        return {**super().integers, "token_type_ids": self.types}

    def sample_shape(self) -> Shape:
        """Rows of any length."""
        return (None,)

    def output_shape(self, shape: Shape) -> Shape:
        """As the task says."""
        sample_rank(self.who, shape, "time")
        (time,) = shape
        return {
            "classification": (self.classes,),
            "tokens": (time, self.classes),
            "masked-lm": (time, self.vocab),
            "embeddings": (self.width,),
            "hidden": (time, self.width),
        }[self.task]

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _Bert(self, rngs)

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface"), of the BertFor... of the task; heads may be lacking."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        for ours, theirs in (("tokens", "word"), ("positions", "position"), ("types", "token_type")):
            shared = ("cls.predictions.decoder.weight",) * (self.task == "masked-lm" and ours == "tokens")
            yield Name(f"{ours}/embeddings", f"bert.embeddings.{theirs}_embeddings.weight", SAME, copies=shared)
        yield from n.layer_norm("embeddings_norm", "bert.embeddings.LayerNorm")
        for i in range(self.depth):
            here, there = f"blocks/{i}", f"bert.encoder.layer.{i}"
            for part in ("query", "key", "value"):
                ours, theirs = f"{here}/attention/{part}", f"{there}.attention.self.{part}"
                yield Name(f"{ours}/kernel", f"{theirs}.weight", n.heads_in(self.heads))
                yield Name(f"{ours}/bias", f"{theirs}.bias", n.heads_bias(self.heads))
            ours, theirs = f"{here}/attention/output", f"{there}.attention.output"
            yield Name(f"{ours}/kernel", f"{theirs}.dense.weight", n.heads_out(self.heads))
            yield Name(f"{ours}/bias", f"{theirs}.dense.bias", SAME)
            yield from n.layer_norm(f"{here}/attention_norm", f"{theirs}.LayerNorm")
            yield from n.dense(f"{here}/mlp/up", f"{there}.intermediate.dense")
            yield from n.dense(f"{here}/mlp/down", f"{there}.output.dense")
            yield from n.layer_norm(f"{here}/mlp_norm", f"{there}.output.LayerNorm")
        for name in self._head_names():
            yield name._replace(optional=True)

    def _head_names(self) -> Iterator[Name]:
        if self.task == "classification":
            yield from n.dense("pooler", "bert.pooler.dense")
        if self.task in ("classification", "tokens"):
            yield from n.dense("classifier", "classifier")
        if self.task == "masked-lm":
            yield from n.dense("transform", "cls.predictions.transform.dense")
            yield from n.layer_norm("transform_norm", "cls.predictions.transform.LayerNorm")
            yield Name("decoder/bias", "cls.predictions.bias", SAME, copies=("cls.predictions.decoder.bias",))


class _Block(nnx.Module):
    def __init__(self, spec: BertConfig, rngs: nnx.Rngs):
        self.attention = SelfAttention(spec.width, spec.heads, rngs, deviation=_DEVIATION)
        self.attention_norm = layer_norm(spec.width, spec.epsilon, rngs)
        self.mlp = FeedForward(spec.width, spec.hidden, spec.activation, rngs, deviation=_DEVIATION)
        self.mlp_norm = layer_norm(spec.width, spec.epsilon, rngs)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, dropped: Dropped, dropped_weights: Dropped | None
    ) -> jax.Array:
        x = self.attention_norm(x + dropped(self.attention(x, mask, dropped_weights)), train=False)
        return self.mlp_norm(x + dropped(self.mlp(x)), train=False)


class _Bert(nnx.Module):
    def __init__(self, spec: BertConfig, rngs: nnx.Rngs):
        self.spec = spec

        def table(rows: int) -> Table:
            return Table(spec.who, rows, spec.width, _DEVIATION, rngs)

        def head(width: int) -> Projection:
            return Projection((spec.width, width), rngs, deviation=_DEVIATION)

        self.tokens, self.positions, self.types = table(spec.vocab), table(spec.context), table(spec.types)
        self.embeddings_norm = layer_norm(spec.width, spec.epsilon, rngs)
        self.blocks = nnx.List([_Block(spec, rngs) for _ in range(spec.depth)])
        if spec.task == "classification":
            self.pooler = head(spec.width)
        if spec.task in ("classification", "tokens"):
            self.classifier = head(spec.classes)
        if spec.task == "masked-lm":
            self.transform = head(spec.width)
            self.transform_norm = layer_norm(spec.width, spec.epsilon, rngs)
            self.decoder = _Bias(spec.vocab)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        mask = None if given["attention_mask"] is None else given["attention_mask"].astype(bool)
        dropped = or_same(dropping(spec.who, spec.dropout, train, rngs))
        y = dropped(self._embedded(given))
        for block in self.blocks:
            y = block(y, mask, dropped, dropping(spec.who, spec.attention_dropout, train, rngs))
        if spec.task == "hidden":
            return y
        if spec.task == "embeddings":
            return _mean(y, mask, spec.normalize)
        if spec.task == "masked-lm":
            y = self.transform_norm(self.transform(y, spec.activation), train=False)
            return self.tokens.logits(y, self.decoder.bias[...])
        y = self.pooler(y[:, 0], "tanh") if spec.task == "classification" else y
        return self.classifier(dropped(y))

    def _embedded(self, given: Mapping[str, jax.Array | None]) -> jax.Array:
        ids, types = given["ids"], given["token_type_ids"]
        assert ids is not None
        time = ids.shape[1]
        if time > self.spec.context:
            raise ValueError(
                f"{self.spec.who}: rows of {time} ids came, it reads {self.spec.context} at most (context)"
            )
        y = self.tokens(ids) + self.positions.embeddings[...][None, :time]
        y = y + (self.types(types) if types is not None else self.types.embeddings[...][None, :1])
        return self.embeddings_norm(y, train=False)


class _Bias(nnx.Module):
    def __init__(self, size: int):
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))


def _mean(y: jax.Array, mask: jax.Array | None, normalize: bool) -> jax.Array:
    """[batch, time, width] -> [batch, width], over real steps; sums are float32."""
    wide = y.astype(jnp.float32)
    real = jnp.ones((*y.shape[:2], 1), jnp.float32) if mask is None else mask[..., None].astype(jnp.float32)
    mean = jnp.sum(wide * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1.0)
    if normalize:
        mean = mean * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(mean), axis=-1, keepdims=True), 1e-24))
    return mean.astype(y.dtype)
