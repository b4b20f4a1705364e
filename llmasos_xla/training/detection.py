"""What detectors learn from: boxes as sets, matched with what is there (Carion et al. 2020; Zhao et al. 2023).

Boxes are center x, center y, width and height as shares of the image. Targets are float32 [rows, objects, 5], (class,
box) each; a class of -1 is padding, so that rows may have different numbers of objects.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from llmasos_xla.training.matching import assignment

NOTHING = -1
"""The class of padding."""

_CLASS, _L1, _GIOU = 2.0, 5.0, 2.0
"""Weights of the costs of a match, and of the losses but that of the class, which is 1."""
_ALPHA, _GAMMA = 0.75, 2.0
"""Of the varifocal loss; `_MATCH_ALPHA` of the focal cost."""
_MATCH_ALPHA = 0.25


def corners(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(center x, center y, width, height) as (left, top, right, bottom).

    >>> corners(jnp.array([0.5, 0.5, 0.5, 1.0])).tolist()
    [0.25, 0.0, 0.75, 1.0]
    """
    centers, extents = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centers - 0.5 * extents, centers + 0.5 * extents], axis=-1)


def overlaps(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> tuple[jax.Array, jax.Array]:
    """Intersection over union of boxes given by center and size, and the generalized one (Rezatofighi et al. 2019).

    >>> [float(v) for v in overlaps(jnp.array([0.25, 0.5, 0.5, 1.0]), jnp.array([0.5, 0.5, 1.0, 1.0]))]
    [0.5, 0.5]
    """
    a_corners, b_corners = corners(a), corners(b)
    inner = jnp.minimum(a_corners[..., 2:], b_corners[..., 2:]) - jnp.maximum(a_corners[..., :2], b_corners[..., :2])
    outer = jnp.maximum(a_corners[..., 2:], b_corners[..., 2:]) - jnp.minimum(a_corners[..., :2], b_corners[..., :2])
    common, hull = jnp.prod(jnp.maximum(inner, 0.0), axis=-1), jnp.prod(outer, axis=-1)
    union = jnp.prod(a[..., 2:], axis=-1) + jnp.prod(b[..., 2:], axis=-1) - common
    # Boxes without area are no division by zero.
    iou = common / jnp.maximum(union, 1e-9)
    return iou, iou - (hull - union) / jnp.maximum(hull, 1e-9)


def set_loss(
    logits: Float[Array, "queries classes"], boxes: Float[Array, "queries 4"], targets: Float[Array, "objects 5"]
) -> Float[Array, ""]:
    """One image's loss: varifocal + 5 L1 + 2 (1 - generalized IoU), summed and divided by the number of objects.

    Each object is matched with one query, at the least total cost; that query is to give its class a score as high as
    their boxes overlap, every other score is to be 0 (Zhang et al. 2021, "VarifocalNet"). The order of objects and
    those of class -1 change nothing.
    """
    real, kinds, wanted = targets[:, 0] >= 0, jnp.maximum(targets[:, 0], 0).astype(jnp.int32), targets[:, 1:]
    iou, giou = overlaps(boxes[:, None], wanted[None])
    distance = jnp.sum(jnp.abs(boxes[:, None] - wanted[None]), axis=-1)
    score = jax.nn.sigmoid(logits)
    there = _MATCH_ALPHA * (1.0 - score) ** _GAMMA * -jnp.log(score + 1e-8)
    absent = (1.0 - _MATCH_ALPHA) * score**_GAMMA * -jnp.log(1.0 - score + 1e-8)
    cost = _CLASS * (there - absent)[:, kinds] + _L1 * distance - _GIOU * giou
    query = assignment(cost, real)
    count, objects = jnp.maximum(jnp.sum(real), 1).astype(logits.dtype), jnp.arange(len(targets))

    def matched(a: jax.Array) -> jax.Array:
        return jnp.where(real, a[query, objects], 0.0)

    # Padding's query, -1, would count from the end.
    at = jnp.where(real, query, len(logits))
    zeros = jnp.zeros_like(logits)
    is_class = zeros.at[at, kinds].set(1.0, mode="drop")
    quality = zeros.at[at, kinds].set(jax.lax.stop_gradient(matched(iou)), mode="drop")
    weight = _ALPHA * jax.lax.stop_gradient(score) ** _GAMMA * (1.0 - is_class) + quality
    classes = jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, quality))
    box = _L1 * jnp.sum(matched(distance)) + _GIOU * jnp.sum(jnp.where(real, 1.0 - matched(giou), 0.0))
    return (classes + box) / count


def detection_loss(found: Any, targets: Float[Array, "batch objects 5"]) -> Float[Array, " batch"]:
    """The loss of each image, the sum over the decoder's layers and the encoder's choice, of `Detections`.

    An image's loss is divided by its own number of objects, so what a row gives does not depend on the rows beside it.

    Raises ValueError for outputs that are no detections.
    """
    if not all(hasattr(found, name) for name in ("logits", "boxes", "early_logits", "early_boxes")):
        raise ValueError(
            f"detection: the loss reads detections, logits and boxes of queries, as lm.models.detr() gives; the model "
            f"gave {type(found).__name__}"
        )
    logits = jnp.concatenate([found.early_logits, found.logits[:, None]], axis=1)
    boxes = jnp.concatenate([found.early_boxes, found.boxes[:, None]], axis=1)
    layers = jax.vmap(set_loss, (0, 0, None))
    return jnp.sum(jax.vmap(layers)(logits, boxes, targets), axis=1)


def check_boxes(y: np.ndarray, output_shape: tuple) -> None:
    """Refuses targets that are no [rows, objects, 5] of classes and boxes in the image, or too many objects."""
    queries, classes = output_shape[-2:]
    if y.ndim != 3 or y.shape[-1] != 5 or not np.issubdtype(y.dtype, np.floating):
        raise ValueError(
            f"detection: wants float targets [rows, objects, 5], (class, center x, center y, width, height), class -1 "
            f"for padding, got {y.dtype} of shape {y.shape}"
        )
    kinds, real = y[..., 0], y[..., 0] != NOTHING
    if y.shape[1] > queries:
        raise ValueError(f"detection: {y.shape[1]} objects a row are more than the model's {queries} queries")
    if np.any(wrong := real & ((kinds < 0) | (kinds >= classes) | (kinds != np.floor(kinds)))):
        row, at = np.argwhere(wrong)[0]
        raise ValueError(
            f"detection: object {at} of row {row} is of class {kinds[row, at]:g}; the model has classes 0 to "
            f"{classes - 1}, and {NOTHING} is padding"
        )
    outside = np.any((y[..., 1:] < 0) | (y[..., 1:] > 1), axis=-1) | np.any(y[..., 3:] <= 0, axis=-1)
    if np.any(wrong := real & outside):
        row, at = np.argwhere(wrong)[0]
        raise ValueError(
            f"detection: the box {y[row, at, 1:].tolist()} of row {row} is no center x, center y, width, height as "
            "shares of the image: from 0 to 1, with an area; divide pixels by the image's size"
        )
