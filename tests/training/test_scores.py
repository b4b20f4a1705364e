"""Scores of tasks against definitions written out, and their refusals."""

import collections
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from llmasos_xla.training import scores
from llmasos_xla.training.losses import IGNORED

pytestmark = pytest.mark.usefixtures("unchecked")

SAID = ["the quick brown fox jumps over the dog", "a man rides a horse on the beach", "two children play outside"]
WANTED = ["the quick brown fox jumped over the lazy dog", "a man rides a horse on a beach", "two kids play outside now"]


def test_bleu_is_the_formula():
    matches, possible = np.zeros(4), np.zeros(4)
    for said, wanted in zip(SAID, WANTED):
        for n in range(4):
            a, b = (collections.Counter(zip(*[t.split()[i:] for i in range(n + 1)])) for t in (said, wanted))
            matches[n] += sum((a & b).values())
            possible[n] += sum(a.values())
    said, wanted = (sum(len(t.split()) for t in side) for side in (SAID, WANTED))
    expected = math.exp(np.log(matches / possible).mean()) * math.exp(min(0, 1 - wanted / said))
    assert 0.2 < expected < 0.8
    assert scores.bleu(SAID, WANTED) == pytest.approx(expected, rel=1e-5)
    assert scores.bleu(SAID, [[w, s] for w, s in zip(WANTED, SAID)]) == pytest.approx(1.0)
    # sacrebleu's, and by hand: all of 9 words are right, exp(1 - 10 / 9) for the nearest reference's 10, not the 5's.
    said, near, short = "a b c d e f g h i", "a b c d e f g h i j", "k l m n o"
    assert scores.bleu([said], [[short, near]]) == pytest.approx(np.exp(1 - 10 / 9), rel=1e-5)
    assert scores.bleu(["a b"], ["c d"]) == 0
    assert scores.bleu([""], ["c d"]) == 0
    assert scores.bleu(["Ja, gut ja ."], ["Ja , gut ja."], split=scores.words) == pytest.approx(1.0)


def edits(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, j in np.ndindex(len(a), len(b)):
        table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j]))
    return table[-1, -1]


@pytest.mark.parametrize(("score", "split"), [(scores.wer, str.split), (scores.cer, list)])
def test_error_rates_are_edits_over_length(score, split):
    said, wanted = [*SAID, "", "noise"], [*WANTED, "not heard", ""]
    expected = sum(edits(split(a), split(b)) for a, b in zip(said, wanted)) / sum(len(split(b)) for b in wanted)
    assert score(said, wanted) == pytest.approx(expected, rel=1e-6)
    assert score(WANTED, WANTED) == 0


def test_rouge():
    found = scores.rouge(["the cat sat", "a b c d"], ["the cat slept on", "a c d e"])
    assert found["rouge1"] == pytest.approx((2 * 2 / 7 + 6 / 8) / 2, rel=1e-5)
    assert found["rouge2"] == pytest.approx((2 * 1 / 5 + 2 * 1 / 6) / 2, rel=1e-5)
    assert found["rougeL"] == pytest.approx((4 / 7 + 6 / 8) / 2, rel=1e-5)


def test_perplexity_looks_at_labelled_steps(rng):
    logits = rng.normal(size=(3, 5, 7)).astype(np.float32)
    labels = rng.integers(0, 7, (3, 5))
    kept = rng.random((3, 5)) < 0.6
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    found = scores.perplexity(logits, np.where(kept, labels, IGNORED))
    assert found == pytest.approx(np.exp(each[kept].mean()), rel=1e-5)


def test_masks(rng):
    a, b = rng.integers(0, 3, (2, 4, 9, 8))
    found = scores.iou(a, b, classes=4)
    expected = reference.jaccard_score(b.ravel(), a.ravel(), average=None)
    np.testing.assert_allclose(found["classes"], [*expected, np.nan], rtol=1e-5)
    assert found["mean"] == pytest.approx(expected.mean(), rel=1e-5)
    hidden = np.where(rng.random(b.shape) < 0.5, IGNORED, b)
    seen = hidden != IGNORED
    expected = reference.jaccard_score(b[seen], a[seen], average="macro")
    assert scores.iou(a, hidden, classes=3)["mean"] == pytest.approx(expected, rel=1e-5)
    assert scores.dice(a > 0, b > 0) == pytest.approx(reference.f1_score(b.ravel() > 0, a.ravel() > 0), rel=1e-5)
    assert scores.dice(np.zeros((2, 3)), np.zeros((2, 3))) == 1


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: scores.wer("a", "b"), TypeError, r"wer: lists of texts are wanted, one text came; pass \[text\]"),
        (lambda: scores.bleu(["a"], ["b", "c"]), ValueError, "bleu: got 1 predictions for 2 references"),
        (lambda: scores.wer(["a"], [""]), ValueError, "the references are empty"),
        (lambda: scores.perplexity(np.ones((2, 3)), np.ones((2, 3))), ValueError, r"got \(2, 3\) and \(2, 3\)"),
        (lambda: scores.perplexity(np.ones((1, 1, 2)), np.full((1, 1), -100)), ValueError, "no step has a label"),
        (lambda: scores.iou(np.ones((1, 2, 2, 3)), np.ones((1, 2, 2)), 3), ValueError, r"argmax\(-1\) first"),
        (lambda: scores.dice(np.ones(2), np.ones(3)), ValueError, r"one shape is wanted, got predictions \(2,\)"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "metrax", None)
    with pytest.raises(ImportError, match=r'scores.wer needs google-metrax: pip install "llmasos_xla\[metrics\]"'):
        scores.wer(["a"], ["b"])
