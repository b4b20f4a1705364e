"""Text becomes rows of word or character ids by a vocabulary that training fixes."""

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PADDING, UNKNOWN, FIRST = 0, 1, 2
LEVELS = ("word", "character")
LONGEST = {"word": 256, "character": 1024}

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class TextInput:
    """A vocabulary and a length: id 0 is padding on the right, 1 an unknown word, 2... `vocabulary[0]`...

    Words are runs of letters and digits, and each other sign; they are compared in lower case. Characters are taken as
    they are. Longer rows are cut at `max_length`.
    """

    vocabulary: tuple[str, ...]
    max_length: int
    level: str = "word"

    dtype = "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, after `encode`."""
        return (self.max_length,)

    @property
    def size(self) -> int:
        """The number of ids: what an Embedding needs as its `input_dim`."""
        return len(self.vocabulary) + FIRST

    @classmethod
    def fit(
        cls, texts: Any, level: str = "word", max_words: int = 20_000, max_length: int | None = None
    ) -> "TextInput":
        """The most frequent words, and the length of the longest row (256 words, 1,024 characters at most).

        `max_words` is the most ids that there may be, those for padding and unknown words among them, so that
        `Embedding(max_words, ...)` has a vector for each.

        Raises ValueError unless `max_words` >= 3 (one word) and `max_length` >= 1 are whole numbers.

        >>> TextInput.fit(["one two", "two"]).encode(["two one", "three"])
        array([[2, 3],
               [1, 0]], dtype=int32)
        """
        for name, value, least in (("max_words", max_words, FIRST + 1), ("max_length", max_length, 1)):
            if not (isinstance(value, int | np.integer) and value >= least) and (name, value) != ("max_length", None):
                why = "; padding and unknown words take two ids" if name == "max_words" else ""
                raise ValueError(f"text: {name} wants a whole number >= {least}, got {value!r}{why}")
        pieces = [_split(text, level) for text in texts]
        counts = collections.Counter(piece for row in pieces for piece in row)
        ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))[: max_words - FIRST]
        longest = max(map(len, pieces), default=1)
        return cls(tuple(ranked), max_length or max(1, min(longest, LONGEST[level])), level)

    def encode(self, raw: Any, columns: tuple[str, ...] | None = None, who: str = "input") -> np.ndarray:
        """A list of str to int32 `[rows, max_length]`; ids that are encoded already pass.

        Raises TypeError for a single str or what is no text, ValueError for ids outside the vocabulary.
        """
        if isinstance(raw, str):
            raise TypeError(f"{who}: one text came ({raw[:40]!r}); a list of texts is wanted: pass [text]")
        if hasattr(raw, "to_numpy"):
            raw = raw.to_numpy()
        if hasattr(raw, "dtype") and raw.dtype.kind in "iu":
            return self._checked_ids(np.asarray(raw), who)
        texts = np.asarray(raw, object)
        if texts.ndim != 1 and texts.shape[1:] != (1,):
            raise ValueError(f"{who}: text of shape {texts.shape} came; one text a row is wanted: (rows,)")
        rows = [self._row(text, i, who) for i, text in enumerate(texts.ravel())]
        return np.array(rows, np.int32).reshape(len(rows), self.max_length)

    def on_device(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Ids stay ids."""
        return jnp.asarray(x).astype(jnp.int32)

    def decode(self, ids: Any) -> list[str]:
        """Ids back to text: the words parted by spaces, or the characters; padding left out, unknown as U+FFFD.

        >>> TextInput.fit(["one two", "two"]).decode([[2, 3], [1, 0]])
        ['two one', '\N{REPLACEMENT CHARACTER}']
        """
        between = " " if self.level == "word" else ""
        pieces = ("", "\N{REPLACEMENT CHARACTER}", *self.vocabulary)
        return [between.join(pieces[i] for i in row if i != PADDING) for row in np.asarray(ids)]

    def describe(self) -> str:
        """One phrase for a summary."""
        return f"text as {self.max_length} {self.level} ids of {self.size}"

    def _row(self, text: Any, row: int, who: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"{who}: text is wanted, row {row} holds {type(text).__name__} ({text!r})")
        ids = [self._id_of.get(piece, UNKNOWN) for piece in _split(text, self.level)[: self.max_length]]
        return ids + [PADDING] * (self.max_length - len(ids))

    @property
    def _id_of(self) -> dict[str, int]:
        # Kept beside the fields, not among them: it is derived from `vocabulary` and 20,000 words take 2 ms to list.
        found = self.__dict__.get("_ids")
        if found is None:
            found = {piece: FIRST + i for i, piece in enumerate(self.vocabulary)}
            object.__setattr__(self, "_ids", found)
        return found

    def _checked_ids(self, ids: np.ndarray, who: str) -> np.ndarray:
        if ids.ndim != 2 or ids.shape[1] != self.max_length:
            raise ValueError(f"{who}: ids of shape {ids.shape} came; (rows, {self.max_length}) is wanted")
        if ids.size and (ids.min() < 0 or ids.max() >= self.size):
            raise ValueError(f"{who}: ids run from 0 to {self.size - 1}, {ids.min()} to {ids.max()} came")
        return ids.astype(np.int32, copy=False)


def _split(text: str, level: str) -> list[str]:
    return _WORD.findall(text.lower()) if level == "word" else list(text)
