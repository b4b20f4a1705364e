"""Scores of whole tasks, computed on the host: text, masks, next tokens. Extra `metrics` (google-metrax).

Text comes as one str a sample. All scores are shares from 0 to 1, where papers often write 100 times as much; error
rates may be larger than 1.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.data.labels import IGNORED
from llmasos_xla.errors import missing_package

Split = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """Words and signs, each for itself: what `str.split` leaves together.

    >>> words("Ein Hund, der rennt.")
    ['Ein', 'Hund', ',', 'der', 'rennt', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, split: Split = str.split, order: int = 4
) -> float:
    """BLEU of a whole corpus (Papineni et al. 2002): up to `order` words in a row, brevity penalty, no smoothing.

    `references` are one translation or several a sample; of several the one nearest in length is what brevity means.
    Scores compare only where `split` is the same: published ones mostly set signs apart, `split=words`.

    >>> bleu(["the cat sat on the mat"], ["the cat sat on the mat"])
    1.0
    """
    several = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    _check("bleu", predictions, several)
    spaced = [" ".join(split(text)) for text in predictions]
    if not any(spaced):
        return 0.0
    wanted = [[" ".join(split(text)) for text in texts] for texts in several]
    with _metrax("bleu") as metrax:
        found = metrax.BLEU.from_model_output(spaced, wanted, order)
        # Its own sum is of the shortest references.
        nearest = [
            _nearest(len(said.split()), [len(text.split()) for text in texts]) for said, texts in zip(spaced, wanted)
        ]
        return float(dataclasses.replace(found, reference_length=jnp.float32(sum(nearest))).compute())


def rouge(predictions: Sequence[str], references: Sequence[str], *, split: Split = str.split) -> dict[str, float]:
    """ROUGE (Lin 2004), the mean of the samples' F1: shared words, pairs of words, longest common subsequence.

    >>> rouge(["a small dog"], ["a dog"])["rouge1"]
    0.8
    """
    _check("rouge", predictions, references)
    texts = [[" ".join(split(text)) for text in side] for side in (predictions, references)]
    with _metrax("rouge") as metrax:
        scores = {f"rouge{n}": metrax.RougeN.from_model_output(*texts, order=n) for n in (1, 2)}
        scores["rougeL"] = metrax.RougeL.from_model_output(*texts)
        # Precision, recall, F1.
        return {name: round(float(score.compute()[2]), 7) for name, score in scores.items()}


def wer(predictions: Sequence[str], references: Sequence[str], *, split: Split = str.split) -> float:
    """Word error rate: words to insert, delete and replace, over the words of the references.

    Raises ValueError if the references have no words.

    >>> wer(["one too three"], ["one two three"]) == 1 / 3
    True
    """
    return _error_rate("wer", predictions, references, split)


def cer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Character error rate: `wer` of characters.

    >>> cer(["tvo"], ["two"]) == 1 / 3
    True
    """
    return _error_rate("cer", predictions, references, list)


def perplexity(logits: Any, labels: Any) -> float:
    """exp of the mean cross-entropy of the labelled steps: logits [batch, time, vocab], ids [batch, time].

    Labels of -100 do not count.

    >>> round(perplexity(jnp.zeros((1, 3, 5)), jnp.array([[0, 4, -100]])), 4)
    5.0
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"perplexity: logits [batch, time, vocab] and labels [batch, time] are wanted, got {logits.shape} and "
            f"{labels.shape}"
        )
    weights = (labels != IGNORED).astype(jnp.float32)
    if not float(weights.sum()):
        raise ValueError("perplexity: no step has a label")
    with _metrax("perplexity") as metrax:
        found = metrax.Perplexity.from_model_output(logits.astype(jnp.float32), labels, weights, from_logits=True)
        return float(found.compute())


def iou(predictions: Any, targets: Any, classes: int) -> dict[str, Any]:
    """Intersection over union of masks of class ids [batch, height, width], all pixels of all samples together.

    Returns `{"mean": ..., "classes": [...]}`. A class that neither is there nor was predicted is NaN, and not in the
    mean. Pixels whose target is -100 do not count.

    >>> iou(np.array([[[0, 1, 1]]]), np.array([[[0, 0, 1]]]), classes=3)
    {'mean': 0.5, 'classes': [0.5, 0.5, nan]}
    """
    predictions, targets = _masks("iou", predictions, targets)
    # A class of their own on both sides is none of those that are counted.
    predictions = np.where(targets == IGNORED, IGNORED, predictions)
    found = []
    with _metrax("iou") as metrax:
        for c in range(classes):
            if not ((predictions == c) | (targets == c)).any():
                found.append(float("nan"))
                continue
            one = metrax.IoU.from_model_output(
                jnp.asarray(predictions), jnp.asarray(targets), classes, jnp.array([c]), epsilon=0.0
            )
            found.append(float(one.compute()))
    mean = float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")
    return {"mean": mean, "classes": found}


def dice(predictions: Any, targets: Any) -> float:
    """Dice's coefficient 2 |A and B| / (|A| + |B|), of all samples together: F1 of pixels.

    `predictions` are probabilities or 0 and 1, `targets` 0 and 1, of one shape. 1 where both are empty.

    >>> round(dice(np.array([[1, 1, 0]]), np.array([[1, 0, 0]])), 4)
    0.6667
    """
    predictions, targets = np.asarray(predictions, np.float32), np.asarray(targets, np.float32)
    if predictions.shape != targets.shape:
        raise ValueError(f"dice: one shape is wanted, got predictions {predictions.shape}, targets {targets.shape}")
    if not predictions.any() and not targets.any():
        return 1.0
    with _metrax("dice") as metrax:
        return float(metrax.Dice.from_model_output(jnp.asarray(predictions), jnp.asarray(targets)).compute())


def _nearest(length: int, lengths: Sequence[int]) -> int:
    """The one that is nearest, of two the shorter."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _error_rate(who: str, predictions: Sequence[str], references: Sequence[str], split: Split) -> float:
    _check(who, predictions, references)
    edits = length = 0.0
    with _metrax(who) as metrax:
        for prediction, reference in zip(predictions, references):
            said, wanted = split(prediction), split(reference)
            if said and wanted:
                found = metrax.WER.from_model_output(said, wanted)
                edits, length = edits + float(found.total), length + float(found.count)
            else:
                # metrax refuses empty sides; all words of the other one are edits.
                edits, length = edits + len(said) + len(wanted), length + len(wanted)
    if not length:
        raise ValueError(f"{who}: the references are empty")
    return edits / length


def _check(who: str, predictions: Any, references: Any) -> None:
    if isinstance(predictions, str) or isinstance(references, str):
        raise TypeError(f"{who}: lists of texts are wanted, one text came; pass [text]")
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"{who}: got {len(predictions)} predictions for {len(references)} references")


def _masks(who: str, predictions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if (
        predictions.shape != targets.shape
        or targets.ndim != 3
        or {predictions.dtype.kind, targets.dtype.kind} - {*"iub"}
    ):
        raise ValueError(
            f"{who}: class ids [batch, height, width] of one shape are wanted, got predictions {predictions.dtype} "
            f"{predictions.shape}, targets {targets.dtype} {targets.shape}; logits go through argmax(-1) first"
        )
    return predictions.astype(np.int32), targets.astype(np.int32)


@contextlib.contextmanager
def _metrax(who: str) -> Iterator[Any]:
    try:
        import metrax
    except ImportError:
        raise missing_package(f"scores.{who}", "google-metrax", "metrics") from None
    # Its sums mix dtypes, which a user may have forbidden.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield metrax
