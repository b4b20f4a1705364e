"""What a tokenizer is, and what all of them do the same way."""

import abc
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Special(NamedTuple):
    """Ids that stand for no text; None where a vocabulary has none."""

    pad: int | None = None
    unknown: int | None = None
    start: int | None = None
    """The first id of a text: Llama's <s>, BERT's [CLS]."""
    end: int | None = None
    """The last id of a text: </s>, <|endoftext|>, BERT's [SEP]."""
    mask: int | None = None
    """What stands in the place of a word that is to be guessed."""


class Tokenizer(abc.ABC):
    """Base of all tokenizers; never built itself.

    Attributes:
        size: the number of ids.
        special: the special ids.
        prefix: ids that `encode` puts before a text.
        suffix: ids that `encode` puts behind it.
    """

    size: int
    special: Special = Special()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @abc.abstractmethod
    def pieces(self, text: str) -> list[int]:
        """The ids of a text alone."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ones are left out."""

    def piece(self, i: int) -> str:
        """What stands for an id, a special one included."""
        return self.decode([i])

    def encode(self, text: str, *, special: bool = True, max_length: int | None = None) -> list[int]:
        """The ids of a text, with prefix and suffix if `special`; the text is cut where it would exceed `max_length`.

        Raises TypeError for what is no str, ValueError for a length without room for prefix and suffix.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: a text is wanted, got {type(text).__name__}; batch() takes lists")
        prefix, suffix = (self.prefix, self.suffix) if special else ((), ())
        ids = self.pieces(text)
        if max_length is not None:
            room = max_length - len(prefix) - len(suffix)
            if room < 1:
                raise ValueError(
                    f"encode: max_length={max_length} leaves no room for a text, around which "
                    f"{len(prefix) + len(suffix)} special ids go"
                )
            ids = ids[:room]
        return [*prefix, *ids, *suffix]

    def encode_pair(self, first: str, second: str, *, max_length: int | None = None) -> tuple[list[int], list[int]]:
        """Two texts as one row of ids, [CLS] first [SEP] second [SEP], and which of the two each is of, 0 or 1.

        The longer one is cut until the row fits into `max_length`.
        """
        whole = [self.pieces(first), self.pieces(second)]
        around = len(self.prefix) + 2 * len(self.suffix)
        a, b = (ids[:room] for ids, room in zip(whole, rooms(list(map(len, whole)), max_length, around)))
        first_part, second_part = [*self.prefix, *a, *self.suffix], [*b, *self.suffix]
        return first_part + second_part, [0] * len(first_part) + [1] * len(second_part)

    def batch(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        max_length: int | None = None,
        *,
        special: bool = True,
        multiple: int = 1,
    ) -> dict[str, np.ndarray]:
        """Texts as `{"ids", "attention_mask"}`, int32 [rows, time], padded at the right; of pairs "token_type_ids" too.

        Args:
            texts: one str a row, or a pair of them.
            max_length: where longer rows are cut.
            special: whether prefix and suffix go around each text.
            multiple: the rows' length is rounded up to a multiple of it (but not above `max_length`).
        """
        if isinstance(texts, str):
            raise TypeError("batch: a list of texts is wanted, one text came; pass [text]")
        if not len(texts):
            raise ValueError("batch: there is no text")
        alone = [text for text in texts if isinstance(text, str)]
        if len(alone) == len(texts):
            rows = [self.encode(text, special=special, max_length=max_length) for text in alone]
            return padded(rows, self, max_length, multiple)
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in texts):
            raise TypeError("batch: texts are wanted, or pairs of texts, all of them alike")
        pairs = [self.encode_pair(*pair, max_length=max_length) for pair in texts]
        found = padded([ids for ids, _ in pairs], self, max_length, multiple)
        types = np.zeros_like(found["ids"])
        for row, (_, of_pair) in enumerate(pairs):
            types[row, : len(of_pair)] = of_pair
        return {**found, "token_type_ids": types}


def rooms(lengths: Sequence[int], most: int | None, around: int) -> tuple[int, int]:
    """How many ids of each of two texts fit into `most`, of which `around` are special; the longer one gives way.

    >>> rooms([5, 20], 16, 3), rooms([5, 4], None, 3)
    ((5, 8), (5, 4))
    """
    a, b = lengths
    if most is None or a + b + around <= most:
        return a, b
    room = most - around
    if room < 2:
        raise ValueError(f"encode_pair: max_length={most} leaves no room for two texts, around which {around} ids go")
    a, b = (a, room - a) if a <= room // 2 else (room - b, b) if b <= room // 2 else (room - room // 2, room // 2)
    return a, b


def padded(
    rows: Sequence[Sequence[int]], tokenizer: Tokenizer, max_length: int | None = None, multiple: int = 1
) -> dict[str, np.ndarray]:
    """Rows of ids as `{"ids", "attention_mask"}`, padded at the right with the vocabulary's padding, or its end."""
    longest = max(1, *map(len, rows))
    length = -(-longest // multiple) * multiple
    if max_length is not None:
        length = min(length, max(max_length, longest))
    fill = next((i for i in (tokenizer.special.pad, tokenizer.special.end) if i is not None), 0)
    ids = np.full((len(rows), length), fill, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for row, found in enumerate(rows):
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
    return {"ids": ids, "attention_mask": mask}


def read(path: object, who: str) -> str:
    """The text of a file of a vocabulary; raises ValueError for what is no UTF-8."""
    import pathlib

    try:
        return pathlib.Path(str(path)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{who}: {path} is no UTF-8 text: {error}") from None
