"""Recurrent language models: embedding, LSTM or GRU layers, and an output layer that may be the embedding's table."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models._parts import Projection, Table, dropping, or_same
from llmasos_xla.models._recurrence import GATES, Recurrence, at_the_left, empty, torch_names
from llmasos_xla.models.generation.protocol import Cache, DecoderOnly, Memory, Step
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, one_of
from llmasos_xla.models.layers.recurrent import row_lengths
from llmasos_xla.models.pretrained import names as n
from llmasos_xla.models.pretrained.names import SAME, Name


@dataclasses.dataclass(frozen=True)
class RecurrentLMConfig(DecoderOnly):
    """A recurrent language model (Mikolov et al. 2010; Zaremba et al. 2014, "Recurrent neural network regularization").

    int ids [batch, time] -> logits of the next id [batch, time, vocab]. `attention_mask` [batch, time] is 0 at padding,
    which stands at the right of a row. Its state has a fixed size, so a step costs the same after any number of ids.

    Args:
        vocab: number of ids.
        width: features of an id's vector.
        hidden: units of a layer; the width if None.
        depth: number of recurrent layers.
        cell: "lstm" or "gru".
        tied: whether the output layer is the table of vectors (Press and Wolf 2017), which wants hidden = width.
        dropout: share of the vectors and of each layer's outputs that is dropped in training.
        end: the id that ends a text; None for none.

    >>> config = RecurrentLMConfig(vocab=20, width=8, cell="gru")
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> net.apply(variables, jnp.array([[3, 4, 5]]), train=False)[0].shape
    (1, 3, 20)
    """

    vocab: int = 10000
    width: int = 256
    hidden: int | None = None
    depth: int = 2
    cell: str = "lstm"
    tied: bool = False
    dropout: float = 0.2
    end: int | None = None

    family: ClassVar[str] = "recurrent_lm"
    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask")
    presets: ClassVar[Mapping[str, str]] = {"lstm_lm": "lstm", "gru_lm": "gru"}

    @classmethod
    def lstm(cls, **sizes: Any) -> "RecurrentLMConfig":
        """LSTM layers."""
        return cls(**{"cell": "lstm", **sizes})

    @classmethod
    def gru(cls, **sizes: Any) -> "RecurrentLMConfig":
        """GRU layers."""
        return cls(**{"cell": "gru", **sizes})

    def check(self) -> None:
        """Refuses unknown cells, and a tied table of another width."""
        self._set(cell=one_of(self.who, "cell", self.cell, GATES))
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        if self.tied and self.units != self.width:
            raise ValueError(f"{self.who}: tied=True wants hidden = width, got {self.units} and {self.width}")

    @property
    def units(self) -> int:
        """Units of a layer."""
        return self.hidden or self.width

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id that ends a text."""
        return () if self.end is None else (self.end,)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _RecurrentLM(self, rngs)

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """The layers' states; any number of ids fits."""
        return {
            f"{i}/{name}": a
            for i in range(self.depth)
            for name, a in empty(self.cell, batch, self.units, dtype).items()
        }

    def names(self, source: str) -> Iterator[Name]:
        """Those of a torch module of `encoder` (Embedding), `rnn` (LSTM or GRU) and `decoder` (Linear) ("torch")."""
        if source != "torch":
            yield from super().names(source)  # raises
        yield Name("tokens/embeddings", "encoder.weight", SAME)
        for i in range(self.depth):
            yield from torch_names(f"recurrence/{i}", "rnn", f"l{i}")
        if self.tied:
            yield Name("head/bias", "decoder.bias", SAME)
        else:
            yield from n.dense("head", "decoder")


class _RecurrentLM(nnx.Module):
    def __init__(self, spec: RecurrentLMConfig, rngs: nnx.Rngs):
        self.spec, units = spec, spec.units
        self.tokens = Table(spec.who, spec.vocab, spec.width, 0.1, rngs)
        self.recurrence = nnx.List(
            [Recurrence(spec.cell, units if i else spec.width, units, rngs) for i in range(spec.depth)]
        )
        self.head = _Bias(spec.vocab) if spec.tied else Projection((units, spec.vocab), rngs, deviation=units**-0.5)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        given = self.spec.unbind(x)
        lengths = None if given["attention_mask"] is None else row_lengths(given["attention_mask"].astype(bool))
        dropped = or_same(dropping(self.spec.who, self.spec.dropout, train, rngs))
        y = dropped(self.tokens(given["ids"]))
        for layer in self.recurrence:
            y, _ = layer(y, None, lengths)
            y = dropped(y)
        return self._logits(y)

    def decode(
        self, step: Step, cache: Cache, memory: Memory, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, Cache]:
        """See `Generative`: padding ahead of a row goes behind it, where it changes no state."""
        y, lengths = self.tokens(step.ids), None
        if step.ids.shape[1] > 1:
            y, lengths = at_the_left(y, step.real)
        new, last = {}, y
        for i, layer in enumerate(self.recurrence):
            state = {name.split("/")[1]: a for name, a in cache.items() if name.startswith(f"{i}/")}
            y, state = layer(y, state, lengths)
            last = state["h"]
            new |= {f"{i}/{name}": a.astype(cache[f"{i}/{name}"].dtype) for name, a in state.items()}
        return self._logits(last), new

    def _logits(self, x: jax.Array) -> jax.Array:
        return self.tokens.logits(x, self.head.bias[...]) if isinstance(self.head, _Bias) else self.head(x)


class _Bias(nnx.Module):
    def __init__(self, size: int):
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))
