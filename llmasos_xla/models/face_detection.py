"""Faces in a picture, by the three networks of MTCNN (Zhang et al. 2016), each on what the one before has left."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from llmasos_xla.core import Variables
from llmasos_xla.data.pictures import opened
from llmasos_xla.models.mtcnn import MTCNNConfig, Parts
from llmasos_xla.models.pretrained import load

_FILES = {"proposal": "pnet.pt", "refinement": "rnet.pt", "output": "onet.pt"}
_WINDOW, _STEP = 12, 2


class Faces(NamedTuple):
    """The faces of one picture, likeliest first."""

    boxes: np.ndarray
    """[faces, 4]: left, top, right, bottom in pixels; they may reach over the picture's border."""
    scores: np.ndarray
    """[faces]: probabilities."""
    points: np.ndarray
    """[faces, 5, 2]: x and y in pixels of left eye, right eye, nose, left and right end of the mouth."""


@dataclasses.dataclass(frozen=True)
class FaceDetector:
    """Finds faces: `FaceDetector.load(folder)(image)`.

    The picture is searched at all scales for windows that may be faces, by a network of convolutions; a second and a
    third network look at what is left in 24x24 and 48x48 pixels and move the boxes. Windows that overlap a likelier one
    are dropped after each.

    Args:
        proposal: variables of the first network.
        refinement: of the second.
        output: of the third.
        smallest: height of the smallest face that is looked for, in pixels.
        thresholds: how likely a face must be after each network.
        factor: how much smaller each scale is than the one before.
    """

    proposal: Variables
    refinement: Variables
    output: Variables
    smallest: int = 20
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    factor: float = 0.709

    def __post_init__(self) -> None:
        if self.smallest < _WINDOW or not 0 < self.factor < 1 or not all(0 < t < 1 for t in self.thresholds):
            raise ValueError(
                f"FaceDetector: wants smallest of {_WINDOW} pixels and more, factor and thresholds between 0 and 1, "
                f"got smallest={self.smallest}, factor={self.factor}, thresholds={self.thresholds}"
            )

    @classmethod
    def load(cls, folder: str | os.PathLike, **options: Any) -> "FaceDetector":
        """With published weights: pnet.pt, rnet.pt and onet.pt of that folder."""
        read = {
            stage: load(MTCNNConfig(stage), pathlib.Path(folder) / file, source="torch")
            for stage, file in _FILES.items()
        }
        return cls(**read, **options)

    def __call__(self, image: Any) -> Faces:
        """The faces of an image [height, width, 3], RGB, 0 to 255; or of a path, Pillow's picture, gray, floats to 1.

        A network is compiled once for each size of picture, and for each power of two of windows.
        """
        image = _pixels(image)
        boxes, _ = self._proposed(image)
        first = self._judged("refinement", image, boxes, self.thresholds[1])
        boxes, scores, moves = first[0], first[1], first[2]
        keep = suppress(boxes, scores, 0.7)
        boxes = _square(_moved(boxes[keep], moves[keep], 1.0))
        boxes, scores, moves, points = self._judged("output", image, boxes, self.thresholds[2])
        corner, extent = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2] + 1
        points = corner - 1 + extent * points.reshape(-1, 2, 5).swapaxes(1, 2)
        boxes = _moved(boxes, moves, 1.0)
        # Of a box inside of another one stays: what counts is the share of the smaller.
        keep = suppress(boxes, scores, 0.7, of_smaller=True)
        return Faces(boxes[keep], scores[keep], points[keep])

    def _proposed(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Square boxes [n, 4] that may be faces, and how likely they are [n]."""
        height, width = image.shape[:2]
        scale = _WINDOW / self.smallest
        found = [np.zeros((0, 9), np.float32)]
        while min(height, width) * scale >= _WINDOW:
            small = _resized(image, int(height * scale + 1), int(width * scale + 1))
            said = _network("proposal")(self.proposal, _centered(small)[None])
            scores = np.asarray(jax.nn.softmax(said.logits[0]))[..., 1]
            rows, columns = np.nonzero(scores >= self.thresholds[0])
            corners = _STEP * np.stack([columns, rows, columns, rows], 1) + np.array([1, 1, _WINDOW, _WINDOW])
            boxes = np.floor(corners / scale).astype(np.float32)
            here = scores[rows, columns]
            parts = np.concatenate([boxes, here[:, None], np.asarray(said.boxes[0])[rows, columns]], axis=1)
            found.append(parts[suppress(boxes, here, 0.5)])
            scale *= self.factor
        every = np.concatenate(found)
        every = every[suppress(every[:, :4], every[:, 4], 0.7)]
        return _square(_moved(every[:, :4], every[:, 5:], 0.0)), every[:, 4]

    def _judged(self, stage: str, image: np.ndarray, boxes: np.ndarray, least: float) -> tuple[np.ndarray, ...]:
        """The boxes that a network takes for faces, how likely, how they are to be moved, and points."""
        size = MTCNNConfig(stage).plan.size
        windows, kept = [], []
        for i, (left, top, right, bottom) in enumerate(np.trunc(boxes).astype(int)):
            # Pixels are counted from 1, both ends included.
            seen = image[max(top, 1) - 1 : max(bottom, 0), max(left, 1) - 1 : max(right, 0)]
            if seen.size:
                windows.append(_centered(_resized(seen, size, size)))
                kept.append(i)
        if not windows:
            return boxes[:0], np.zeros(0, np.float32), boxes[:0], np.zeros((0, 10), np.float32)
        count = len(windows)
        room = 1 << (count - 1).bit_length()
        batch = np.zeros((room, size, size, 3), np.float32)
        batch[:count] = windows
        said = jax.device_get(_network(stage)(getattr(self, stage), batch))
        scores = np.asarray(jax.nn.softmax(said.logits[:count]))[:, 1]
        points = np.zeros((room, 10), np.float32) if said.points is None else said.points
        chosen = scores > least
        return boxes[kept][chosen], scores[chosen], said.boxes[:count][chosen], points[:count][chosen]


def suppress(boxes: np.ndarray, scores: np.ndarray, most: float, *, of_smaller: bool = False) -> np.ndarray:
    """Which boxes stay, likeliest first, when those are dropped that overlap a likelier one by more than `most`.

    Args:
        boxes: [n, 4]: left, top, right, bottom.
        scores: [n].
        most: share of the union that two boxes may have in common.
        of_smaller: whether it is a share of the smaller box.

    >>> boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
    >>> suppress(boxes, np.array([0.8, 0.9, 0.7]), 0.5).tolist()
    [1, 2]
    """
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    order, keep = np.argsort(-scores, kind="stable"), []
    while order.size:
        best, order = order[0], order[1:]
        keep.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        whole = np.minimum(areas[best], areas[order]) if of_smaller else areas[best] + areas[order] - common
        order = order[common <= most * whole]
    return np.array(keep, int)


def _pixels(image: Any) -> np.ndarray:
    """RGB [height, width, 3] from 0 to 255, float32."""
    x = image
    if not hasattr(image, "ndim") or image.ndim == 2 or image.shape[-1] in (1, 4):
        x = np.asarray(opened(image))
    x = np.asarray(x)
    if x.ndim != 3 or x.shape[-1] != 3:
        raise ValueError(f"FaceDetector: wants one image (height, width, 3), RGB, got shape {x.shape}")
    largest = x.max(initial=0)
    # Nothing of a picture is as dark as 1 of 255 throughout: these are shares.
    return x.astype(np.float32) * np.float32(255 if x.dtype.kind == "f" and largest <= 1 else 1)


def _moved(boxes: np.ndarray, moves: np.ndarray, more: float) -> np.ndarray:
    """Boxes with their edges moved by shares of their widths and heights, which are `more` than edges' differences."""
    extent = boxes[:, 2:] - boxes[:, :2] + np.float32(more)
    return boxes + moves * np.concatenate([extent, extent], axis=1)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The squares about the same centers whose side is the longer one."""
    extent = boxes[:, 2:] - boxes[:, :2]
    side = extent.max(axis=1, keepdims=True, initial=0)
    corner = boxes[:, :2] + 0.5 * extent - 0.5 * side
    return np.concatenate([corner, corner + side], axis=1)


def _centered(pixels: np.ndarray) -> np.ndarray:
    return (pixels - np.float32(127.5)) / np.float32(128)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel is the mean of the pixels that it covers."""
    rows = np.tensordot(_means(image.shape[0], height), image, 1)
    return np.tensordot(rows, _means(image.shape[1], width), ((1,), (1,))).swapaxes(1, 2)


@functools.lru_cache(maxsize=256)
def _means(given: int, wanted: int) -> np.ndarray:
    """Means over `wanted` spans of `given` pixels [wanted, given]; spans that share a pixel both have all of it."""
    weights = np.zeros((wanted, given), np.float32)
    for i in range(wanted):
        first, last = i * given // wanted, -(-(i + 1) * given // wanted)
        weights[i, first:last] = 1 / (last - first)
    return weights


@functools.cache
def _network(stage: str) -> Callable[[Variables, np.ndarray], Parts]:
    apply = MTCNNConfig(stage).net().apply
    return jax.jit(lambda variables, x: apply(variables, x, train=False)[0])
