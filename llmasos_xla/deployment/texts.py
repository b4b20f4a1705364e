"""Texts in requests to a model that reads ids: they become ids here, in rows of few lengths."""

import logging
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from llmasos_xla.api.door import Door
from llmasos_xla.api.network import Network
from llmasos_xla.api.pipelines.buckets import SHORTEST, power_of_two
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.data.tokenizers.protocol import Tokenizer
from llmasos_xla.deployment.raw_input import TEXT

IDS, MASK, TYPES = "ids", "attention_mask", "token_type_ids"
_LOG = logging.getLogger("llmasos_xla.deployment")
# Characters of a text that are looked at, for each id that there is room for: few vocabularies have longer pieces, and
# a text of megabytes costs no more than the part of it that is read.
_CHARACTERS = 64


@final
class Texts:
    """A model's tokenizer, and what the model wants of it.

    Rows are padded to a power of two from 16 ids up, or to what the model reads at most; longer texts are cut there.
    The mask tells padding, so that a text's answer does not depend on what it is padded to.

    Args:
        longest: ids of a row at most; None for any number.
        names: the inputs that the model is given, of ids, mask and types.
    """

    def __init__(self, tokenizer: Tokenizer, longest: int | None, names: tuple[str, ...]):
        self.tokenizer, self.longest, self.names = tokenizer, longest, names

    @classmethod
    def of_model(cls, model: Door, preprocessing: Preprocessing) -> "Texts | None":
        """None for a model that has no tokenizer, whose answers are one for each id, or that cannot tell padding."""
        if not isinstance(model, Network) or not isinstance(preprocessing.input, tuple):
            return None
        parts, wanted = dict(preprocessing.input), set(preprocessing.wanted)
        readable = {IDS, MASK} <= parts.keys() and all(getattr(parts[name], "free", ()) == (0,) for name in (IDS, MASK))
        if not readable or wanted - {IDS, MASK, TYPES} or None in model.learner.spec.output_shape():
            return None
        try:
            tokenizer = model.tokenizer
        except ImportError as error:
            _LOG.warning("texts are no input of this model: %s", error)
            return None
        names = tuple(name for name in parts if name in (IDS, MASK) or name in wanted)
        return None if tokenizer is None else cls(tokenizer, getattr(model.config, "context", None), names)

    def encode(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Ids and mask, int32 [rows, length], of a request that holds texts; raises ValueError or TypeError."""
        if len(tensors) > 1:
            others = ", ".join(name[:60] for name in tensors if name != TEXT)
            raise ValueError(f"infer: {TEXT!r} comes alone, or {IDS!r} in its place; {others} came too")
        array = tensors[TEXT]
        if not array.ndim or array.size != len(array):
            raise ValueError(f"infer: {TEXT!r} has shape {array.shape}; (rows,) is wanted")
        texts = array.reshape(-1).tolist()
        if not texts:
            raise ValueError(f"infer: {TEXT!r} holds no text")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"infer: {TEXT!r} wants texts, {str(wrong[0])[:60]!r} came")
        room = self.longest and _CHARACTERS * self.longest
        found = self.tokenizer.batch([text[:room] for text in texts], self.longest)
        return self._padded(found)

    def length(self, ids: int) -> int:
        """The length of the rows in which so many ids go."""
        length = power_of_two(max(ids, SHORTEST))
        return min(length, self.longest or length)

    def _padded(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows, came = found[IDS].shape
        special = self.tokenizer.special
        fill: dict[str, Any] = {IDS: special.pad if special.pad is not None else special.end or 0}
        padded = {}
        for name in self.names:
            padded[name] = np.full((rows, self.length(came)), fill.get(name, 0), np.int32)
            if name in found:
                padded[name][:, :came] = found[name]
        return padded
