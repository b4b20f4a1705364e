"""Tasks on pictures: what is on them, where, and which pixels."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import jax
import numpy as np

from llmasos_xla.api.network import Network
from llmasos_xla.api.pipelines.brought import Brought, one_or_many
from llmasos_xla.api.pipelines.buckets import MOST_ROWS, power_of_two
from llmasos_xla.api.pipelines.text import best, shares
from llmasos_xla.data.array_input import ArrayInput
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


class Box(NamedTuple):
    """A thing on a picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels of the picture as it came."""


class Sight:
    """A network on pictures: its outputs before the last softmax or sigmoid, or after it where it was trained here.

    A reader brings pictures to what the network reads: given, or of its folder's preprocessor_config.json. A model that
    was fitted on bytes needs none, its own preprocessing is the reader; so is that of one fitted on floats from 0 to 1.
    Of other floats nobody knows how they came of a picture.
    """

    def __init__(self, brought: Brought, batch_size: int):
        self.model, self.batch_size, self.reader = brought.model, batch_size, brought.reader()
        learner = brought.model.learner
        seen = learner.preprocessing.input if learner.preprocessing is not None else None
        self.input = seen if isinstance(seen, ArrayInput) else None
        if brought.given_reader is None and learner.epochs_done and self.input is not None and _tells(self.input):
            # The folder's file speaks of the weights before the fit.
            self.reader = None
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
            return self.model.predict(self._as_fitted(pictures))
        return np.concatenate([np.asarray(getattr(output, "logits", output)) for output in self.raw(pictures)])

    def raw(self, pictures: Sequence[Picture]) -> Iterator[Any]:
        """What the network gives for some of the pictures, then for the next ones."""
        network, reader = self.model, self.reader
        for start in range(0, len(pictures), self.batch_size):
            some = pictures[start : start + self.batch_size]
            if self.fitted:
                yield network.predict(self._as_fitted(some))
                continue
            assert isinstance(network, Network)
            assert isinstance(reader, PictureReader)
            x = reader(some)
            rows = min(power_of_two(len(x)), self.batch_size)
            output = network(np.concatenate([x, np.repeat(x[:1], rows - len(x), 0)]))
            yield jax.tree.map(lambda a, real=len(x): np.asarray(a)[:real], output)

    def _as_fitted(self, pictures: Sequence[Picture]) -> Any:
        """Arrays as they are, files and pictures as pictures, which the model's own preprocessing resizes."""
        seen, x = self.input, None
        if all(isinstance(picture, np.ndarray) for picture in pictures) and len({p.shape for p in pictures}) == 1:
            x = np.stack(pictures)
            if x.dtype != np.uint8:
                return x
        if seen is None or _tells(seen):
            return [opened(picture) for picture in pictures] if x is None else x
        if not seen.unit:
            raise ValueError(
                "pipeline: this model was fitted on floats that are no shares of 255, so it does not know how they "
                "come of bytes and files: pass reader=, for instance data.pictures.PictureReader.imagenet(), or arrays "
                "prepared as in the fit"
            )
        pixels = dataclasses.replace(seen, dtype="uint8", unit=False)
        raw = [opened(picture) for picture in pictures] if x is None else x
        return pixels.encode(raw, who="pipeline").astype(np.float32) / np.float32(255)

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
class Detection:
    """`detect("street.jpg")` -> `[Box(label, score, box), ...]`, the surest first; of a list of pictures, a list.

    For detectors by sets of queries, such as RT-DETR, whose classes are sigmoids and need no suppression of boxes that
    lie over each other. Boxes of a score below `threshold` are left out.
    """

    def __init__(self, brought: Brought, *, threshold: float = 0.5, batch_size: int = 8):
        brought.network()
        self._sight, self.threshold = Sight(brought, batch_size), threshold
        shape = brought.model.learner.spec.output_shape()
        if len(shape) != 2 or shape[1] is None:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a detector, which gives classes for each query; this one's outputs "
                f"have the shape {shape}"
            )
        self.labels = brought.labels(shape[1])

    def __call__(self, pictures: Picture | Sequence[Picture], *, threshold: float | None = None) -> Any:
        """The boxes on each picture."""
        items, alone = one_or_many(pictures, "picture", _single)
        found, least = [], self.threshold if threshold is None else threshold
        for output in self._sight.raw(items):
            for logits, boxes in zip(output.logits, output.boxes):
                found.append(self._boxes(logits, boxes, _size(items[len(found)]), least))
        return found[0] if alone else found

    def _boxes(self, logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int], least: float) -> list[Box]:
        scores = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        # As many as there are queries, of which one may be of several classes.
        order = np.argsort(-scores, axis=None, kind="stable")[: len(scores)]
        centers, sizes = np.asarray(boxes, np.float64)[:, :2], np.asarray(boxes, np.float64)[:, 2:]
        corners = np.concatenate([centers - sizes / 2, centers + sizes / 2], 1) * np.tile(size, 2)
        found = []
        for query, label in zip(*np.unravel_index(order, scores.shape)):
            if scores[query, label] >= least:
                left, top, right, bottom = map(float, corners[query])
                found.append(Box(self.labels[label], float(scores[query, label]), (left, top, right, bottom)))
        return found


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
            width, height = _size(picture)
            # Each pixel is what the network's pixel below its middle is.
            rows = ((np.arange(height) + 0.5) * classes.shape[0] / height).astype(int)
            columns = ((np.arange(width) + 0.5) * classes.shape[1] / width).astype(int)
            found.append(Mask(classes[rows][:, columns], self.labels))
        return found[0] if alone else found


def _single(given: Any) -> bool:
    if isinstance(given, str) or hasattr(given, "__fspath__") or hasattr(given, "getbands"):
        return True
    return hasattr(given, "ndim") and (given.ndim == 2 or (given.ndim == 3 and given.shape[-1] in (1, 3, 4)))


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height; of an array, whatever its values are."""
    return (picture.shape[1], picture.shape[0]) if hasattr(picture, "ndim") else opened(picture).size


def _tells(seen: ArrayInput) -> bool:
    """Whether a fit's own scaling turns the bytes of pictures into what the network reads."""
    return seen.dtype == "uint8" or seen.mean is not None
