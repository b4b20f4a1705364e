"""How a conversation becomes the prompt of a model: the template that a folder of published weights brings."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from llmasos_xla.data.tokenizers.huggingface import special_names
from llmasos_xla.data.tokenizers.protocol import read

FILE = "chat_template.jinja"
_MOST_CHARACTERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template in the language of jinja2, as Hugging Face has them, and the names of special ids that it may use.

    It is text alone: nothing here runs it. A server does so, in a process of its own (deployment/chat.py).
    """

    text: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What "bos_token", "eos_token" and their like stand for: {"bos_token": "<s>"}."""

    @classmethod
    def of_folder(cls, folder: str | os.PathLike) -> "ChatTemplate | None":
        """The template of a folder, chat_template.jinja or that of tokenizer_config.json; None where there is none.

        Of several by name the one called "default" is taken, or the first. Raises ValueError for a damaged file.
        """
        folder = pathlib.Path(folder)
        said = special_names(folder)
        found = read(folder / FILE, "chat_template") if (folder / FILE).is_file() else said.get("chat_template")
        if isinstance(found, list):
            named = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, Mapping)}
            found = named.get("default", next(iter(named.values()), None))
        if found is None:
            return None
        named = {name: value["content"] if isinstance(value, Mapping) else value for name, value in _tokens(said)}
        try:
            return cls.from_json({"text": found, "tokens": {n: t for n, t in named.items() if isinstance(t, str)}})
        except ValueError as error:
            raise ValueError(f"chat_template: that of {str(folder)!r} is damaged: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The template as JSON values."""
        return {"text": self.text, "tokens": dict(self.tokens)}

    @classmethod
    def from_json(cls, value: Any) -> "ChatTemplate":
        """The inverse of `to_json`; raises ValueError for anything else."""
        text = value.get("text") if isinstance(value, Mapping) else None
        tokens = value.get("tokens") if isinstance(value, Mapping) else None
        if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
            raise ValueError(f"chat template: its text is none, or is longer than {_MOST_CHARACTERS} characters")
        if not isinstance(tokens, Mapping) or not all(isinstance(t, str) for pair in tokens.items() for t in pair):
            raise ValueError(f"chat template: its special ids by name are texts, {json.dumps(tokens)[:80]} came")
        return cls(text, dict(tokens))


def _tokens(said: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(n, v) for n, v in said.items() if n.endswith("_token") and (not isinstance(v, Mapping) or "content" in v)]
