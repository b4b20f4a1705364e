"""Tasks on pictures: what is on them, where, and which pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from llmasos_xla.api.network import Network
from llmasos_xla.api.pipelines.brought import Brought, one_or_many
from llmasos_xla.api.pipelines.buckets import MOST_ROWS, power_of_two
from llmasos_xla.api.pipelines.text import best, shares
from llmasos_xla.data.pictures import PictureReader, opened

Picture = Any
"""A path, Pillow's picture, or an array [height, width, channels]."""


class Mask(NamedTuple):
    """What each pixel of a picture is."""

    classes: np.ndarray
    """[height, width] of the picture as it came: ids into `labels`."""
    labels: tuple[str, ...]

    def share(self, label: str) -> float:
        """How much of the picture is of that class."""
        return float((self.classes == self.labels.index(label)).mean())


class Sight:
    """A network on pictures: its outputs before the last softmax or sigmoid, or after it where it was trained here.

    A reader brings pictures to what the network reads: given, or of its folder's preprocessor_config.json. A model that
    was fitted needs none, its own preprocessing is the reader.
    """

    def __init__(self, brought: Brought, batch_size: int):
        self.model, self.batch_size, self.reader = brought.model, batch_size, brought.reader()
        learner = brought.model.learner
        self.fitted = self.reader is None and learner.preprocessing is not None
        if self.reader is None and not self.fitted:
            raise ValueError(
                f"pipeline: {brought.task!r} does not know how this model wants its pictures: pass reader=, for "
                "instance data.pictures.PictureReader.imagenet()"
            )
        if not self.fitted:
            brought.network()
        self.head = learner.spec.head if self.fitted else None

    def __call__(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Outputs [pictures, ...]."""
        if self.fitted:
            return self.model.predict(_as_fitted(pictures))
        network, reader = self.model, self.reader
        assert isinstance(network, Network)
        assert isinstance(reader, PictureReader)
        found = []
        for start in range(0, len(pictures), self.batch_size):
            x = reader(pictures[start : start + self.batch_size])
            rows = min(power_of_two(len(x)), self.batch_size)
            output = network(np.concatenate([x, np.repeat(x[:1], rows - len(x), 0)]))
            found.append(np.asarray(getattr(output, "logits", output))[: len(x)])
        return np.concatenate(found)

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Shares of the classes along the last axis; of a single output, those of "no" and "yes"."""
        if self.head is None:
            return shares(outputs)
        return np.concatenate([1 - outputs, outputs], -1) if outputs.shape[-1] == 1 else outputs


@final
class ImageClassification:
    """`classify("cat.jpg")` -> `Label(label, score)`; of a list, a list; with `top=k`, the k best of each picture."""

    def __init__(self, brought: Brought, *, batch_size: int = MOST_ROWS):
        self._sight = Sight(brought, batch_size)
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 1 or shape[0] is None:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a model that gives one row of classes a picture, this one's outputs "
                f"have the shape {shape}"
            )
        self.labels = brought.labels(max(shape[0], 2))

    def __call__(self, pictures: Picture | Sequence[Picture], *, top: int | None = None) -> Any:
        """The most probable label of each picture."""
        items, alone = one_or_many(pictures, "picture", _single)
        found = [best(row, self.labels, top) for row in self._sight.scores(self._sight(items))]
        return found[0] if alone else found


@final
class Segmentation:
    """`segment("cells.png")` -> `Mask(classes [height, width], labels)`, as large as the picture; of a list, a list."""

    def __init__(self, brought: Brought, *, batch_size: int = 8):
        self._sight = Sight(brought, batch_size)
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 3 or shape[2] is None:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a model that gives classes for each pixel, this one's outputs have "
                f"the shape {shape}"
            )
        self.labels = tuple(brought.labels(max(shape[2], 2)))

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Any:
        """The class of each pixel."""
        items, alone = one_or_many(pictures, "picture", _single)
        found = []
        for picture, scores in zip(items, self._sight.scores(self._sight(items))):
            classes = scores.argmax(-1)
            width, height = opened(picture).size
            # Each pixel is what the network's pixel below its middle is.
            rows = ((np.arange(height) + 0.5) * classes.shape[0] / height).astype(int)
            columns = ((np.arange(width) + 0.5) * classes.shape[1] / width).astype(int)
            found.append(Mask(classes[rows][:, columns], self.labels))
        return found[0] if alone else found


def _single(given: Any) -> bool:
    if isinstance(given, str) or hasattr(given, "__fspath__") or hasattr(given, "getbands"):
        return True
    return hasattr(given, "ndim") and (given.ndim == 2 or (given.ndim == 3 and given.shape[-1] in (1, 3, 4)))


def _as_fitted(pictures: Sequence[Picture]) -> Any:
    """Arrays as they are, files and pictures as pictures, which the model's own preprocessing resizes."""
    if all(isinstance(picture, np.ndarray) for picture in pictures):
        return np.stack(pictures)
    return [opened(picture) for picture in pictures]
