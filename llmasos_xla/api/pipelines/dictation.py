"""What is said, written down by a model that writes token after token: Whisper."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api.generate import generate
from llmasos_xla.api.pipelines.brought import Brought, one_or_many
from llmasos_xla.api.pipelines.sound import Sound, Transcription, samples_of, single
from llmasos_xla.data.sound import read_sound
from llmasos_xla.data.tokenizers.huggingface import HuggingFace
from llmasos_xla.models.whisper import WhisperConfig

_LOOK_BACK = 5.0
"""Seconds at the end of a window in which the quietest place is looked for."""


def transcription(brought: Brought, **options: Any) -> Any:
    """The pipeline that fits the model: `Dictation` for Whisper, `Transcription` for a recognizer by CTC."""
    kind = Dictation if isinstance(brought.network().config, WhisperConfig) else Transcription
    return kind(brought, **options)


@final
class Dictation:
    """`transcribe("a.wav")` -> its text, by Whisper; of a list of sounds, a list.

    Whisper reads 30 s at once. Longer sound is cut at the quietest place of each window's last 5 s, and the texts are
    put together. `transcribe.stream(chunks)` yields the text of each window once it is full: it reads it both ways.

    Args:
        brought: model and tokenizer.
        language: what is spoken, "en", "de"; what the configuration's `start_ids` say if None.
        translate: whether to write English whatever is spoken; only with `language`.
        batch_size: windows that are written side by side.
        **options: those of `lm.generate`.
    """

    def __init__(
        self,
        brought: Brought,
        *,
        language: str | None = None,
        translate: bool = False,
        batch_size: int = 8,
        **options: Any,
    ):
        self._network, self._tokenizer, self._options = brought.network(), brought.tokenizer(), options
        config = self._network.config
        assert isinstance(config, WhisperConfig)
        self._config, self._batch_size, self.rate = config, batch_size, config.features.rate
        self._features = jax.jit(config.features)
        self._start = self._beginning(language, translate)

    def __call__(self, sounds: Sound | Sequence[Sound], *, rate: int | None = None, **options: Any) -> Any:
        """The text of each sound; `rate` is that of arrays, if not the model's."""
        items, alone = one_or_many(sounds, "sound", single)
        windows, of = [], []
        for number, sound in enumerate(items):
            for window in cut(read_sound(sound, self.rate, source_rate=rate), self._samples, self.rate):
                windows.append(np.pad(window, (0, self._samples - len(window))))
                of.append(number)
        texts: list[list[str]] = [[] for _ in items]
        for start in range(0, len(windows), self._batch_size):
            for number, text in zip(of[start:], self._written(windows[start : start + self._batch_size], options)):
                texts[number].append(text)
        joined = [" ".join(part for part in each if part) for each in texts]
        return joined[0] if alone else joined

    def stream(self, chunks: Iterable[Any], *, rate: int | None = None, **options: Any) -> Iterator[str]:
        """The text of each window of at most 30 s, once it is full; together they are the text of the whole sound.

        Chunks are samples of any number. Raises ValueError for a rate that is not the model's: resampling chunks one by
        one would leave a click between them.
        """
        if rate not in (None, self.rate):
            raise ValueError(f"pipeline: this model streams sound of {self.rate} samples a second, got {rate}")
        held, behind = np.zeros(0, np.float32), ""
        for chunk in itertools.chain(chunks, [None]):
            if chunk is None:
                full = [held]
            else:
                *full, held = cut(np.concatenate([held, samples_of(chunk)]), self._samples, self.rate)
            for window in full:
                padded = np.pad(window, (0, self._samples - len(window)))
                if text := self._written([padded], options)[0]:
                    yield behind + text
                    behind = " "

    def _written(self, windows: Sequence[np.ndarray], options: Mapping[str, Any]) -> list[str]:
        features = self._features(jnp.asarray(np.stack(windows)))
        given = {**self._options, **options, "decoder_prompt": self._start}
        found = generate(self._network, np.asarray(features), tokenizer=self._tokenizer, **given)
        return [text.strip() for text in found]

    @property
    def _samples(self) -> int:
        return 2 * self._config.source * self._config.features.hop

    def _beginning(self, language: str | None, translate: bool) -> list[int] | None:
        if language is None:
            if translate:
                raise ValueError("pipeline: translate=True needs language=, what is spoken")
            return None
        inner = self._tokenizer.inner if isinstance(self._tokenizer, HuggingFace) else None
        task = "translate" if translate else "transcribe"
        names = ("startoftranscript", language, task, "notimestamps")
        ids = [None if inner is None else inner.token_to_id(f"<|{name}|>") for name in names]
        if None in ids:
            raise ValueError(
                f"pipeline: the tokenizer has no <|{names[ids.index(None)]}|>; language= wants Whisper's own tokenizer "
                'and a language as it calls them, "en"'
            )
        return [i for i in ids if i is not None]


def cut(samples: np.ndarray, longest: int, rate: int) -> list[np.ndarray]:
    """Sound [samples] in parts of at most `longest`, cut where a tenth of a second is quietest near each end.

    >>> [len(part) for part in cut(np.ones(25, np.float32), longest=10, rate=1)]
    [6, 6, 6, 7]
    """
    parts = []
    back, width = int(_LOOK_BACK * rate), max(1, rate // 10)
    while len(samples) > longest:
        first = max(longest - back, longest // 2)
        energy = np.convolve(np.square(samples[first:longest], dtype=np.float64), np.ones(width), "valid")
        end = first + int(energy.argmin()) + (width + 1) // 2
        parts.append(samples[:end])
        samples = samples[end:]
    return [*parts, samples]
