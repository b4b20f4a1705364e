"""A recurrent encoder and decoder with attention between them, of Bahdanau's or of Luong's kind."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models._parts import Projection, Table, dropping, or_same
from llmasos_xla.models._recurrence import GATES, Recurrence, State, at_the_left, empty, torch_names
from llmasos_xla.models.generation.protocol import Cache, EncoderDecoder, Memory, Step
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, one_of, whole
from llmasos_xla.models.layers.recurrent import row_lengths
from llmasos_xla.models.pretrained import names as n
from llmasos_xla.models.pretrained.names import SAME, Name

ATTENTIONS = ("luong", "bahdanau")
"""Kinds of attention."""


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(EncoderDecoder):
    """A recurrent encoder-decoder with attention (Bahdanau et al. 2015; Luong et al. 2015).

    int ids [batch, time] and `decoder_input_ids` [batch, steps], which are the wanted ids one place later, behind
    `start_id` -> logits [batch, steps, target_vocab] of the wanted ids. `attention_mask` [batch, time] is 0 at padding,
    which stands at the right. The encoder reads in both directions. With states h_j of the encoder and s_t of the
    decoder the scores are

        luong: s_t . (W h_j)        bahdanau: v . tanh(W h_j + U s_{t-1})

    and the mean of h_j by their softmax, c_t, goes with s_t into the output layer, tanh(A [s_t, c_t]). Bahdanau's also
    goes into the decoder at step t, so that its steps are taken one by one; Luong's are a single call of the kernel.

    Args:
        vocab: number of ids that the encoder reads.
        target_vocab: number of ids that the decoder writes; as many if None.
        width: features of an id's vector.
        hidden: units of a direction of the encoder, and of the decoder.
        depth: number of encoder layers.
        cell: "gru" or "lstm".
        attention: "luong" or "bahdanau".
        dropout: share of vectors, encoder outputs and inputs of the output layer that is dropped in training.
        start_id: what the decoder reads first.
        end: the id that ends a text; None for none.

    >>> config = Seq2SeqConfig(vocab=20, target_vocab=30, width=8, hidden=8)
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> x = {"ids": jnp.array([[5, 6, 2]]), "decoder_input_ids": jnp.array([[1, 7]])}
    >>> net.apply(variables, x, train=False)[0].shape
    (1, 2, 30)
    """

    vocab: int = 8000
    target_vocab: int | None = None
    width: int = 256
    hidden: int = 256
    depth: int = 1
    cell: str = "gru"
    attention: str = "luong"
    dropout: float = 0.2
    start_id: int = dataclasses.field(default=1, metadata={"checked": False})
    end: int | None = 2

    family: ClassVar[str] = "seq2seq"
    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask", "decoder_input_ids")
    encoder_inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask")
    presets: ClassVar[Mapping[str, str]] = {"seq2seq": "luong", "seq2seq_bahdanau": "bahdanau"}

    @classmethod
    def luong(cls, **sizes: Any) -> "Seq2SeqConfig":
        """Luong's attention."""
        return cls(**{"attention": "luong", **sizes})

    @classmethod
    def bahdanau(cls, **sizes: Any) -> "Seq2SeqConfig":
        """Bahdanau's attention."""
        return cls(**{"attention": "bahdanau", **sizes})

    def check(self) -> None:
        """Refuses unknown cells and kinds of attention."""
        self._set(cell=one_of(self.who, "cell", self.cell, GATES))
        self._set(attention=one_of(self.who, "attention", self.attention, ATTENTIONS))
        self._set(start_id=whole(self.who, "start_id", self.start_id, least=0))
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    @property
    def targets(self) -> int:
        """Number of ids that the decoder writes."""
        return self.target_vocab or self.vocab

    @property
    def integers(self) -> Mapping[str, int | None]:
        """Ids of either side, and the mask."""
        return {**super().integers, "decoder_input_ids": self.targets}

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _Seq2Seq(self, rngs)

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """The decoder's state; any number of ids fits."""
        return empty(self.cell, batch, self.hidden, dtype)

    def names(self, source: str) -> Iterator[Name]:
        """Those of a torch module with parts of these names ("torch")."""
        if source != "torch":
            yield from super().names(source)  # raises
        yield Name("tokens/embeddings", "tokens.weight", SAME)
        yield Name("target_tokens/embeddings", "target_tokens.weight", SAME)
        for i in range(self.depth):
            for direction, ending in (("forward", ""), ("backward", "_reverse")):
                yield from torch_names(f"recurrence/{i}/{direction}", "encoder", f"l{i}{ending}")
        yield from torch_names("decoder_recurrence", "decoder", "l0")
        for state in empty(self.cell, 1, 1, jnp.float32):
            yield from n.dense(f"bridge_{state}", f"bridge_{state}")
        yield from n.dense("memory_key", "memory_key", bias=False)
        if self.attention == "bahdanau":
            yield from n.dense("state_key", "state_key")
            yield from n.dense("score", "score", bias=False)
        yield from n.dense("combine", "combine")
        yield from n.dense("head", "head")


