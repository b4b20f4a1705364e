"""`lm.generate`: a model of the shelf goes on with a text, translates it, writes down what it hears."""

import math
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api._texts import Text, decoder_ids, encoder_texts, ids_of_texts
from llmasos_xla.api.network import Network
from llmasos_xla.core import Variables
from llmasos_xla.data.tokenizers.opening import load_tokenizer
from llmasos_xla.models.generation.programs import Programs, bucket, left_padded
from llmasos_xla.models.generation.protocol import Generative
from llmasos_xla.models.generation.sampling import Sampling

_CHECKED_EVERY = 32
"""Ids between two looks at stop strings."""
_PIECE_SECONDS = 0.05
"""About how long a streamed piece takes to write, where single ids come faster."""


def generate(
    model: Network,
    prompt: Any,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    stop: str | int | Sequence[str | int] | None = None,
    tokenizer: Any = None,
    decoder_prompt: Sequence[int] | None = None,
    seed: int = 0,
    stream: bool = False,
    dtype: Any = None,
) -> Any:
    """What a language model writes after a prompt, or of what its encoder reads.

    The keys and values of past steps are kept in a cache of fixed shape, so that two programs are compiled: one that
    reads prompts of up to so many ids (16, 32, 64, ...), one that writes all ids in a single dispatch. Prompts of
    different lengths make one batch; each row gets what it would get alone.

    Args:
        model: a `Network` of a family that generates, such as `lm.models.gpt2(...)`.
        prompt: a text, or a list of texts (with a tokenizer); a list of ids, or a list of these. For a model with an
            encoder this is what the encoder reads: texts, ids, or its inputs as an array or a dict.
        max_new_tokens: the most ids that are written.
        temperature: logits are divided by it before an id is drawn; 0 takes the most probable id.
        top_k: draw from so many of the most probable ids.
        top_p: draw from the most probable ids that together have this probability.
        num_beams: keep so many of the likeliest beginnings and give the best text (greedy otherwise).
        length_penalty: with beams, above 0 favors long texts, below 0 short ones.
        early_stopping: with beams, whether a row is done as soon as it has `num_beams` ended texts.
        stop: ids and texts at which to stop, besides the model's own; they are not part of the result.
        tokenizer: one of `lm.data.tokenizers`, a path, or anything with `encode(text)` and `decode(ids)`;
            `model.tokenizer`, that of the folder its weights came from, if None and texts came.
        decoder_prompt: ids that the decoder of a model with an encoder starts with; the model's own if None.
        seed: of what is drawn.
        stream: gives an iterator of pieces as they are written.
        dtype: of the cache, jnp.bfloat16 for half the memory; that of the weights if None.

    Returns:
        The text, or the ids where there is no tokenizer, without the prompt; a list of these for a list of prompts.
        With `stream` an iterator of pieces that together are that; of lists of pieces, one a prompt, for several.

    Raises:
        TypeError: for a model that does not generate.
        ValueError: for prompts that do not fit and arguments that contradict each other.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, Network) or not isinstance(config, Generative):
        what = type(config).__name__ if config is not None else type(model).__name__
        raise TypeError(f"generate: {what} writes no text; lm.models has gpt2, llama3_8b and others that do")
    stops = [stop] if isinstance(stop, str | int) else list(stop or ())
    strings = [s for s in stops if isinstance(s, str)]
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer is None and (strings or _is_text(prompt)):
        tokenizer = model.tokenizer
    _check(tokenizer, strings, num_beams, temperature, top_k, top_p, max_new_tokens, stream)
    alone, rows, x = _prompts(config, tokenizer, prompt, decoder_prompt)
    rooms = [max_new_tokens] * len(rows)
    if config.context is not None:
        longest = max(map(len, rows))
        rooms = [min(max_new_tokens, config.context - len(row)) for row in rows]
        if min(rooms) < 1:
            raise ValueError(
                f"generate: the prompt has {longest} ids, the model reads {config.context} at most, with what is to be "
                "written; cut the prompt"
            )
    serving = _serving(model, dtype)
    ends = (*config.end_ids, *(s for s in stops if not isinstance(s, str)))
    request = _Request(
        serving.programs,
        serving.variables,
        serving.programs.encode(serving.variables, x),
        *left_padded(rows, bucket(max(map(len, rows)))),
        Sampling.of(temperature, top_k, top_p),
        jnp.asarray(ends or (-1,), jnp.int32),
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(rows))),
        rooms,
    )
    if num_beams > 1:
        found = request.search(num_beams, length_penalty, early_stopping)
        written = [Text(tokenizer, row, strings).all(ids) for row, ids in zip(rows, found, strict=True)]
        return written[0] if alone else written
    texts = [Text(tokenizer, row, strings) for row in rows]
    pieces = request.pieces(texts, _CHECKED_EVERY if strings else None)
    if not stream:
        for _ in pieces:
            pass
        results = [text.result for text in texts]
        return results[0] if alone else results
    pieces = request.pieces(texts, 0)
    if not alone:
        return (step for step in pieces if any(len(piece) for piece in step))
    if tokenizer is None:
        return (piece for step in pieces for piece in step[0])
    return (step[0] for step in pieces if step[0])


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) or (isinstance(prompt, list | tuple) and any(isinstance(p, str) for p in prompt))


class _Serving(NamedTuple):
    of: tuple
    """The arrays that it was made of, and how adapters among them count."""
    variables: Variables
    programs: Programs


_SERVED: "weakref.WeakKeyDictionary[Network, dict[Any, _Serving]]" = weakref.WeakKeyDictionary()


def _serving(model: Network, dtype: Any) -> _Serving:
    """The model as it decodes, made anew when its weights are new; its programs stay."""
    learner = model.learner
    arrays = (*learner.evaluation_variables.params.values(), learner.spec.lora)
    kept = _SERVED.setdefault(model, {})
    key = None if dtype is None else jnp.dtype(dtype).name
    found = kept.get(key)
    if found is None or len(found.of) != len(arrays) or any(a is not b for a, b in zip(found.of, arrays)):
        assert isinstance(model.config, Generative)
        config, ready = model.config.serving(model.plain_variables)
        programs = Programs(config, dtype=dtype, log=learner.compiled)
        if found is not None and found.programs.config == config:
            programs = found.programs
        found = kept[key] = _Serving(arrays, ready, programs)
    return found


class _Request(NamedTuple):
    """What is to be written, as arrays."""

    programs: Programs
    variables: Variables
    memory: Any
    ids: np.ndarray
    real: np.ndarray
    sampling: Sampling
    ends: jax.Array
    keys: jax.Array
    rooms: list[int]
    """How many ids each row may write."""

    def search(self, beams: int, length_penalty: float, early_stopping: bool) -> list[list[int]]:
        """The best text of each row by beam search."""
        found = self.programs.search(
            self.variables,
            self.memory,
            self.ids,
            self.real,
            self.ends,
            self.rooms,
            beams_kept=beams,
            new=bucket(max(self.rooms)),
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        ids, lengths = np.asarray(found.ids[:, 0]), np.asarray(found.lengths[:, 0])
        return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    def pieces(self, texts: Sequence[Text], every: int | None) -> Iterator[list[Any]]:
        """Writes, and gives what each row has more of, every so many ids; None: all at once, 0: as time passes."""
        weights = self.variables, self.memory
        drawing = self.keys, self.sampling, self.ends
        # A row whose room is less writes on to no purpose until the others have filled theirs.
        rooms, most = np.asarray(self.rooms), max(self.rooms)
        state = self.programs.prefill(*weights, self.ids, self.real, *drawing, new=bucket(most))
        count, step, given = 1, every or 1, [0] * len(texts)
        while True:
            if every is None and count < most:
                state, count = self.programs.advance(*weights, state, *drawing, most), most
            # Where rows have ended the loop stops by itself, ahead of the count that was asked for.
            ids, lengths, done = (np.array(a) for a in (state.ids, state.lengths, state.done))
            lengths, ended = np.minimum(lengths, rooms), (done | (count >= rooms)).tolist()
            found = []
            for i, text in enumerate(texts):
                found.append(text.more(ids[i, given[i] : lengths[i]].tolist(), ended[i]))
                given[i] = int(lengths[i])
            yield found
            if all(end or text.stopped for end, text in zip(ended, texts, strict=True)):
                return
            stopped = np.array([text.stopped for text in texts])
            if stopped.any():
                state = state._replace(done=jnp.asarray(done | stopped))
            count, started = min(count + step, most), time.perf_counter()
            state = self.programs.advance(*weights, state, *drawing, count)
            if every == 0:
                state.count.block_until_ready()
                seconds = (time.perf_counter() - started) / step
                step = max(1, min(2 * step, int(_PIECE_SECONDS / max(seconds, 1e-6))))


def _prompts(
    config: Generative, tokenizer: Any, prompt: Any, decoder_prompt: Sequence[int] | None
) -> tuple[bool, list[list[int]], Any]:
    """Whether one result is wanted, the ids that the decoder starts with in each row, and what the encoder reads."""
    if config.encoder_inputs:
        alone, x, count = _encoder_inputs(config, tokenizer, prompt)
        first = list(config.first_ids if decoder_prompt is None else decoder_prompt)
        if not first:
            raise ValueError("generate: the decoder has nothing to start with; say decoder_prompt=[its first id]")
        config.check_tokens({"decoder_input_ids": np.asarray([first])})
        return alone, [first] * count, x
    if decoder_prompt is not None:
        raise ValueError(f"generate: {config.who} has no encoder; its prompt is all that it starts with")
    alone, rows = ids_of_texts(tokenizer, prompt, decoder_ids)
    if any(len(row) == 0 for row in rows):
        raise ValueError("generate: a prompt has no ids; start with the id that begins a text")
    ids = np.concatenate([np.asarray(row) for row in rows])[None]
    config.check_tokens(ids if len(config.inputs) == 1 else {config.inputs[0]: ids})
    return alone, rows, None


def _encoder_inputs(config: Generative, tokenizer: Any, prompt: Any) -> tuple[bool, Any, int]:
    text = isinstance(prompt, str) or (isinstance(prompt, Sequence) and not hasattr(prompt, "dtype"))
    if text:
        alone, rows = ids_of_texts(tokenizer, prompt, encoder_texts)
        length = bucket(max(map(len, rows)))
        ids, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        named = dict(zip(config.encoder_inputs, (ids, mask)))
    elif isinstance(prompt, Mapping):
        alone, named = False, {name: np.asarray(a) for name, a in prompt.items()}
    else:
        alone, named = False, {config.encoder_inputs[0]: np.asarray(prompt)}
    if unknown := named.keys() - set(config.encoder_inputs):
        wanted = ", ".join(config.encoder_inputs)
        raise ValueError(f"generate: the encoder reads {wanted}, not {sorted(unknown)[0]!r}")
    first = config.encoder_inputs[0]
    if first not in named:
        raise ValueError(f"generate: the encoder's input {first!r} is missing")
    config.check_tokens(named)
    # Not `bind`, which wants the decoder's inputs as well.
    return alone, named[first] if list(named) == [first] else named, len(named[first])


def _check(
    tokenizer: Any,
    strings: Sequence[str],
    num_beams: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    max_new_tokens: int,
    stream: bool,
) -> None:
    for name, value, least in (("num_beams", num_beams, 1), ("max_new_tokens", max_new_tokens, 1), ("top_k", top_k, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"generate: {name} wants an int of at least {least}, got {value!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"generate: temperature wants 0 or more, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p wants a probability above 0, got {top_p}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("generate: top_k and top_p say what is drawn from, and nothing is drawn at temperature 0")
    if num_beams > 1 and (temperature > 0 or stream):
        raise ValueError("generate: beam search draws nothing and knows its text at the end: no temperature, no stream")
    if "" in strings:
        raise ValueError("generate: a stop text is empty, which ends every text before it begins; leave it out")
    if strings and tokenizer is None:
        raise ValueError("generate: stop texts need a tokenizer; without one stop= takes ids")
