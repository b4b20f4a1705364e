"""sentencepiece's models: T5's spiece.model, Llama's tokenizer.model."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any, final

from llmasos_xla.data.tokenizers.protocol import Special, Tokenizer
from llmasos_xla.errors import missing_package


@final
class SentencePiece(Tokenizer):
    """A .model file of sentencepiece.

    Args:
        path: the file, or its content.
        start: whether the start id goes ahead of a text, as Llama has it.
        end: whether the end id goes behind it, as T5 has it.

    Raises ValueError for a file that is none, and for a start or end that the vocabulary does not have.
    """

    def __init__(self, path: str | os.PathLike | bytes, *, start: bool = False, end: bool = True):
        try:
            import sentencepiece
        except ImportError:
            raise missing_package("SentencePiece", "sentencepiece", "text") from None
        self._model: Any = sentencepiece.SentencePieceProcessor()
        self.content = path if isinstance(path, bytes) else pathlib.Path(path).read_bytes()
        path = "the vocabulary" if isinstance(path, bytes) else path
        try:
            self._model.LoadFromSerializedProto(self.content)
        except RuntimeError as error:
            raise ValueError(f"SentencePiece: {path} is no sentencepiece model: {error}") from None
        self.size = self._model.vocab_size()
        found = (self._model.pad_id(), self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        self.special = Special(*(None if i < 0 else i for i in found))
        for name, wanted in (("start", start), ("end", end)):
            if wanted and getattr(self.special, name) is None:
                raise ValueError(f"SentencePiece: {path} has no id for the {name} of a text; pass {name}=False")
        self.prefix = (found[2],) if start else ()
        self.suffix = (found[3],) if end else ()

    def pieces(self, text: str) -> list[int]:
        """The ids of a text alone."""
        return self._model.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text; ids beyond the model's, which T5 has for gaps, are left out as special ones are."""
        gone = {self.special.pad, self.special.start, self.special.end}
        return self._model.DecodeIds([int(i) for i in ids if i < self.size and i not in gone])
