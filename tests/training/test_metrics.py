"""Metrics against scikit-learn, added up over batches of odd sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from llmasos_xla.training.losses import loss_by_name
from llmasos_xla.training.metrics import METRICS, add, metric_by_name

N = 101


def streamed(metric, outputs, y, weight):
    """The metric over batches of 32, 32, 32 and 5."""
    total = None
    for i in range(0, N, 32):
        part = slice(i, i + 32)
        sums = metric.sums(jnp.asarray(outputs[part]), jnp.asarray(y[part]), jnp.asarray(weight[part]))
        total = sums if total is None else add(total, sums)
    return metric.result({k: np.asarray(v) for k, v in total.items()})


@pytest.fixture
def classes(rng):
    p = rng.dirichlet(np.ones(8), N).astype(np.float32)
    return p, rng.integers(0, 8, N).astype(np.int32)


@pytest.fixture
def binary(rng):
    return rng.uniform(size=(N, 1)).astype(np.float32), rng.integers(0, 2, N).astype(np.int32)


@pytest.fixture
def weight(rng):
    return rng.integers(0, 3, N).astype(np.float32)


def test_accuracy(classes, weight):
    p, y = classes
    metric = metric_by_name("accuracy", loss_by_name("sparse_categorical_crossentropy"))
    assert metric.name == "accuracy"
    expected = reference.accuracy_score(y, p.argmax(1), sample_weight=weight)
    assert streamed(metric, p, y, weight) == pytest.approx(expected, rel=1e-5)
    one_hot = metric_by_name("acc", loss_by_name("categorical_crossentropy"))
    assert streamed(one_hot, p, np.eye(8, dtype=np.float32)[y], weight) == pytest.approx(expected, rel=1e-5)


def test_top_5(classes, weight):
    p, y = classes
    expected = reference.top_k_accuracy_score(y, p, k=5, sample_weight=weight)
    assert streamed(METRICS["sparse_top_k_categorical_accuracy"], p, y, weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("precision", reference.precision_score),
        ("recall", reference.recall_score),
        ("f1_score", reference.f1_score),
        ("binary_accuracy", reference.accuracy_score),
    ],
)
def test_binary_decisions(name, function, binary, weight):
    p, y = binary
    expected = function(y, p[:, 0] > 0.5, sample_weight=weight)
    assert streamed(METRICS[name], p, y, weight) == pytest.approx(expected, rel=1e-5)


def test_auc_within_a_bin(binary, weight):
    p, y = binary
    expected = reference.roc_auc_score(y, p[:, 0], sample_weight=weight)
    assert streamed(METRICS["auc"], p, y, weight) == pytest.approx(expected, abs=2e-3)


def test_auc_of_two_softmax_outputs_is_that_of_the_second(binary, weight):
    p, y = binary
    both = np.concatenate([1 - p, p], axis=1)
    assert streamed(METRICS["auc"], both, y, weight) == streamed(METRICS["auc"], p, y, weight)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("r2_score", reference.r2_score),
        ("mean_squared_error", reference.mean_squared_error),
        ("mean_absolute_error", reference.mean_absolute_error),
        ("root_mean_squared_error", reference.root_mean_squared_error),
        ("mean_absolute_percentage_error", lambda y, p, **k: 100 * reference.mean_absolute_percentage_error(y, p, **k)),
    ],
)
def test_regression(name, function, rng, weight):
    y = rng.normal(size=(N, 1)).astype(np.float32)
    p = (y + rng.normal(size=(N, 1)) * 0.3).astype(np.float32)
    assert streamed(METRICS[name], p, y, weight) == pytest.approx(function(y, p, sample_weight=weight), rel=1e-4)


def test_padding_of_weight_zero_changes_nothing(classes):
    p, y = classes
    ones = np.ones(N, np.float32)
    padded = np.where(np.arange(N) < 90, 1.0, 0.0).astype(np.float32)
    accuracy = METRICS["sparse_categorical_accuracy"]
    changed = np.where(padded[:, None] > 0, p, p[::-1])
    assert streamed(accuracy, changed, y, padded) == streamed(accuracy, p, y, padded) != streamed(accuracy, p, y, ones)


def test_unknown_metric():
    with pytest.raises(ValueError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        metric_by_name("acuracy", loss_by_name("mse"))


@pytest.mark.parametrize(
    ("name", "full"), [("F1Score", "f1_score"), ("AUC", "auc"), ("RootMeanSquaredError", "root_mean_squared_error")]
)
def test_spellings_of_classes(name, full):
    assert metric_by_name(name, loss_by_name("mse")).name == full


def test_accuracy_of_one_output_is_binary_whatever_the_loss(binary, weight):
    p, y = binary
    metric = metric_by_name("accuracy", loss_by_name("mse"))
    expected = reference.accuracy_score(y, p[:, 0] > 0.5, sample_weight=weight)
    assert streamed(metric, p, y, weight) == pytest.approx(expected, rel=1e-5)


def test_accuracy_under_a_loss_of_the_users_own_reads_ids(classes, weight):
    p, y = classes
    metric = metric_by_name("accuracy", loss_by_name(lambda outputs, y: outputs[:, 0]))
    expected = reference.accuracy_score(y, p.argmax(1), sample_weight=weight)
    assert streamed(metric, p, y, weight) == pytest.approx(expected, rel=1e-5)