class _Both(nnx.Module):
    """A layer of the encoder."""

    def __init__(self, spec: Seq2SeqConfig, cin: int, rngs: nnx.Rngs):
        self.forward = Recurrence(spec.cell, cin, spec.hidden, rngs)
        self.backward = Recurrence(spec.cell, cin, spec.hidden, rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> tuple[jax.Array, State]:
        y, state = self.forward(x, None, lengths)
        back, first = self.backward(x, None, lengths, reverse=True)
        return jnp.concatenate([y, back], -1), {k: jnp.concatenate([state[k], first[k]], -1) for k in state}


class _Seq2Seq(nnx.Module):
    def __init__(self, spec: Seq2SeqConfig, rngs: nnx.Rngs):
        self.spec, hidden = spec, spec.hidden

        def dense(cin: int, cout: int, *, bias: bool = True) -> Projection:
            return Projection((cin, cout), rngs, bias=bias, deviation=cin**-0.5)

        self.tokens = Table(spec.who, spec.vocab, spec.width, 0.1, rngs)
        self.target_tokens = Table(spec.who, spec.targets, spec.width, 0.1, rngs)
        self.recurrence = nnx.List([_Both(spec, 2 * hidden if i else spec.width, rngs) for i in range(spec.depth)])
        fed = spec.width + (2 * hidden if spec.attention == "bahdanau" else 0)
        self.decoder_recurrence = Recurrence(spec.cell, fed, hidden, rngs)
        self.bridge_h = dense(2 * hidden, hidden)
        if spec.cell == "lstm":
            self.bridge_c = dense(2 * hidden, hidden)
        self.memory_key = dense(2 * hidden, hidden, bias=False)
        if spec.attention == "bahdanau":
            self.state_key, self.score = dense(hidden, hidden), dense(hidden, 1, bias=False)
        self.combine, self.head = dense(3 * hidden, hidden), dense(hidden, spec.targets)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec, given = self.spec, self.spec.unbind(x)
        steps = given["decoder_input_ids"]
        if steps is None:
            raise ValueError(f"{spec.who}: the input 'decoder_input_ids' is missing: the wanted ids behind start_id")
        dropped = or_same(dropping(spec.who, spec.dropout, train, rngs))
        memory = self._encoded(given, dropped)
        y, context, _ = self._decoded(dropped(self.target_tokens(steps)), memory, _started(memory), None)
        return self._logits(dropped(y), context)

    def encode(self, x: Any, *, train: bool, rngs: nnx.Rngs | None) -> Memory:
        """See `Generative`."""
        return self._encoded(self.spec.unbind(x), lambda x: x)

    def decode(
        self, step: Step, cache: Cache, memory: Memory, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, Cache]:
        """See `Generative`: padding ahead of a row goes behind it, where it changes no state."""
        x, lengths = self.target_tokens(step.ids), None
        first = isinstance(step.index, int) and step.index == 0
        state = _started(memory) if first else cache
        if x.shape[1] > 1:
            x, lengths = at_the_left(x, step.real)
        y, context, state = self._decoded(x, memory, state, lengths)
        last = jnp.zeros(len(x), jnp.int32) if lengths is None else jnp.maximum(lengths - 1, 0)
        y, context = (jnp.take_along_axis(a, last[:, None, None], axis=1)[:, 0] for a in (y, context))
        return self._logits(y, context), {name: a.astype(cache[name].dtype) for name, a in state.items()}

    def _encoded(self, given: Mapping[str, Any], dropped: Any) -> Memory:
        mask = given["attention_mask"]
        lengths = None if mask is None else row_lengths(mask.astype(bool))
        y, state = dropped(self.tokens(given["ids"])), {}
        for layer in self.recurrence:
            y, state = layer(y, lengths)
            y = dropped(y)
        real = jnp.ones(y.shape[:2], bool) if mask is None else mask.astype(bool)
        start = {f"start_{name}": getattr(self, f"bridge_{name}")(a, "tanh") for name, a in state.items()}
        return {"states": y, "keys": self.memory_key(y), "real": real, **start}

    def _decoded(
        self, x: jax.Array, memory: Memory, state: State, lengths: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, State]:
        """States and contexts of all steps, and the state after a row's last."""
        if self.spec.attention == "luong":
            y, state = self.decoder_recurrence(x, state, lengths)
            return y, _mean(jnp.einsum("bsh,bth->bst", y, memory["keys"]), memory), state

        def one(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, tuple[jax.Array, jax.Array]]:
            x, real = inputs
            asked = jnp.tanh(memory["keys"] + self.state_key(state["h"])[:, None])
            context = _mean(self.score(asked).swapaxes(1, 2), memory)[:, 0]
            y, new = self.decoder_recurrence(jnp.concatenate([x, context], -1)[:, None], state)
            new = {k: jnp.where(real[:, None], a.astype(state[k].dtype), state[k]) for k, a in new.items()}
            return new, (y[:, 0], context)

        time = jnp.arange(x.shape[1], dtype=jnp.int32)[:, None]
        real = jnp.ones((x.shape[1], x.shape[0]), bool) if lengths is None else time < lengths[None]
        state, (y, context) = jax.lax.scan(one, state, (x.swapaxes(0, 1), real))
        return y.swapaxes(0, 1), context.swapaxes(0, 1), state

    def _logits(self, y: jax.Array, context: jax.Array) -> jax.Array:
        return self.head(self.combine(jnp.concatenate([y, context], -1), "tanh"))


def _started(memory: Memory) -> State:
    return {name.removeprefix("start_"): a for name, a in memory.items() if name.startswith("start_")}


def _mean(scores: jax.Array, memory: Memory) -> jax.Array:
    """The encoder's states by the softmax of scores [batch, steps, time], in float32: [batch, steps, 2 * hidden]."""
    scores = jnp.where(memory["real"][:, None], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(memory["states"].dtype)
    return jnp.einsum("bst,bth->bsh", weights, memory["states"])
