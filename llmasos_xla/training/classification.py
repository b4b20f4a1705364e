"""Precision, recall, F1 and AUC as sums over batches: of two classes, of several, of several labels a row.

A model's outputs are `p [batch, ..., outputs]`, probabilities. One output, or two of a softmax, tell two classes apart,
the positive one is the last. Where `labels` is true each of several outputs is a decision of its own (sigmoids), else
they are classes of which the largest is chosen; `y` holds ids or one-hot rows then. Ids of -100 are no labels: what has
them is left out.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.data.labels import IGNORED

Sums = dict[str, jax.Array]
Totals = Mapping[str, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

AVERAGES = ("macro", "micro", "weighted")

_BINS = 1000


def precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """tp / (tp + fp), 0 where nothing was predicted."""
    return _ratio(tp, tp + fp)


def recall(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """tp / (tp + fn), 0 where nothing was there to be found."""
    return _ratio(tp, tp + fn)


def f1_score(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), the harmonic mean of precision and recall."""
    return _ratio(2 * tp, 2 * tp + fp + fn)


def counts(name: str, average: str | None, labels: bool) -> Callable[[jax.Array, jax.Array, jax.Array], Sums]:
    """True positives, false positives and false negatives of each class or label, as sums of the samples' weights.

    Without `average` they are those of two classes, or of several labels together; the function raises ValueError
    where the outputs are three classes or more.
    """

    def sums(p: jax.Array, y: jax.Array, weight: jax.Array) -> Sums:
        outputs = _outputs(p)
        if labels and outputs > 1:
            predicted, actual = p > 0.5, y.reshape(p.shape).astype(jnp.float32) > 0.5
        elif average is None:
            if outputs > 2:
                raise ValueError(
                    f"metric {name!r} is that of two classes, the model has {outputs} outputs: choose "
                    f"'{name}_macro' (the classes' mean), '{name}_weighted' (their mean by size) or '{name}_micro' "
                    "(all decisions together); several labels a row go with the loss binary_crossentropy"
                )
            predicted, actual = _positive(p)[..., None] > 0.5, _positive_labels(p, y)[..., None] > 0.5
        else:
            ids = (_positive(p) > 0.5).astype(jnp.int32) if outputs < 3 else jnp.argmax(p, -1)
            predicted, actual = _one_hot(ids, max(outputs, 2)), _actual(p, y)
        w = _spread(weight, predicted) * _labelled(p, y, predicted)
        over = tuple(range(predicted.ndim - 1))
        found = {
            "tp": jnp.sum(w, over, where=predicted & actual),
            "fp": jnp.sum(w, over, where=predicted & ~actual),
            "fn": jnp.sum(w, over, where=~predicted & actual),
        }
        # A label counts in a mean even if it never occurs, a class does not, as in scikit-learn.
        return found | {"seen": jnp.sum(w, over) if labels and outputs > 1 else found["tp"] + found["fp"] + found["fn"]}

    return sums


def averaged(score: Score, average: str | None) -> Callable[[Totals], float]:
    """The score from the sums of `counts`: "macro" is its mean over classes, "weighted" their mean by size, "micro" and
    None that of all decisions together. Classes that neither occur nor are predicted are left out.

    >>> sums = {"tp": np.array([3, 1]), "fp": np.array([1, 0]), "fn": np.array([0, 1]), "seen": np.array([4, 2])}
    >>> averaged(recall, "macro")(sums), averaged(recall, "micro")(sums)
    (0.75, 0.8)
    """

    def result(sums: Totals) -> float:
        tp, fp, fn, seen = (np.asarray(sums[key], np.float64) for key in ("tp", "fp", "fn", "seen"))
        if average in (None, "micro"):
            tp, fp, fn = (each.sum(keepdims=True) for each in (tp, fp, fn))
        w = {"macro": seen > 0, "weighted": tp + fn}.get(average or "micro", np.ones_like(tp))
        return float((w * score(tp, fp, fn)).sum() / max(float(w.sum()), 1e-12))

    return result


