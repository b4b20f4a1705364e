"""What a pipeline needs beside the model: given by the caller, learnt in training, or read from the model's folder."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from llmasos_xla.api.door import Door
from llmasos_xla.api.network import Network
from llmasos_xla.data.pictures import FILE, PictureReader
from llmasos_xla.data.tokenizers.opening import load_tokenizer
from llmasos_xla.data.tokenizers.protocol import Tokenizer


@dataclasses.dataclass(frozen=True)
class Brought:
    """A model with what was given; the methods find the rest."""

    task: str
    model: Door
    given_tokenizer: Any = None
    given_labels: Sequence[str] | None = None
    given_reader: Any = None

    @property
    def folder(self) -> pathlib.Path | None:
        """Where the model's weights were read from, or None."""
        return getattr(self.model, "folder", None)

    def network(self) -> Network:
        """The model, which has to be one of the shelf."""
        if not isinstance(self.model, Network):
            raise ValueError(
                f"pipeline: {self.task!r} wants a model of the shelf, lm.models.<name>(...), "
                f"got {type(self.model).__name__}"
            )
        return self.model

    def tokenizer(self) -> Tokenizer:
        """Given, as an object or by its path, or that of the folder; ValueError where there is none."""
        given = self.given_tokenizer
        if isinstance(given, Tokenizer):
            return given
        if isinstance(given, str | pathlib.Path):
            return load_tokenizer(given)
        if given is not None:
            raise ValueError(
                f"pipeline: tokenizer wants a path or one of data.tokenizers, got {type(given).__name__}; what "
                "`tokenizers` made goes into data.tokenizers.HuggingFace(...)"
            )
        found = getattr(self.model, "tokenizer", None)
        if found is None:
            raise ValueError(
                f"pipeline: {self.task!r} needs tokenizer=: this model was not read from a folder that has one"
            )
        return found

    def labels(self, classes: int) -> list[str]:
        """The classes' names: given, those of the training labels, the model's own, or "0", "1" ..."""
        found = self.given_labels
        preprocessing = self.model.learner.preprocessing
        if found is None and preprocessing is not None:
            found = preprocessing.label_names
        own = getattr(self.model, "class_names", None)
        if found is None and own is not None and len(own) == classes:
            found = own
        if found is None:
            return [str(i) for i in range(classes)]
        if len(found) != classes:
            raise ValueError(f"pipeline: the model tells {classes} classes apart, labels= names {len(found)}")
        return list(found)

    def reader(self) -> PictureReader | None:
        """Given, or that of the folder's preprocessor_config.json; None where nobody says."""
        if self.given_reader is not None:
            if not isinstance(self.given_reader, PictureReader):
                raise ValueError(
                    f"pipeline: reader wants a data.pictures.PictureReader, got {type(self.given_reader).__name__}"
                )
            return self.given_reader
        if self.folder is not None and (self.folder / FILE).is_file():
            return PictureReader.read(self.folder)
        return None


def one_or_many(given: Any, kind: str, single: Any) -> tuple[list[Any], bool]:
    """The items as a list, and whether it was one: `single(given)` says so."""
    if single(given):
        return [given], True
    items = list(given)
    if not items:
        raise ValueError(f"pipeline: there is no {kind}")
    return items, False
