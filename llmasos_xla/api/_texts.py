"""Texts to ids and back, for `generate`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from llmasos_xla.data.tokenizers.protocol import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_AHEAD = 16
"""Ids that are read again with those that come behind them."""


def ids_of_texts(tokenizer: Any, prompt: Any, encode: Callable[[Any, str], list[int]]) -> tuple[bool, list[list[int]]]:
    """Whether there is one prompt, not a list of them, and the ids of each."""
    if isinstance(prompt, str):
        return True, [encode(tokenizer, prompt)]
    if not isinstance(prompt, Iterable):
        raise ValueError(f"generate: a prompt is a text or a list of ids, got {type(prompt).__name__}")
    rows = list(prompt)
    if not rows:
        raise ValueError("generate: there is no prompt; a list of ids or of prompts must not be empty")
    if all(isinstance(row, str) for row in rows):
        return False, [encode(tokenizer, row) for row in rows]
    alone = np.ndim(rows[0]) == 0
    rows = [rows] if alone else rows
    for row in rows:
        if not np.issubdtype(np.asarray(row).dtype, np.integer) and len(row):
            raise ValueError(f"generate: a prompt is a text or a list of ids, got {type(row).__name__} {row!r:.80}")
    return alone, [[int(i) for i in row] for row in rows]


def decoder_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that is to be gone on with: with what begins it, without what ends it."""
    if isinstance(tokenizer, Tokenizer):
        return [*tokenizer.prefix, *tokenizer.encode(text, special=False)]
    return encoder_texts(tokenizer, text)


def encoder_texts(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that is whole."""
    if tokenizer is None:
        raise ValueError("generate: the prompt is a text; pass tokenizer=, or a list of ids")
    found = tokenizer.encode(text)
    return [int(i) for i in getattr(found, "ids", found)]


class Text:
    """What one row has written: ids, and their text where there is a tokenizer.

    Only the last few ids are made text of again when more come: a long text is not read from its beginning each time.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        # A piece may look different at the beginning of a text: sentencepiece drops the blank that it begins with. So
        # some ids stand ahead of those whose text is looked for.
        self._ahead = list(prompt)[-_AHEAD:] if tokenizer is not None else []
        self._open: list[int] = []
        """Ids whose text may change yet."""
        self._settled = ""
        """The text of the ids before these."""
        self._given = 0
        self.stopped = False
        """Whether a stop string has come."""

    @property
    def result(self) -> Any:
        """All of it: a text, or ids."""
        return self._ids if self._tokenizer is None else self._cut(self._text())[0]

    def all(self, ids: Sequence[int]) -> Any:
        """The result for ids that come at once."""
        self.more(ids, ended=True)
        return self.result

    def more(self, ids: Sequence[int], ended: bool) -> Any:
        """Takes more ids and gives what can be shown more: no part of a character, nothing that a stop string may
        take back, unless the text has ended."""
        self._ids += ids
        if self._tokenizer is None:
            return list(ids)
        if self.stopped:
            return ""
        self._open += ids
        text, self.stopped = self._cut(self._text())
        if not ended and not self.stopped:
            held = max((_overlap(text, stop) for stop in self._stops), default=0)
            held = max(held, len(text) - len(text.rstrip(_UNFINISHED)))
            text = text[: len(text) - held]
        piece, self._given = text[self._given :], max(self._given, len(text))
        return piece

    def _text(self) -> str:
        new = _text_behind(self._tokenizer, self._ahead, self._open)
        text = self._settled + new
        # What ends in a part of a character is not settled, nor is what has none yet.
        if new and not new.endswith(_UNFINISHED):
            self._settled, self._ahead, self._open = text, [*self._ahead, *self._open][-_AHEAD:], []
        return text

    def _cut(self, text: str) -> tuple[str, bool]:
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)


def _text_behind(tokenizer: Any, ahead: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ids that stand behind others."""
    if not ids:
        return ""
    before, whole = tokenizer.decode(list(ahead)), tokenizer.decode([*ahead, *ids])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(ids))


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may begin the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