def histograms(labels: bool) -> Callable[[jax.Array, jax.Array, jax.Array], Sums]:
    """How the outputs of positives and negatives are spread over 0 to 1, [classes, bins]; one row for two classes."""

    def sums(p: jax.Array, y: jax.Array, weight: jax.Array) -> Sums:
        outputs = _outputs(p)
        if labels and outputs > 1:
            score, actual = p, y.reshape(p.shape)
        elif outputs < 3:
            score, actual = _positive(p)[..., None], _positive_labels(p, y)[..., None]
        else:
            score, actual = p, _actual(p, y)
        w = (_spread(weight, score) * _labelled(p, y, score)).reshape(-1, score.shape[-1])
        actual = actual.astype(jnp.float32).reshape(w.shape)
        bins = jnp.clip((score.reshape(w.shape) * _BINS).astype(jnp.int32), 0, _BINS - 1)
        rows = jnp.broadcast_to(jnp.arange(w.shape[1])[None], w.shape)
        zero = jnp.zeros((w.shape[1], _BINS), jnp.float32)
        return {
            "positive": zero.at[rows, bins].add(w * actual),
            "negative": zero.at[rows, bins].add(w * (1.0 - actual)),
        }

    return sums


def auc(sums: Totals) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties of a bin of 1/1000 count half.

    Of several classes or labels it is the mean of each against the rest; those without positives or negatives are left
    out, and NaN is returned if none remains.
    """
    positive, negative = np.asarray(sums["positive"], np.float64), np.asarray(sums["negative"], np.float64)
    below = np.cumsum(negative, -1) - negative
    pairs = positive.sum(-1) * negative.sum(-1)
    wins = np.sum(positive * (below + 0.5 * negative), -1)
    return float(np.mean(wins[pairs > 0] / pairs[pairs > 0])) if (pairs > 0).any() else float("nan")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return above / np.where(below > 0, below, 1.0) * (below > 0)


def _outputs(p: jax.Array) -> int:
    return p.shape[-1] if p.ndim > 1 else 1


def _positive(p: jax.Array) -> jax.Array:
    """The probability of the positive one of two classes, [batch, ...]."""
    return p[..., -1] if p.ndim > 1 else p


def _positive_labels(p: jax.Array, y: jax.Array) -> jax.Array:
    if _outputs(p) == 2 and y.shape == p.shape:
        y = y[..., 1]
    return y.reshape(_positive(p).shape).astype(jnp.float32)


def _actual(p: jax.Array, y: jax.Array) -> jax.Array:
    """Which class each sample is of, [batch, ..., classes] bool."""
    if _outputs(p) < 3:
        return _one_hot((_positive_labels(p, y) > 0.5).astype(jnp.int32), 2)
    ids = jnp.argmax(y.reshape(p.shape), -1) if y.size == p.size else y.reshape(p.shape[:-1]).astype(jnp.int32)
    return _one_hot(ids, p.shape[-1])


def _one_hot(ids: jax.Array, classes: int) -> jax.Array:
    return jax.nn.one_hot(ids, classes, dtype=bool)


def _labelled(p: jax.Array, y: jax.Array, like: jax.Array) -> jax.Array:
    """1 where there is a label, 0 where class ids say that there is none; shaped to go with `like`."""
    if not jnp.issubdtype(y.dtype, jnp.integer) or y.size != p.size // _outputs(p):
        return jnp.ones((1,) * like.ndim, jnp.float32)
    return (y != IGNORED).astype(jnp.float32).reshape(*_positive(p).shape, *[1] * (like.ndim - _positive(p).ndim))


def _spread(weight: jax.Array, over: jax.Array) -> jax.Array:
    return jnp.broadcast_to(weight.reshape(-1, *[1] * (over.ndim - 1)), over.shape)
