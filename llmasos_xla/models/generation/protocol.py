"""What a model that writes token after token defines, so that one loop, one set of samplers, one beam search serve all.

Decoder-only transformers, encoder-decoders and recurrent language models are the same to the loop: a function from the
next ids and a cache of fixed shape to the next logits and the new cache.

How a batch of prompts of different lengths lies: all rows end at the same slot of the cache. A shorter prompt has
padding ahead of it, so each step of all rows goes into one slot, whose number is a scalar; `Step.real` says which steps
are padding, and positions count from a row's first real step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from llmasos_xla.core import Variables
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import sample_rank

Cache = dict[str, jax.Array]
"""What a model has seen, of fixed shapes. Axis 0 of every array is the batch: beam search gathers rows along it."""

Memory = dict[str, jax.Array]
"""What an encoder gave, which no step changes; axis 0 of every array is the batch. Empty for models without one."""


class Step(NamedTuple):
    """The ids that a call of `decode` gets: a whole prompt (time = its length, padded), later one of each row (1)."""

    ids: Int[Array, "batch time"]
    """0 where a step is padding."""
    positions: Int[Array, "batch time"]
    """How many real ids of the row stand before each; 0 at padding."""
    real: Bool[Array, "batch time"]
    """False at padding, which stands ahead of a row's first id: a recurrent state goes past it unchanged."""
    index: int | Int[Array, ""]
    """Slot of the cache that the first of these steps takes. 0, a Python int, for the prompt: nothing stands before."""
    seen: Bool[Array, "batch length"]
    """Which of the cache's slots hold real steps, these included; `attend` sees to what is causal among these."""


@dataclasses.dataclass(frozen=True)
class Generative(Config):
    """Base of the models that `lm.generate` writes with.

    Besides `__call__`, its module has the method

        decode(step: Step, cache: Cache, memory: Memory, *, train, rngs) -> (logits [batch, vocab], new cache)

    which gives the logits that follow the *last* of the step's ids, and, where an encoder reads first,

        encode(x, *, train, rngs) -> Memory

    for the encoder's inputs as `bind` makes them: an array, or a dict by the names of `encoder_inputs`. The new cache
    has the keys, shapes and dtypes of the old one, so that it can be updated in place. `decode` of all ids at once and
    of one after the other must give the same logits, which are those of `__call__`. Both are called through
    `functions`. `train` is always False.

    For attention, `generation.attend` has the cache's arrays, the update and the masks:

        def start(self, batch, length, dtype):
            return {f"{i}/{n}": a for i in range(self.depth)
                    for n, a in attend.slots(batch, length, self.kv_heads, self.dim, dtype).items()}

        def decode(self, step, cache, memory, *, train, rngs):
            ...
            for i in range(depth):
                ...
                seen, new = attend.to_cache(query, key, value, attend.part(cache, i), step)
                cache = attend.with_part(cache, i, new)
            return head(x[:, -1:])[:, 0], cache

    A recurrent model keeps its state in the cache and ignores `length`; where `step.real` is False its state stays.
    """

    encoder_inputs: ClassVar[tuple[str, ...]] = ()
    """Which of `inputs` an encoder reads; () for a model without one. They come first in `inputs`."""

    @property
    def context(self) -> int | None:
        """How many ids of a row it can read at most, prompt included; None for any number."""
        return None

    @property
    def first_ids(self) -> tuple[int, ...]:
        """What a decoder behind an encoder starts with where the caller gives nothing; such models define it."""
        return ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids at which a text ends, unless the caller says others."""
        return ()

    def start(self, batch: int, length: int, dtype: Any) -> Cache:
        """The cache before the first step, for `length` ids a row; keys and values, or a state, in `dtype`."""
        raise NotImplementedError(f"{type(self).__name__} does not define start")

    def adjust(
        self, logits: Float[Array, "batch vocab"], ids: Int[Array, "batch new"], count: Int[Array, ""]
    ) -> Float[Array, "batch vocab"]:
        """The logits with what may not come next set to -inf (Whisper's suppressed tokens and order of time stamps).

        `ids` are those written so far, the first `count` of the axis, in room for all that may be written.
        """
        return logits

    def serving(self, variables: Variables) -> "tuple[Generative, Variables]":
        """The same model as it decodes fastest, and its variables so; called once, not in each step.

        A stack of scanned blocks comes apart here: a slice of a stacked array would be a copy in every step.
        """
        return self, variables


class DecoderOnly(Generative):
    """Base of models that go on with a row of ids: ids [batch, time] -> logits of the next id [batch, time, vocab]."""

    vocab: int

    def sample_shape(self) -> Shape:
        """Rows of any length."""
        return (None,)

    def output_shape(self, shape: Shape) -> Shape:
        """(time, vocab)."""
        sample_rank(self.who, shape, "time")
        return (shape[0], self.vocab)


class EncoderDecoder(Generative):
    """Base of models that read ids and write others: the decoder starts with `start_id`, `end` ends a text."""

    vocab: int
    start_id: int
    end: int | None

    @property
    def targets(self) -> int:
        """Number of ids that the decoder writes."""
        return self.vocab

    @property
    def first_ids(self) -> tuple[int, ...]:
        """What the decoder reads first."""
        return (self.start_id,)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id that ends a text."""
        return () if self.end is None else (self.end,)

    def sample_shape(self) -> Shape:
        """Rows of any length."""
        return (None,)

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        """What either side reads."""
        return ("ids", "decoder_input_ids")

    def output_shape(self, shape: Shape) -> Shape:
        """(steps, targets)."""
        sample_rank(self.who, shape, "time")
        return (None, self.targets)


class Functions(NamedTuple):
    """A generative model as pure functions."""

    start: Callable[[int, int, Any], Cache]
    """`start(batch, length, dtype)`"""
    encode: Callable[[Variables, Any], Memory]
    """`encode(variables, x)`; {} for a model without an encoder."""
    decode: Callable[[Variables, Step, Cache, Memory], tuple[jax.Array, Cache]]
    """`decode(variables, step, cache, memory) -> (logits [batch, vocab], cache)`"""


@functools.lru_cache(maxsize=64)
def functions(config: Generative) -> Functions:
    """The pure functions of a model that generates."""
    module = config.name or config.base_name
    decode = config.spec().net(f"{module}.decode").apply
    encode = config.spec().net(f"{module}.encode").apply if config.encoder_inputs else None

    def encoded(variables: Variables, x: Any) -> Memory:
        return {} if encode is None else encode(variables, x, train=False)[0]

    def decoded(variables: Variables, step: Step, cache: Cache, memory: Memory) -> tuple[jax.Array, Cache]:
        return decode(variables, step, cache, memory, train=False)[0]

    return Functions(config.start, encoded, decoded)
