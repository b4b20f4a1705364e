"""Tasks on text: what it is about, what its words are, what is missing in it, what it is like."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from llmasos_xla.api.pipelines.brought import Brought, one_or_many
from llmasos_xla.api.pipelines.buckets import MOST_ROWS, buckets, softmax
from llmasos_xla.data.text_input import TextInput


class Label(NamedTuple):
    """A class and how probable it is."""

    label: str
    score: float


class Entity(NamedTuple):
    """Some words of a text that are of one class."""

    label: str
    score: float
    """The mean over its pieces."""
    text: str
    start: int
    """Of its first character."""
    end: int
    """Behind its last."""


class Guess(NamedTuple):
    """What may stand in a gap."""

    word: str
    score: float
    text: str
    """The whole text with it."""


class Encoder:
    """A network on texts: ids in, an array a row out.

    Args:
        brought: model and tokenizer.
        batch_size: texts that go through the network together.
    """

    def __init__(self, brought: Brought, batch_size: int = MOST_ROWS):
        self.network, self.tokenizer, self.batch_size = brought.network(), brought.tokenizer(), batch_size
        config = self.network.config
        if config.inputs[0] != "ids":
            raise ValueError(f"pipeline: {brought.task!r} wants a model that reads ids; {config.who} reads other input")
        self.longest: int | None = getattr(config, "context", None)
        self._masked = "attention_mask" in config.inputs

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, cut to what the network reads."""
        return [self.tokenizer.encode(text, max_length=self.longest) for text in texts]

    def of_texts(self, texts: Sequence[Any]) -> list[np.ndarray]:
        """The network's output for each text, or pair of texts."""
        pairs = [self.tokenizer.encode_pair(*text, max_length=self.longest) for text in texts if is_pair(text)]
        if not pairs:
            return self(self.ids(texts))
        if len(pairs) < len(texts):
            raise ValueError("pipeline: texts are wanted, or pairs of texts, all of them alike")
        return self([ids for ids, _ in pairs], [types for _, types in pairs])

    def __call__(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> list[np.ndarray]:
        """The network's output for each row of ids, the steps of padding left out where it has one for each step.

        `types` say which of two texts each id is of.
        """
        found: list[Any] = [None] * len(rows)
        fill = self.tokenizer.special.pad or 0
        config = self.network.config
        config.check_tokens(np.concatenate([np.asarray(row, np.int32) for row in rows])[None])
        for bucket in buckets(rows, fill=fill, most=self.batch_size, longest=self.longest):
            more = {"attention_mask": bucket.mask} if self._masked else {}
            if types is not None and "token_type_ids" in config.inputs:
                more["token_type_ids"] = np.zeros_like(bucket.ids)
                for row, place in zip(more["token_type_ids"], bucket.places):
                    row[: len(types[place])] = types[place]
            output = self.network(ids=bucket.ids, **more)
            output = np.asarray(getattr(output, "logits", output))
            steps = output.ndim > 2
            for place, row in zip(bucket.places, output):
                found[place] = row[: len(rows[place])] if steps else row
        return found


@final
class TextClassification:
    """`classify("a fine film")` -> `Label(label, score)`; of a list of texts, a list. A tuple of two texts is a pair.

    With `top=k`, the k most probable labels of each text. A model without tokenizer whose training data were text
    (`Sequential` with an `Embedding`) does as well.
    """

    def __init__(self, brought: Brought, *, batch_size: int = MOST_ROWS):
        self._brought = brought
        preprocessing = brought.model.learner.preprocessing
        own = preprocessing is not None and isinstance(preprocessing.input, TextInput)
        self._encoder = None if own and brought.given_tokenizer is None else Encoder(brought, batch_size)
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 1 or shape[0] is None:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a model that gives one row of classes a text, this one's outputs "
                f"have the shape {shape}"
            )
        self.labels = brought.labels(max(shape[0], 2))

    def __call__(self, texts: str | tuple[str, str] | Sequence[Any], *, top: int | None = None) -> Any:
        """The most probable label of each text, or the `top` most probable ones."""
        items, alone = one_or_many(texts, "text", lambda given: isinstance(given, str) or is_pair(given))
        if self._encoder is None:
            outputs = self._brought.model.predict(items)
            scores = np.concatenate([1 - outputs, outputs], 1) if outputs.shape[1] == 1 else outputs
        else:
            scores = shares(np.stack(self._encoder.of_texts(items)))
        found = [best(row, self.labels, top) for row in scores]
        return found[0] if alone else found


