"""The vocabularies of llama2.c: tokenizer.bin, tok512.bin."""

import os
import pathlib
import re
import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import final

from llmasos_xla.data.tokenizers.protocol import Special, Tokenizer

_UNKNOWN, _START, _END, _FIRST_BYTE = 0, 1, 2, 3
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


@final
class Llama2C(Tokenizer):
    """Byte pairs with a score each, as llama2.c stores them: ids 0 unknown, 1 start, 2 end, 3..258 single bytes.

    The file is an int32, the longest piece, and for each id a float32 score, an int32 length and so many bytes.
    A text gets a space ahead, as Llama's sentencepiece has it; pairs are joined by highest score, the leftmost first.

    Raises ValueError for a file that is none.
    """

    special = Special(unknown=_UNKNOWN, start=_START, end=_END)
    prefix = (_START,)

    def __init__(self, path: str | os.PathLike | bytes):
        content = path if isinstance(path, bytes) else pathlib.Path(path).read_bytes()
        self.content = content
        path = "the vocabulary" if isinstance(path, bytes) else path
        self._vocabulary: list[bytes] = []
        self._scores: list[float] = []
        at = 4
        try:
            (longest,) = struct.unpack_from("<i", content)
            while at < len(content):
                score, length = struct.unpack_from("<fi", content, at)
                if not 0 <= length <= longest or at + 8 + length > len(content):
                    raise ValueError(f"a piece of {length} bytes at byte {at}")
                self._vocabulary.append(content[at + 8 : at + 8 + length])
                self._scores.append(score)
                at += 8 + length
        except (struct.error, ValueError) as error:
            raise ValueError(f"Llama2C: {path} is no vocabulary of llama2.c: {error}") from None
        self.size = len(self._vocabulary)
        if self.size < _FIRST_BYTE + 256:
            raise ValueError(f"Llama2C: {path} has {self.size} ids; a vocabulary has one for each byte at least")
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(self._vocabulary):
            self._ids.setdefault(piece, i)

    def pieces(self, text: str) -> list[int]:
        """The ids of a text alone."""
        ids: list[int] = []
        for character in " " + text if text else "":
            encoded = character.encode()
            known = self._ids.get(encoded)
            ids += [byte + _FIRST_BYTE for byte in encoded] if known is None else [known]
        while True:
            joined = [self._ids.get(self._vocabulary[a] + self._vocabulary[b]) for a, b in pairwise(ids)]
            found = [(-self._scores[i], place) for place, i in enumerate(joined) if i is not None]
            if not found:
                return ids
            _, place = min(found)
            pair = joined[place]
            assert pair is not None
            ids[place : place + 2] = [pair]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; the space ahead of it is left out."""
        content = b"".join(self._bytes(int(i)) for i in ids if i not in (_START, _END))
        return content.decode("utf-8", "replace").removeprefix(" ")

    def _bytes(self, i: int) -> bytes:
        piece = self._vocabulary[i]
        return bytes.fromhex(match[1].decode()) if (match := _BYTE.fullmatch(piece)) else piece
