"""Metrics against scikit-learn, added up over batches of odd sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from llmasos_xla.training.losses import IGNORED, loss_by_name
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


SCORES = {
    "precision": reference.precision_score,
    "recall": reference.recall_score,
    "f1": reference.f1_score,
}


@pytest.mark.parametrize("one_hot", [False, True], ids=["ids", "one-hot"])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("outputs", [1, 2, 3, 8])
def test_averages_over_classes(name, average, outputs, one_hot, rng, weight):
    p = rng.dirichlet(np.full(max(outputs, 2), 0.3), N).astype(np.float32)
    # Class 1 of 8 occurs and is never predicted, 2 is predicted only, 3 neither.
    y = rng.choice(8 if outputs == 8 else max(outputs, 2), N).astype(np.int32)
    if outputs == 8:
        y[(y == 2) | (y == 3)] = 0
        p[:, [1, 3]] *= 1e-3
    expected = SCORES[name](y, p.argmax(1), average=average, sample_weight=weight, zero_division=0)
    if outputs == 1:
        p = p[:, 1:]
    targets = np.eye(outputs, dtype=np.float32)[y] if one_hot and outputs > 1 else y
    metric = metric_by_name(f"{name}_{average}", loss_by_name("mse"))
    assert streamed(metric, p, targets, weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("average", [None, "macro", "micro", "weighted"])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("outputs", [2, 5])
def test_averages_over_labels(name, average, outputs, rng, weight):
    p = rng.uniform(size=(N, outputs)).astype(np.float32)
    y = (rng.uniform(size=(N, outputs)) < 0.4).astype(np.int32)
    y[:, 0], p[:, 0] = 0, 0
    expected = SCORES[name](y, p > 0.5, average=average or "micro", sample_weight=weight, zero_division=0)
    metric = metric_by_name(f"{name}_{average}" if average else name, loss_by_name("binary_crossentropy"))
    assert streamed(metric, p, y, weight) == pytest.approx(expected, rel=1e-5)


def pairs_won(score, positive, weight):
    """AUC as it is defined, in float64: the share of pairs of a positive and a negative in which it is larger."""
    score = score.astype(np.float64)
    pairs = np.outer(weight * positive, weight * ~positive)
    larger = (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])
    return (pairs * larger).sum() / pairs.sum()


@pytest.mark.parametrize("one_hot", [False, True], ids=["ids", "one-hot"])
def test_auc_of_classes_is_the_mean_of_each_against_the_rest(classes, weight, one_hot):
    p, y = classes
    y = np.where(y == 5, 0, y)  # a class without rows has no area
    expected = np.mean([pairs_won(p[:, i], y == i, weight) for i in set(y)])
    targets = np.eye(8, dtype=np.float32)[y] if one_hot else y
    assert streamed(METRICS["auc"], p, targets, weight) == pytest.approx(expected, abs=2e-3)


def test_auc_of_labels_is_their_mean(rng, weight):
    p = rng.uniform(size=(N, 3)).astype(np.float32)
    y = rng.integers(0, 2, (N, 3))
    expected = reference.roc_auc_score(y, p, sample_weight=weight)
    metric = metric_by_name("auc", loss_by_name("binary_crossentropy"))
    assert streamed(metric, p, y.astype(np.float32), weight) == pytest.approx(expected, abs=2e-3)


def test_auc_without_negatives_is_not_a_number(binary):
    p, y = binary
    assert np.isnan(streamed(METRICS["auc"], p, np.ones_like(y), np.ones(N, np.float32)))


@pytest.mark.parametrize("outputs", [1, 2, 8])
@pytest.mark.parametrize("name", ["accuracy", "auc", *(f"{score}_macro" for score in ("precision", "recall", "f1"))])
def test_what_has_no_label_does_not_count(name, outputs, rng, weight):
    p = rng.dirichlet(np.ones(max(outputs, 2)), N).astype(np.float32)[:, -outputs:]
    y = rng.integers(0, max(outputs, 2), N).astype(np.int32)
    gone = rng.random(N) < 0.3
    if name == "accuracy" and outputs == 1:
        name = "precision"
    metric = metric_by_name(name, loss_by_name("sparse_categorical_crossentropy"))
    found = streamed(metric, p, np.where(gone, IGNORED, y), weight)
    assert found == pytest.approx(streamed(metric, p, y, weight * ~gone), rel=1e-5)


def test_scores_of_every_position(rng):
    p = rng.dirichlet(np.ones(4), (N, 3)).astype(np.float32)
    y = rng.integers(0, 4, (N, 3)).astype(np.int32)
    ones = np.ones(N, np.float32)
    expected = reference.f1_score(y.ravel(), p.argmax(-1).ravel(), average="macro")
    assert streamed(METRICS["f1_score_macro"], p, y, ones) == pytest.approx(expected, rel=1e-5)
    expected = np.mean([pairs_won(p[..., i].ravel(), y.ravel() == i, np.ones(3 * N)) for i in range(4)])
    assert streamed(METRICS["auc"], p, y, ones) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("one_hot", [False, True], ids=["ids", "one-hot"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1_score"])
def test_scores_of_two_classes_refuse_three(name, one_hot, classes):
    p, y = classes
    message = f"metric '{name}' is that of two classes, the model has 8 outputs: choose '{name}_macro'.*'{name}_micro'"
    with pytest.raises(ValueError, match=message):
        streamed(METRICS[name], p, np.eye(8, dtype=np.float32)[y] if one_hot else y, np.ones(N, np.float32))


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


@pytest.mark.parametrize(
    ("function", "came"),
    [
        (lambda outputs, y: jnp.mean(outputs), "a single number"),
        (lambda outputs, y: 0.5, "a single number"),
        (lambda outputs, y: jnp.mean(outputs, axis=0), r"an array of shape \(8,\)"),
    ],
)
def test_a_function_gives_one_value_a_row(function, came, classes, weight):
    metric = metric_by_name(function, loss_by_name("mse"))
    with pytest.raises(ValueError, match=rf"metric '<lambda>' gave {came} for a batch of 32 rows; one value a row"):
        streamed(metric, *classes, weight)


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
