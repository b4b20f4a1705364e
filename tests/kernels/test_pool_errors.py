"""What pooling refuses, and the words it uses."""

import re

import numpy as np
import pytest

from llmasos_xla import kernels

pytestmark = pytest.mark.usefixtures("unchecked")

X = np.ones((2, 6, 5, 3), np.float32)

BOTH = [
    (
        {"x": X[0, 0]},
        ValueError,
        "x must be [batch, *spatial, channels] with one to three spatial axes, got shape (5,",
    ),
    ({"window": 0}, ValueError, "window=0 must be positive"),
    ({"window": (2, 2, 2)}, ValueError, "window=(2, 2, 2) has 3 entries, the input has 2 spatial axes"),
    ({"window": 2.0}, TypeError, "window must be an int or 2 of them, got 2.0"),
    ({"strides": -1}, ValueError, "strides=-1 must be positive"),
    ({"window": (2, 6)}, ValueError, "the window spans 6 on spatial axis 1, the padded input only 5"),
    ({"padding": "same "}, ValueError, "unknown padding 'same '; did you mean 'SAME'?"),
    ({"implementation": "onnx"}, ValueError, "unknown implementation 'onnx'; did you mean 'onednn'?"),
    ({"x": X > 0}, TypeError, "x is bool; cast it to float32"),
]


@pytest.mark.parametrize("op", [kernels.max_pool, kernels.avg_pool])
@pytest.mark.parametrize(("wrong", "error", "words"), BOTH)
def test_pooling_refuses(op, wrong, error, words):
    with pytest.raises(error, match=re.escape(f"{op.__name__}: {words}")):
        op(**({"x": X, "window": 2} | wrong))


def test_avg_pool_refuses_integers_and_windows_of_padding():
    with pytest.raises(TypeError, match="avg_pool: x is int32; cast it to float32"):
        kernels.avg_pool(X.astype(np.int32), 2)
    with pytest.raises(ValueError, match="holds padding only"):
        kernels.avg_pool(X, 2, 1, ((2, 0), (0, 0)))
    assert kernels.avg_pool(X, 2, 1, ((2, 0), (0, 0)), count_include_pad=True).shape == (2, 7, 4, 3)