@final
class TokenClassification:
    """`tag("Ada lives in London")` -> `[Entity(label, score, text, start, end), ...]`; of a list of texts, a list.

    Pieces of one class that follow each other are one entity; labels "B-..." begin a new one, "O" is none. `outside`
    names the labels that are left out.
    """

    def __init__(self, brought: Brought, *, batch_size: int = MOST_ROWS, outside: Sequence[str] = ("O",)):
        self._encoder, self._outside = Encoder(brought, batch_size), tuple(outside)
        self._tokenizer: Any = self._encoder.tokenizer
        if not hasattr(self._tokenizer, "spans"):
            raise ValueError(
                f"pipeline: {brought.task!r} wants a tokenizer that knows the places of pieces in a text, a "
                f"data.tokenizers.HuggingFace, got {type(self._tokenizer).__name__}"
            )
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 2 or shape[1] is None:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a model that gives classes for each step, this one's outputs have "
                f"the shape {shape}"
            )
        self.labels = brought.labels(shape[1])

    def __call__(self, texts: str | Sequence[str]) -> Any:
        """The entities of each text."""
        items, alone = one_or_many(texts, "text", lambda given: isinstance(given, str))
        tokenizer = self._tokenizer
        outputs = self._encoder(self._encoder.ids(items))
        found = []
        for text, output in zip(items, outputs):
            first = len(tokenizer.prefix)
            scores = softmax(output[first : len(output) - len(tokenizer.suffix)])
            spans = tokenizer.spans(text)[: len(scores)]
            found.append(self._entities(text, scores, [(a, b) for _, a, b in spans]))
        return found[0] if alone else found

    def _entities(self, text: str, scores: np.ndarray, places: Sequence[tuple[int, int]]) -> list[Entity]:
        open_: list[Any] = []
        runs: list[list[Any]] = []
        for row, (start, end) in zip(scores, places):
            full = self.labels[int(row.argmax())]
            if full in self._outside:
                open_ = []
                continue
            begins, label = full.startswith("B-"), full.removeprefix("B-").removeprefix("I-")
            # A piece of a word goes with the piece before it, whatever it begins.
            inside = bool(open_) and open_[0] == label and (not begins or start == open_[-1][1])
            if not inside:
                open_ = [label, []]
                runs.append(open_)
            open_[1].append(float(row.max()))
            open_[2:] = [(open_[2][0] if inside else start, end)]
        return [Entity(label, float(np.mean(each)), text[start:end], start, end) for label, each, (start, end) in runs]


@final
class FillMask:
    """`fill("Paris is the [MASK] of France.")` -> `[Guess(word, score, text), ...]`; of several gaps, such lists."""

    def __init__(self, brought: Brought, *, batch_size: int = MOST_ROWS):
        self._encoder = Encoder(brought, batch_size)
        self._mask = self._encoder.tokenizer.special.mask
        if self._mask is None:
            raise ValueError(f"pipeline: {brought.task!r} wants a tokenizer that has an id for a gap, [MASK]")
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 2 or shape[1] != getattr(brought.network().config, "vocab", None):
            raise ValueError(
                f'pipeline: {brought.task!r} wants a model that gives scores of all words a step, task="masked-lm"; '
                f"this one's outputs have the shape {shape}"
            )

    def __call__(self, texts: str | Sequence[str], *, top: int = 5) -> Any:
        """The `top` most probable words for each gap; raises ValueError for a text without one."""
        items, alone = one_or_many(texts, "text", lambda given: isinstance(given, str))
        tokenizer = self._encoder.tokenizer
        rows, mask = self._encoder.ids(items), self._mask
        assert mask is not None
        for text, row in zip(items, rows):
            if mask not in row:
                name = tokenizer.piece(mask)
                raise ValueError(f"pipeline: {text[:60]!r} has no gap; write {name} where a word is missing")
        found = [self._guesses(row, output, top) for row, output in zip(rows, self._encoder(rows))]
        return found[0] if alone else found

    def _guesses(self, row: list[int], output: np.ndarray, top: int) -> Any:
        tokenizer = self._encoder.tokenizer
        gaps = [step for step, i in enumerate(row) if i == self._mask]
        each = []
        for gap in gaps:
            scores = softmax(output[gap])
            chosen = np.argsort(-scores, kind="stable")[:top]
            texts = [tokenizer.decode([*row[:gap], int(i), *row[gap + 1 :]]) for i in chosen]
            each.append([Guess(tokenizer.decode([i]).strip(), float(scores[i]), t) for i, t in zip(chosen, texts)])
        return each[0] if len(gaps) == 1 else each


@final
class SentenceEmbedding:
    """`embed(["a text", "another"])` -> float32 [texts, width]; of one text, [width]."""

    def __init__(self, brought: Brought, *, batch_size: int = MOST_ROWS):
        self._encoder = Encoder(brought, batch_size)
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 1:
            raise ValueError(
                f'pipeline: {brought.task!r} wants a model that gives a vector a text, task="embeddings"; this one\'s '
                f"outputs have the shape {shape}"
            )

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """The vectors."""
        items, alone = one_or_many(texts, "text", lambda given: isinstance(given, str))
        found = np.stack(self._encoder(self._encoder.ids(items))).astype(np.float32)
        return found[0] if alone else found


def is_pair(given: Any) -> bool:
    """Whether this is a tuple of two texts, which are read together."""
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(text, str) for text in given)


def shares(logits: np.ndarray) -> np.ndarray:
    """Probabilities of classes [rows, classes] from logits; of a single logit, of "no" and "yes"."""
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], -1)
    return softmax(logits)


def best(scores: np.ndarray, labels: Sequence[str], top: int | None) -> Any:
    """The most probable label, or a list of the `top` most probable ones."""
    order = np.argsort(-scores, kind="stable")[: top or 1]
    found = [Label(labels[int(i)], float(scores[i])) for i in order]
    return found if top else found[0]
