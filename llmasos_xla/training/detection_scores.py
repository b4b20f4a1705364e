"""How good detections are: boxes from a detector's outputs, and COCO's average precision of them.

found = model.predict(images)
scores = mean_average_precision(best_boxes(found), targets, (480, 640))
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Boxes(NamedTuple):
    """What is seen in one image, the surest first."""

    classes: np.ndarray
    """[n] int."""
    scores: np.ndarray
    """[n] from 0 to 1."""
    boxes: np.ndarray
    """[n, 4] center x, center y, width, height as shares of the image."""


class AveragePrecision(NamedTuple):
    """COCO's scores, means over the classes that occur."""

    ap: float
    """Mean over overlaps of 0.5, 0.55 .. 0.95: "AP50:95"."""
    ap50: float
    """Where an overlap of a half is enough."""
    ap75: float
    by_class: dict[int, float]
    """Class -> its AP50."""


def best_boxes(found: Any, *, threshold: float = 0.0, limit: int = 100) -> list[Boxes]:
    """The boxes of each image whose score is over the threshold, at most `limit`.

    Each class of each query is a candidate of its own, as in the paper; nothing is suppressed.

    Args:
        found: `Detections` of a batch, logits [batch, queries, classes] and boxes [batch, queries, 4].
        threshold: of the score.
        limit: the most boxes of an image.

    >>> class Found(NamedTuple):
    ...     logits: np.ndarray
    ...     boxes: np.ndarray
    >>> found = Found(np.array([[[-9.0, 0.0], [2.0, -9.0]]]), np.array([[[0.5] * 4, [0.25] * 4]]))
    >>> best_boxes(found, threshold=0.1)[0].classes.tolist()
    [0, 1]
    """
    logits, boxes = np.asarray(found.logits, np.float64), np.asarray(found.boxes, np.float64)
    batch, _, classes = logits.shape
    # exp overflows for no logit that counts.
    flat = (1.0 / (1.0 + np.exp(-np.maximum(logits, -500.0)))).reshape(batch, -1)
    result = []
    for scores, given in zip(flat, boxes, strict=True):
        order = np.argsort(-scores, kind="stable")[:limit]
        order = order[scores[order] > threshold]
        result.append(Boxes(order % classes, scores[order], given[order // classes]))
    return result


def mean_average_precision(
    found: Sequence[Boxes], targets: np.ndarray, size: tuple[int, int] = (480, 640)
) -> AveragePrecision:
    """COCO's average precision of detections, by pycocotools.

    Args:
        found: the boxes seen in each image.
        targets: [images, objects, 5] of (class, center x, center y, width, height); class -1 is padding.
        size: (height, width) of the images in pixels, which overlaps of boxes do not depend on.

    Raises ValueError for targets of another number of images or without objects, ImportError without pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError('mean_average_precision needs pycocotools: pip install "llmasos_xla[vision]"') from error
    targets = np.asarray(targets)
    if len(found) != len(targets) or targets.ndim != 3 or targets.shape[-1] != 5:
        raise ValueError(
            f"mean_average_precision: {len(found)} images' boxes and targets [{len(found)}, objects, 5] are wanted, "
            f"got targets of shape {targets.shape}"
        )
    if not np.any(targets[..., 0] >= 0):
        raise ValueError("mean_average_precision: the targets hold no objects, so there is no precision")
    objects = [
        {"image_id": i, "category_id": int(row[0]), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, rows in enumerate(targets)
        for row in rows[rows[:, 0] >= 0]
        for box in _pixels(row[None, 1:], size)
    ]
    seen = [
        {"image_id": i, "category_id": int(kind), "bbox": box, "score": float(score)}
        for i, boxes in enumerate(found)
        for kind, score, box in zip(boxes.classes, boxes.scores, _pixels(boxes.boxes, size), strict=True)
    ]
    kinds = sorted({o["category_id"] for o in objects})
    if not any(o["category_id"] in kinds for o in seen):
        return AveragePrecision(0.0, 0.0, 0.0, dict.fromkeys(kinds, 0.0))
    truth: Any = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(found))],
        "categories": [{"id": kind} for kind in kinds],
        # pycocotools takes an id of 0 for nobody.
        "annotations": [{**o, "id": i} for i, o in enumerate(objects, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        scores: Any = COCOeval(truth, truth.loadRes([o for o in seen if o["category_id"] in kinds]), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    # [overlaps, recalls, classes, areas, most detections]; -1 is no value.
    half = scores.eval["precision"][0, :, :, 0, -1]
    by_class = {kind: float(np.mean(half[:, i][half[:, i] > -1])) for i, kind in enumerate(kinds)}
    ap, ap50, ap75 = (float(v) for v in scores.stats[:3])
    return AveragePrecision(ap, ap50, ap75, by_class)


def _pixels(boxes: np.ndarray, size: tuple[int, int]) -> list[list[float]]:
    """Left, top, width and height in pixels, as COCO has them."""
    scale = np.array([size[1], size[0]], np.float64)
    centers, extents = np.asarray(boxes[:, :2], np.float64) * scale, np.asarray(boxes[:, 2:], np.float64) * scale
    return np.concatenate([centers - extents / 2, extents], axis=1).tolist()
