"""Tokenizers in a model's file: as JSON values and back; all is checked, since a file may come from anywhere."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from llmasos_xla.data.tokenizers.characters import Characters
from llmasos_xla.data.tokenizers.huggingface import HuggingFace
from llmasos_xla.data.tokenizers.llama2c import Llama2C
from llmasos_xla.data.tokenizers.protocol import Special, Tokenizer
from llmasos_xla.data.tokenizers.sentence_piece import SentencePiece


def to_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The tokenizer as JSON values; None for one of a class of the user's own, which no file can hold.

    >>> to_json(Characters("ab"))
    {'kind': 'characters', 'characters': 'ab', 'special': []}
    """
    if isinstance(tokenizer, Characters):
        return {"kind": "characters", **tokenizer.to_json()}
    if isinstance(tokenizer, HuggingFace):
        return {"kind": "huggingface", "tokenizer": tokenizer.inner.to_str(), "special": list(tokenizer.special)}
    if isinstance(tokenizer, SentencePiece):
        around = {"start": bool(tokenizer.prefix), "end": bool(tokenizer.suffix)}
        return {"kind": "sentencepiece", "model": base64.b64encode(tokenizer.content).decode(), **around}
    if isinstance(tokenizer, Llama2C):
        return {"kind": "llama2c", "model": base64.b64encode(tokenizer.content).decode()}
    return None


def from_json(value: Any) -> Tokenizer:
    """The inverse of `to_json`; raises ValueError for anything else."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    try:
        if kind == "characters":
            return Characters.from_json(value)
        if kind == "huggingface":
            return _huggingface(value)
        if kind == "sentencepiece":
            return SentencePiece(_content(value), start=value["start"] is True, end=value["end"] is True)
        if kind == "llama2c":
            return Llama2C(_content(value))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"tokenizer: what the file holds is damaged: {error}") from None
    raise ValueError(f"tokenizer: the file holds one of an unknown kind, {str(kind)[:60]!r}")


def _huggingface(value: Mapping[str, Any]) -> HuggingFace:
    found = HuggingFace.of_text(value["tokenizer"])
    special = value["special"]
    fits = isinstance(special, list) and len(special) == len(Special._fields)
    if not fits or not all(i is None or (type(i) is int and 0 <= i < found.size) for i in special):
        raise ValueError(f"special ids {str(special)[:60]}")
    found.special = Special(*special)
    return found


def _content(value: Mapping[str, Any]) -> bytes:
    return base64.b64decode(value["model"], validate=True)
