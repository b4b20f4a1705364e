"""Tasks on sound: what is said, and whether anybody speaks; whole, or as it comes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import jax
import numpy as np

from llmasos_xla.api.pipelines.brought import Brought, one_or_many
from llmasos_xla.api.pipelines.buckets import power_of_two
from llmasos_xla.data.sound import read_sound
from llmasos_xla.data.tokenizers.protocol import Tokenizer
from llmasos_xla.models.ctc import CTCConfig
from llmasos_xla.models.ctc_decoding import beam_search, greedy
from llmasos_xla.models.parakeet import HOP, RATE, ParakeetConfig
from llmasos_xla.models.silero import SileroVADConfig

Sound = Any
"""A path, or an array of samples [time] or [time, channels]."""


_CONTEXT = 16
"""Ids before a piece of text that are read with it."""


class Speech(NamedTuple):
    """Where somebody speaks, in seconds."""

    start: float
    end: float


class Window(NamedTuple):
    """How probable speech is in a window of sound."""

    start: float
    """In seconds."""
    score: float


@final
class Transcription:
    """`transcribe("a.wav")` -> its text; of a list, a list. `transcribe.stream(chunks)` yields it as it comes.

    For a recognizer by CTC. `tokenizer=` says what its ids are: a text or list with a piece for each id, the blank's
    (id 0) first and unused, or one of `data.tokenizers`; where that has no blank, and of Parakeet, its id i is the
    model's i + 1.

    Args:
        brought: model and pieces.
        rate: samples a second that the model reads, where it does not say so itself.
        beams: readings that a search keeps, for whole sounds; 1 takes the best path.
        batch_size: sounds that go through the network together.
    """

    def __init__(self, brought: Brought, *, rate: int | None = None, beams: int = 1, batch_size: int = 8):
        self._network = brought.network()
        config = self._network.config
        if not isinstance(config, CTCConfig | ParakeetConfig):
            raise ValueError(f"pipeline: {brought.task!r} wants a recognizer by CTC, got {config.who}")
        self._beams, self._batch_size = beams, batch_size
        if isinstance(config, ParakeetConfig):
            self.rate, self._stride = rate or RATE, HOP * config.subsampling
            self._features: Any = jax.jit(config.features)
        elif config.features is not None:
            self.rate, self._stride, self._features = rate or config.features.rate, config.stride, None
        else:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a recognizer that reads sound, {config.who} reads features"
            )
        given = brought.given_tokenizer
        pieces = isinstance(given, str | list | tuple) and not _is_path(given, config.vocab)
        self._pieces: Sequence[str] | Tokenizer = given if pieces else brought.tokenizer()
        size = self._pieces.size if isinstance(self._pieces, Tokenizer) else len(self._pieces)
        behind = isinstance(self._pieces, Tokenizer) and (
            size == config.vocab - 1 or isinstance(config, ParakeetConfig)
        )
        self._shift = 1 if behind else 0
        if size not in (config.vocab, config.vocab - self._shift):
            raise ValueError(
                f"pipeline: the model has {config.vocab} ids, the tokenizer {size}; the first is the blank's, which no "
                "text has"
            )

    def __call__(self, sounds: Sound | Sequence[Sound], *, rate: int | None = None) -> Any:
        """The text of each sound; `rate` is that of arrays, if not the model's."""
        items, alone = one_or_many(sounds, "sound", single)
        samples = [read_sound(sound, self.rate, source_rate=rate) for sound in items]
        found = [""] * len(samples)
        for places, logits in self._logits(samples):
            if self._beams > 1:
                rows = [each[0].labels for each in beam_search(logits, width=self._beams)]
            else:
                rows = [[i for i in row if i] for row in np.asarray(greedy(logits)).tolist()]
            for place, row in zip(places, rows):
                found[place] = self._text(row)
        return found[0] if alone else found

    def _logits(self, samples: Sequence[np.ndarray]) -> Iterator[tuple[list[int], Any]]:
        """Sounds of like length together, and where they stood: few shapes, so that few programs serve all."""
        stride = self._stride
        by_steps: dict[int, list[int]] = {}
        for place, one in enumerate(samples):
            by_steps.setdefault(power_of_two(max(1, -(-len(one) // stride))), []).append(place)
        for steps, places in sorted(by_steps.items()):
            for start in range(0, len(places), self._batch_size):
                part = places[start : start + self._batch_size]
                rows = [part[0]] * (min(power_of_two(len(part)), self._batch_size) - len(part)) + part
                x = np.stack([np.pad(samples[i], (0, steps * stride - len(samples[i]))) for i in rows])
                lengths = np.array([len(samples[i]) for i in rows], np.int32)
                given = {"sound": x, "lengths": lengths} if self._features is None else self._features(x, lengths)
                yield part, np.asarray(self._network(**given))[len(rows) - len(part) :]

    def stream(self, chunks: Iterable[Any], *, rate: int | None = None) -> Iterator[str]:
        """What is said, piece by piece as it is heard: chunks of samples in, texts out.

        Together the texts are those of the best path through the whole sound. Raises ValueError for a model that looks
        ahead, and a rate that is not the model's: resampling chunks one by one would leave a click between them.
        """
        if rate not in (None, self.rate):
            raise ValueError(f"pipeline: this model streams sound of {self.rate} samples a second, got {rate}")
        last, context, new = 0, [], []
        for logits in _streamed(self._network.stream(), chunks):
            for i in logits[0].argmax(-1).tolist():
                if i not in (0, last):
                    new.append(i)
                last = i
            # A few ids before, since what a piece says may hang on them; not all, or each chunk would cost more.
            text = self._text(context + new)
            if new and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(self._text(context)) :]
                context, new = (context + new)[-_CONTEXT:], []
        if new:
            yield self._text(context + new)[len(self._text(context)) :]

    def _text(self, ids: Sequence[int]) -> str:
        if isinstance(self._pieces, Tokenizer):
            return self._pieces.decode([i - self._shift for i in ids])
        return "".join(self._pieces[int(i)] for i in ids)


@final
class VoiceActivity:
    """`speech("a.wav")` -> `[Speech(start, end), ...]` in seconds; `speech.stream(chunks)` yields windows as they come.

    Much as Silero's own tools decide: speech begins where a window's probability reaches `threshold`, ends where it
    stays 0.15 below for `silence` seconds, and counts if it is at least `least` seconds long; `margin` seconds are
    added on both sides.
    """

    rate = 16000

    def __init__(
        self,
        brought: Brought,
        *,
        threshold: float = 0.5,
        least: float = 0.25,
        silence: float = 0.1,
        margin: float = 0.03,
    ):
        self._network = brought.network()
        config = self._network.config
        if not isinstance(config, SileroVADConfig):
            raise ValueError(f"pipeline: {brought.task!r} wants models.silero_vad(...), got {config.who}")
        self._config = config
        self.threshold, self.least, self.silence, self.margin = threshold, least, silence, margin

    def __call__(self, sounds: Sound | Sequence[Sound], *, rate: int | None = None) -> Any:
        """Where somebody speaks in each sound."""
        items, alone = one_or_many(sounds, "sound", single)
        found = []
        for sound in items:
            samples = read_sound(sound, self.rate, source_rate=rate)
            # Many windows a call: nobody waits for the first.
            stream = self._network.stream(chunk=64 * self._config.window)
            scores = [window.score for window in self._windows(stream, [samples])]
            found.append(self._speech(scores, len(samples) / self.rate))
        return found[0] if alone else found

    def stream(self, chunks: Iterable[Any]) -> Iterator[Window]:
        """Each whole window of sound [samples] at 16 kHz as soon as it is heard."""
        yield from self._windows(self._network.stream(), chunks)

    def _windows(self, stream: Any, chunks: Iterable[Any]) -> Iterator[Window]:
        seconds, number = self._config.window / self.rate, 0
        for logits in _streamed(stream, chunks):
            for logit in logits[0]:
                yield Window(number * seconds, float(1 / (1 + np.exp(-np.float64(logit)))))
                number += 1

    def _speech(self, scores: Sequence[float], length: float) -> list[Speech]:
        seconds = self._config.window / self.rate
        start = quiet = None
        found: list[tuple[float, float]] = []
        for number, score in enumerate(scores):
            now = number * seconds
            if score >= self.threshold:
                quiet, start = None, now if start is None else start
            elif start is not None and score < self.threshold - 0.15:
                quiet = now if quiet is None else quiet
                if now - quiet >= self.silence:
                    found.append((start, quiet))
                    start = quiet = None
        if start is not None:
            found.append((start, length))
        found = [(a, b) for a, b in found if b - a >= self.least]
        joined: list[Speech] = []
        for a, b in found:
            a, b = max(0.0, a - self.margin), min(length, b + self.margin)
            if joined and a <= joined[-1].end:
                a = joined.pop().start
            joined.append(Speech(a, b))
        return joined


def _streamed(stream: Any, chunks: Iterable[Any]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        output = stream(samples_of(chunk))
        if output.shape[1]:
            yield output
    output = stream.finish()
    if output.shape[1]:
        yield output


def samples_of(chunk: Any) -> np.ndarray:
    """A chunk of a stream as float32 samples [time]; it may have none."""
    chunk = np.asarray(chunk)
    if chunk.ndim != 1:
        raise ValueError(f"pipeline: chunks of samples [time] are wanted, got {chunk.shape}")
    return read_sound(chunk, 1) if chunk.size else np.zeros(0, np.float32)


def single(given: Any) -> bool:
    """Whether this is one sound and no list of them."""
    return isinstance(given, str) or hasattr(given, "__fspath__") or hasattr(given, "ndim")


def _is_path(given: Any, vocab: int) -> bool:
    return isinstance(given, str) and len(given) != vocab
