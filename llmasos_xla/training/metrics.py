"""Metrics by the names Keras gives them, as sums that add up over batches.

A metric turns a batch into sums (arrays), sums of batches are added on the device, and `result` turns the total into
one number, late, on the host.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.errors import unknown
from llmasos_xla.training.classification import AVERAGES, auc, averaged, counts, f1_score, histograms, precision, recall
from llmasos_xla.training.losses import ALIASES, IGNORED, LOSSES, Loss, over_labelled, spelled

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: how History calls it.
        sums: (outputs, y, weight [batch]) -> the batch's sums.
        result: sums -> the value.
    """

    name: str
    sums: Callable[[jax.Array, jax.Array, jax.Array], Sums]
    result: Callable[[dict[str, np.ndarray]], float]


def _ratio(sums: dict[str, np.ndarray]) -> float:
    return float(sums["sum"] / np.maximum(sums["weight"], 1e-12))


def mean(name: str, per_sample: Callable[[jax.Array, jax.Array], jax.Array], result: Callable = _ratio) -> Metric:
    """The weighted mean over samples of `per_sample(outputs, y)` [batch, ...]."""

    def sums(outputs: jax.Array, y: jax.Array, weight: jax.Array) -> Sums:
        values = jnp.asarray(per_sample(outputs, y)).astype(jnp.float32)
        if values.shape[:1] != weight.shape:
            came = f"an array of shape {values.shape}" if values.ndim else "a single number"
            raise ValueError(
                f"metric {name!r} gave {came} for a batch of {weight.shape[0]} rows; one value a row is wanted, "
                "(outputs, y) -> [batch, ...], of which the mean is taken: average over axis=-1, not over the rows"
            )
        return {"sum": jnp.sum(values.reshape(values.shape[0], -1).mean(axis=1) * weight), "weight": jnp.sum(weight)}

    return Metric(name, sums, result)


def labelled_mean(name: str, per_step: Callable[[jax.Array, jax.Array], jax.Array]) -> Metric:
    """The mean over samples of their mean over labelled steps: class ids `y` of -100 are no labels.

    `per_step(outputs, y)` has the shape of the labels. Samples without a label do not count.
    """

    def sums(outputs: jax.Array, y: jax.Array, weight: jax.Array) -> Sums:
        y = y.reshape(outputs.shape[:-1])
        values = over_labelled(per_step(outputs, jnp.where(y == IGNORED, 0, y)).astype(jnp.float32), y)
        weight = weight * jnp.any((y != IGNORED).reshape(y.shape[0], -1), axis=1).astype(weight.dtype)
        return {"sum": jnp.sum(values * weight), "weight": jnp.sum(weight)}

    return Metric(name, sums, _ratio)


def _sparse_accuracy(p: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.argmax(p, -1) == y.reshape(p.shape[:-1])


def _binary_accuracy(p: jax.Array, y: jax.Array) -> jax.Array:
    return (p > 0.5) == (y.reshape(p.shape) > 0)


def _categorical_accuracy(p: jax.Array, y: jax.Array) -> jax.Array:
    if p.shape[-1] == 1:
        # The largest of one output says nothing.
        return _binary_accuracy(p, y)
    return jnp.argmax(p, -1) == jnp.argmax(y.reshape(p.shape), -1) if y.size == p.size else _sparse_accuracy(p, y)


def _top5(p: jax.Array, y: jax.Array) -> jax.Array:
    y = y.reshape(p.shape[:-1])
    score = jnp.take_along_axis(p, y[..., None], axis=-1)
    return jnp.sum(p > score, axis=-1) < 5


def _r2_sums(p: jax.Array, y: jax.Array, weight: jax.Array) -> Sums:
    y = y.reshape(p.shape).astype(jnp.float32)
    w = jnp.broadcast_to(weight.reshape(-1, *[1] * (p.ndim - 1)), p.shape)
    return {"res": jnp.sum(w * (p - y) ** 2), "w": jnp.sum(w), "y": jnp.sum(w * y), "yy": jnp.sum(w * y * y)}


def _r2(s: dict[str, np.ndarray]) -> float:
    total = float(s["yy"]) - float(s["y"]) ** 2 / max(float(s["w"]), 1e-12)
    return 1.0 - float(s["res"]) / max(total, 1e-12)


def _classification(labels: bool) -> list[Metric]:
    scores = {"precision": precision, "recall": recall, "f1_score": f1_score}
    return [
        Metric(f"{name}_{average}" if average else name, counts(name, average, labels), averaged(score, average))
        for name, score in scores.items()
        for average in (None, *AVERAGES)
    ] + [Metric("auc", histograms(labels), auc)]


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        labelled_mean("sparse_categorical_accuracy", _sparse_accuracy),
        mean("categorical_accuracy", _categorical_accuracy),
        mean("binary_accuracy", _binary_accuracy),
        mean("sign_accuracy", lambda p, y: (p > 0.0) == (y.reshape(p.shape) > 0)),
        labelled_mean("sparse_top_k_categorical_accuracy", _top5),
        mean(
            "root_mean_squared_error",
            lambda p, y: jnp.square(p - y.reshape(p.shape).astype(jnp.float32)),
            lambda s: float(np.sqrt(_ratio(s))),
        ),
        *_classification(labels=False),
        Metric("r2_score", _r2_sums, _r2),
        *(
            mean(name, lambda p, y, function=LOSSES[name].function: function(p, y))
            for name in (
                "mean_squared_error",
                "mean_absolute_error",
                "mean_absolute_percentage_error",
                "mean_squared_logarithmic_error",
                "cosine_similarity",
            )
        ),
    )
}

# The same where each of several outputs is a decision of its own.
_OF_LABELS = {m.name: m for m in _classification(labels=True)}

_SHORT = {
    "top_5": "sparse_top_k_categorical_accuracy",
    "rmse": "root_mean_squared_error",
    "f1": "f1_score",
    **{f"f1_{average}": f"f1_score_{average}" for average in AVERAGES},
    "r2": "r2_score",
}


def metric_by_name(metric: str | Metric | Callable, loss: Loss) -> Metric:
    """The metric of that name, any case; "accuracy" becomes the kind of accuracy that fits the loss, as in Keras.

    "precision", "recall", "f1_score" and "auc" take several outputs as classes, under a loss of sigmoids as labels.

    A function `(outputs, y) -> [batch]` becomes its mean.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return mean(getattr(metric, "__name__", "metric"), metric)
    name = spelled(metric, [*METRICS, *_SHORT, *ALIASES, "accuracy", "acc"]) or ""
    if name in ("accuracy", "acc"):
        kind = {"class": "sparse_categorical_accuracy"}.get(loss.targets, "categorical_accuracy")
        kind = "binary_accuracy" if loss.name.startswith("binary") else kind
        kind = "sign_accuracy" if loss.name.endswith("hinge") else kind
        return dataclasses.replace(METRICS[kind], name=name)
    full = _SHORT.get(name, ALIASES.get(name, name))
    if full not in METRICS:
        raise unknown("compile", "metric", metric, {*METRICS, *_SHORT, "accuracy", "mse", "mae", "mape"})
    found = _OF_LABELS if loss.head == "sigmoid" and full in _OF_LABELS else METRICS
    return dataclasses.replace(found[full], name=name)


def add(a: Any, b: Any) -> Any:
    """The sums of two batches together."""
    return jax.tree.map(jnp.add, a, b)
