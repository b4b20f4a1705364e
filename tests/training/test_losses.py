"""Losses against float64 NumPy references, and their refusals."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from tolerances import assert_close

from llmasos_xla.kernels.activation import activation
from llmasos_xla.training.losses import (
    ALIASES,
    IGNORED,
    LOSSES,
    check_targets,
    logits_for,
    loss_by_name,
    smoothed,
)

B, C = 7, 5


def softmax(z):
    return special.softmax(z, axis=-1)


def mean_last(f):
    return lambda p, y: f(p, y).mean(-1)


REFERENCES = {
    "sparse_categorical_crossentropy": lambda z, y: -np.log(softmax(z)[np.arange(B), y]),
    "categorical_crossentropy": lambda z, y: -(y * np.log(softmax(z))).sum(-1),
    "binary_crossentropy": mean_last(
        lambda z, y: -(y * np.log(special.expit(z)) + (1 - y) * np.log(1 - special.expit(z)))
    ),
    "binary_focal_crossentropy": mean_last(
        lambda z, y: (
            -(
                y * (1 - special.expit(z)) ** 2 * np.log(special.expit(z))
                + (1 - y) * special.expit(z) ** 2 * np.log(1 - special.expit(z))
            )
        )
    ),
    "dice_crossentropy": lambda z, y: (
        -(y * np.log(special.expit(z)) + (1 - y) * np.log(1 - special.expit(z))).mean(-1)
        + 1
        - (2 * (special.expit(z) * y).sum(-1) + 1) / (special.expit(z).sum(-1) + y.sum(-1) + 1)
    ),
    "mean_squared_error": mean_last(lambda p, y: (p - y) ** 2),
    "mean_absolute_error": mean_last(lambda p, y: abs(p - y)),
    "mean_absolute_percentage_error": mean_last(lambda p, y: 100 * abs((y - p) / np.maximum(abs(y), 1e-7))),
    "mean_squared_logarithmic_error": mean_last(
        lambda p, y: (np.log1p(np.maximum(p, 0)) - np.log1p(np.maximum(y, 0))) ** 2
    ),
    "huber": mean_last(lambda p, y: special.huber(1.0, p - y)),
    "log_cosh": mean_last(lambda p, y: np.log(np.cosh(p - y))),
    "hinge": mean_last(lambda p, y: np.maximum(1 - np.where(y <= 0, -1, 1) * p, 0)),
    "squared_hinge": mean_last(lambda p, y: np.maximum(1 - np.where(y <= 0, -1, 1) * p, 0) ** 2),
    "poisson": mean_last(lambda p, y: p - y * np.log(p + 1e-7)),
    "kl_divergence": lambda p, y: (y * np.log(y / p)).sum(-1),
    "cosine_similarity": lambda p, y: -(p * y).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(y, axis=-1),
}


# What reads more than an array of outputs has its references beside its own tests.
ELSEWHERE = {"ctc": "models/test_ctc.py", "detection": "training/test_detection.py"}
HERE = sorted(LOSSES.keys() - ELSEWHERE.keys())


def example(name, rng):
    z = rng.normal(size=(B, C))
    if name == "sparse_categorical_crossentropy":
        return z, rng.integers(0, C, B)
    if name.endswith("crossentropy") or "hinge" in name:
        return z, np.eye(C)[rng.integers(0, C, B)]
    if name in ("kl_divergence", "poisson", "mean_squared_logarithmic_error"):
        return softmax(z), softmax(rng.normal(size=(B, C)))
    return z, rng.normal(size=(B, C))


def test_every_loss_has_a_reference():
    assert REFERENCES.keys() | ELSEWHERE.keys() == LOSSES.keys()
    tests = pathlib.Path(__file__).parents[1]
    assert all(f'"{name}"' in (tests / file).read_text() for name, file in ELSEWHERE.items())


@pytest.mark.parametrize("name", HERE)
def test_values(name, rng):
    p, y = example(name, rng)
    labels = jnp.asarray(y, jnp.int32) if y.dtype.kind == "i" else jnp.asarray(y, jnp.float32)
    p32 = jnp.asarray(p, jnp.float32)
    actual = LOSSES[name](p32, p32, labels)
    assert_close(actual, REFERENCES[name](np.asarray(p32, np.float64), np.asarray(labels)), scale=5)


@pytest.mark.parametrize("name", HERE)
def test_gradients_against_finite_differences(name, rng):
    p, y = example(name, rng)
    with jax.enable_x64(True):
        labels = jnp.asarray(y, jnp.int32) if y.dtype.kind == "i" else jnp.asarray(y)
        function = LOSSES[name].function
        gradient = np.asarray(jax.grad(lambda q: jnp.sum(function(q, labels)))(jnp.asarray(p)))
        direction = rng.normal(size=p.shape)
        step = 1e-6
        difference = jnp.sum(function(jnp.asarray(p + step * direction), labels)) - jnp.sum(
            function(jnp.asarray(p - step * direction), labels)
        )
    np.testing.assert_allclose((gradient * direction).sum(), float(difference) / (2 * step), rtol=1e-5, atol=1e-6)


def test_extreme_logits_stay_finite():
    z = jnp.array([[1e4, -1e4, 0.0]])
    assert float(LOSSES["sparse_categorical_crossentropy"](z, z, jnp.array([1]))[0]) == pytest.approx(2e4)
    assert float(LOSSES["binary_crossentropy"](z, z, jnp.zeros((1, 3)))[0]) == pytest.approx(
        1e4 / 3 + np.log(2) / 3, rel=1e-4
    )


@pytest.mark.parametrize("name", [*ALIASES, "MSE", "Huber", "MeanSquaredError", "Sparse_Categorical_Crossentropy"])
def test_names_in_every_spelling(name):
    assert loss_by_name(name).name in LOSSES


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown loss 'mean_sqared_error'; did you mean 'mean_squared_error'.*huber"):
        loss_by_name("mean_sqared_error")


def test_a_function_is_a_loss():
    def fourth(outputs, y):
        return jnp.mean((outputs - y) ** 4, axis=-1)

    loss = loss_by_name(fourth)
    assert loss.name == "fourth"
    assert_close(loss(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.zeros((2, 3))), [1.0, 1.0])


SPARSE = "sparse_categorical_crossentropy"
BAD_TARGETS = [
    (
        "binary_crossentropy",
        np.array([2, 4]),
        (1,),
        "labels run from 2 to 4, wanted 0 to 1: renumber.*y == 4.*categories=",
    ),
    ("categorical_crossentropy", -np.eye(3), (3,), "labels run from -1.0 to -?0.0, wanted 0 to 1"),
    (SPARSE, np.eye(3), (3,), "got float64.*one-hot targets go with categorical_crossentropy"),
    (
        SPARSE,
        np.array([0, 5, 1]),
        (3,),
        "label 5 of row 1 is out of range: the model has 3 outputs, so labels go from 0 to 2",
    ),
    (SPARSE, np.array([0, -1]), (3,), "label -1 of row 1 is out of range"),
    (SPARSE, np.array([0.0, 1.0]), (3,), "wants integer class labels, got float64.*cast them with y.astype"),
    (SPARSE, np.full((2, 3), 0.3), (3,), "one-hot targets go with categorical_crossentropy"),
    (
        SPARSE,
        np.eye(3, dtype=int),
        (3,),
        r"labels have shape \(3, 3\).*one-hot labels go with categorical_crossentropy",
    ),
    ("mse", np.zeros((4, 2)), (3,), r"targets have shape \(4, 2\), the model's outputs \(4, 3\)"),
    (
        "categorical_crossentropy",
        np.array([0, 1]),
        (3,),
        "integer class labels go with sparse_categorical_crossentropy",
    ),
]


@pytest.mark.parametrize(("name", "y", "shape", "text"), BAD_TARGETS)
def test_targets_that_do_not_fit(name, y, shape, text):
    with pytest.raises(ValueError, match=text):
        check_targets(loss_by_name(name), y, shape)


def test_names_of_three_classes_are_no_numbers():
    y, names = np.array([0, 1, 2]), ("high", "low", "middle")
    with pytest.raises(
        ValueError, match=r"mean_squared_error: .* 3 classes \('high', 'low', 'middle'\).*Dense\(3, act"
    ):
        check_targets(loss_by_name("mse"), y, (1,), names)
    check_targets(loss_by_name("mse"), y, (1,))
    check_targets(loss_by_name(SPARSE), y, (3,), names)
    # Two are 0 and 1.
    check_targets(loss_by_name("mse"), y[:2], (1,), names[:2])


def test_a_loss_of_another_length_is_refused():
    loss = loss_by_name(lambda outputs, y: jnp.ones(5))
    p = jnp.ones((6, 3))
    with pytest.raises(ValueError, match=r"gave shape \(5,\) for a batch of 6 rows; one value a row is wanted"):
        loss(p, p, jnp.ones(6))


@pytest.mark.parametrize(
    ("name", "full"),
    [("KLDivergence", "kl_divergence"), ("MeanSquaredError", "mean_squared_error"), ("Log-Cosh", "log_cosh")],
)
def test_spellings_of_classes(name, full):
    assert loss_by_name(name).name == full


@pytest.mark.parametrize(
    ("name", "head", "y"),
    [
        ("binary_crossentropy", "softmax", np.eye(3, dtype=np.float32)),
        ("categorical_crossentropy", "sigmoid", np.eye(3, dtype=np.float32)),
        (SPARSE, "sigmoid", np.arange(3)),
    ],
)
def test_a_cross_entropy_under_the_other_head_is_that_of_the_probabilities(name, head, y, rng):
    logits = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)
    p = np.asarray(activation(head)(logits), np.float64)
    one_hot = np.eye(3)
    if name == "binary_crossentropy":
        wanted = -(one_hot * np.log(p) + (1 - one_hot) * np.log(1 - p)).mean(axis=1)
    else:
        wanted = -np.log((p * one_hot).sum(axis=1) / p.sum(axis=1))
    loss, outputs = loss_by_name(name), activation(head)(logits)
    assert_close(loss(logits_for(loss, head, logits, outputs), outputs, jnp.asarray(y)), wanted)


def test_a_function_decides_about_its_targets_itself():
    loss = loss_by_name(lambda outputs, y: outputs[:, 0])
    check_targets(loss, np.array([0, 2, 1]), (3,))


def test_steps_without_a_label_leave_loss_and_gradient_alone(rng):
    z = rng.normal(size=(4, 6, C)).astype(np.float32)
    y = rng.integers(0, C, (4, 6)).astype(np.int32)
    gone = rng.random((4, 6)) < 0.5
    gone[0], gone[1] = False, True
    loss = LOSSES["sparse_categorical_crossentropy"]

    def losses(z):
        return loss(z, z, jnp.asarray(np.where(gone, IGNORED, y)))

    each = -np.log(np.take_along_axis(softmax(z.astype(np.float64)), y[..., None], -1)[..., 0])
    expected = np.where(gone, 0, each).sum(1) / np.maximum((~gone).sum(1), 1)
    np.testing.assert_allclose(losses(jnp.asarray(z)), expected, rtol=1e-5)
    gradient = np.asarray(jax.grad(lambda z: losses(z).sum())(jnp.asarray(z)))
    assert not gradient[gone].any()
    assert np.abs(gradient[~gone]).sum(-1).all()


@pytest.mark.parametrize("name", ["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"])
def test_smoothed_labels_are_labels_spread_over_the_classes(name, rng):
    z = rng.normal(size=(B, C)).astype(np.float32)
    ids = rng.integers(0, C, B).astype(np.int32)
    one_hot = np.eye(C, dtype=np.float32)[ids]
    like = name.removeprefix("sparse_")
    spread = one_hot * 0.8 + (0.2 / C if "categorical" in name else 0.1)
    expected = LOSSES[like](jnp.asarray(z), jnp.asarray(z), jnp.asarray(spread))
    y = ids if name.startswith("sparse") else one_hot
    found = loss_by_name(f"{name}(label_smoothing=0.2)")
    np.testing.assert_allclose(found(jnp.asarray(z), jnp.asarray(z), jnp.asarray(y)), expected, rtol=1e-5)
    assert found is smoothed(name, 0.2)
    assert loss_by_name(found.name) is found
    assert smoothed(name, 0) is LOSSES[name]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: smoothed("mse", 0.1), "'mean_squared_error' has no label smoothing; sparse_categorical"),
        (lambda: smoothed(share=1.0), "a share of the labels is wanted, 0 <= share < 1, got 1.0"),
        (lambda: loss_by_name("binary_crossentropy(label_smoothing=1.2.3)"), "has no number behind label_smoothing="),
        (lambda: loss_by_name("sparse(label_smoothing=0.1)"), "unknown loss 'sparse'"),
    ],
)
def test_smoothing_refuses(make, text):
    with pytest.raises(ValueError, match=text):
        make()
