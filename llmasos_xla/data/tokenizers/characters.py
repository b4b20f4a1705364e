"""Each character an id."""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, final

from llmasos_xla.data.tokenizers.protocol import Special, Tokenizer, read

FILE = "characters.json"


@final
class Characters(Tokenizer):
    """Ids of characters, by a vocabulary; the special ids come first.

    Args:
        characters: in the order of their ids.
        special: which special ids there are, of "pad", "unknown", "start", "end", "mask", in the order of their ids;
            "start" and "end" go around an encoded text.

    Raises ValueError for unknown special ids and characters that are given twice.

    >>> tokenizer = Characters.fit("hello")
    >>> tokenizer.encode("hole"), tokenizer.decode([1, 0, 3])
    ([1, 3, 2, 0], 'heo')
    """

    def __init__(self, characters: str, special: Sequence[str] = ()):
        unknown = [name for name in special if name not in Special._fields]
        if unknown or len(set(special)) < len(special):
            raise ValueError(f"Characters: special wants different ones of {', '.join(Special._fields)}, got {special}")
        if len(set(characters)) < len(characters):
            raise ValueError("Characters: a character is given twice")
        self.characters, self._names = characters, tuple(special)
        self.special = Special(**{name: i for i, name in enumerate(special)})
        self._ids = {character: len(special) + i for i, character in enumerate(characters)}
        self.size = len(special) + len(characters)
        self.prefix, self.suffix = (() if i is None else (i,) for i in (self.special.start, self.special.end))

    @classmethod
    def fit(cls, texts: str | Iterable[str], special: Sequence[str] = ()) -> "Characters":
        """All characters of a text, or of several, in sorted order."""
        return cls("".join(sorted(set().union(*([texts] if isinstance(texts, str) else texts)))), special)

    def pieces(self, text: str) -> list[int]:
        """The ids of the characters; raises ValueError for a new one where there is no "unknown"."""
        if self.special.unknown is None and (new := set(text) - self._ids.keys()):
            raise ValueError(
                f"Characters: {sorted(new)[0]!r} is not in the vocabulary, which has no id for unknown ones"
            )
        return [self._ids.get(character, self.special.unknown or 0) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters; unknown ones as U+FFFD, other special ids left out."""
        kept = [int(i) for i in ids if i >= len(self._names) or i == self.special.unknown]
        return "".join(
            "\N{REPLACEMENT CHARACTER}" if i == self.special.unknown else self.characters[i - len(self._names)]
            for i in kept
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes "characters.json" into a folder, or the file of that path."""
        path, value = pathlib.Path(path), self.to_json()
        (path / FILE if path.is_dir() else path).write_text(json.dumps(value), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Characters":
        """Reads what `save` wrote."""
        try:
            return cls.from_json(json.loads(read(path, "Characters")))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Characters: {path} holds no vocabulary of characters: {error!r}") from None

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as JSON values."""
        return {"characters": self.characters, "special": list(self._names)}

    @classmethod
    def from_json(cls, value: Any) -> "Characters":
        """The inverse of `to_json`."""
        characters, special = value["characters"], value["special"]
        if not isinstance(characters, str) or not isinstance(special, list):
            raise TypeError("characters wants a text, special a list")
        return cls(characters, special)
