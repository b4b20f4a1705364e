"""A small problem both doors learn in a second."""

import numpy as np
import pytest

import llmasos_xla as lm


@pytest.fixture(scope="session")
def blobs():
    """Three Gaussian blobs in four dimensions: 101 rows, an odd number."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 101).astype(np.int32)
    centers = rng.normal(size=(3, 4)) * 2
    return (centers[y] + rng.normal(size=(101, 4))).astype(np.float32), y


@pytest.fixture
def sequential():
    def make(seed=0, optimizer="adam", **options):
        model = lm.Sequential(
            [
                lm.layers.Dense(8, activation="relu", input_shape=(4,)),
                lm.layers.BatchNormalization(),
                lm.layers.Dropout(0.1),
                lm.layers.Dense(3, activation="softmax"),
            ],
            seed=seed,
        )
        model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], **options)
        return model

    return make
