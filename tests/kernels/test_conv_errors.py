"""What convolution refuses, and the words it uses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla import kernels

pytestmark = pytest.mark.usefixtures("unchecked")

NHWC = ("NHWC", "HWIO", "NHWC")
X, W = np.ones((2, 8, 7, 6), np.float32), np.ones((3, 3, 6, 4), np.float32)

CONV = [
    ({"lhs": X[0, 0]}, ValueError, "conv: lhs and rhs must both have rank 3, 4 or 5"),
    ({"lhs": X[0]}, ValueError, r"got lhs (8, 7, 6), rhs (3, 3, 6, 4)"),
    (
        {"rhs": W[:, :, :5]},
        ValueError,
        "conv: lhs has 6 channels, rhs expects 5 in each of 1 group(s), 5 in all "
        "(lhs (2, 8, 7, 6), rhs (3, 3, 5, 4), lhs NHWC, rhs HWIO)",
    ),
    ({"feature_group_count": 2}, ValueError, "rhs expects 6 in each of 2 group(s), 12 in all"),
    ({"rhs": W[:, :, :2], "feature_group_count": 3}, ValueError, "4 output channels do not divide into 3 groups"),
    ({"feature_group_count": 0}, ValueError, "feature_group_count=0 and batch_group_count=1: both must be at least 1"),
    ({"batch_group_count": 3}, ValueError, "must both divide into batch_group_count=3"),
    (
        {"lhs": X[:, :2]},
        ValueError,
        "conv: the kernel spans 3 on spatial axis 0, the padded input only 2",
    ),
    ({"rhs_dilation": (1, 4)}, ValueError, "the kernel spans 9 on spatial axis 1, the padded input only 7"),
    ({"rhs": W[:0]}, ValueError, "conv: rhs has a spatial axis of size 0"),
    (
        {"lhs": X.astype(np.float16)},
        TypeError,
        "lhs is float16, rhs is float32; cast one, e.g. lhs.astype('float32')",
    ),
    ({"lhs": X.astype(np.int8), "rhs": W.astype(np.int8)}, TypeError, "conv: sums of int8 products overflow"),
    ({"lhs": X > 0, "rhs": W > 0}, TypeError, "conv: operands are bool; cast them to float32"),
    ({"window_strides": 0}, ValueError, "conv: window_strides=0 must be positive"),
    ({"window_strides": (1, 2, 1)}, ValueError, "window_strides=(1, 2, 1) has 3 entries, the input has 2 spatial axes"),
    ({"rhs_dilation": 1.5}, TypeError, "conv: rhs_dilation must be an int or 2 of them, got 1.5"),
    ({"padding": "SAEM"}, ValueError, "conv: unknown padding 'SAEM'; did you mean 'SAME'?"),
    ({"padding": 1}, TypeError, "padding must be 'SAME', 'SAME_LOWER', 'VALID' or 2 pairs (low, high), got 1"),
    ({"padding": ((1, 1),)}, ValueError, "has 1 pairs, the input has 2 spatial axes"),
    ({"bias": np.ones(3, np.float32)}, ValueError, "conv: bias has shape (3,), expected (4,) = (cout,)"),
    ({"bias": np.ones(4, np.float16)}, TypeError, "conv: bias is float16, the operands are float32; cast the bias"),
    ({"activation": "rleu"}, ValueError, "conv: unknown activation 'rleu'; did you mean 'relu'? Known: "),
    (
        {"lhs": X.astype(np.int32), "rhs": W.astype(np.int32), "activation": "tanh"},
        TypeError,
        "conv: activation='tanh' needs floating point, the result is int32",
    ),
    ({"implementation": "cudnn"}, ValueError, "conv: unknown implementation 'cudnn'; Known: onednn, triton, xla"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), CONV)
def test_conv_refuses(wrong, error, words):
    right = {"lhs": X, "rhs": W, "dimension_numbers": NHWC}
    with pytest.raises(error, match=re.escape(words)):
        kernels.conv(**(right | wrong))


TRANSPOSE = [
    ({"padding": "SAME_LOWER"}, ValueError, "conv_transpose: unknown padding 'SAME_LOWER'"),
    ({"strides": 0}, ValueError, "conv_transpose: strides=0 must be positive"),
    ({"rhs": W[:, :, :5]}, ValueError, "conv_transpose: lhs has 6 channels, rhs expects 5"),
    ({"transpose_kernel": True}, ValueError, "conv_transpose: lhs has 6 channels, rhs expects 4"),
    ({"lhs": X[0]}, ValueError, "conv_transpose: lhs and rhs must both have rank 3, 4 or 5"),
    ({"padding": ((-14, 0), (0, 0))}, ValueError, "conv_transpose: the kernel spans 3 on spatial axis 0"),
    ({"bias": np.ones(6, np.float32)}, ValueError, "conv_transpose: bias has shape (6,), expected (4,) = (cout,)"),
    ({"implementation": "triton"}, ValueError, "conv_transpose: unknown implementation 'triton'"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), TRANSPOSE)
def test_conv_transpose_refuses(wrong, error, words):
    right = {"lhs": X, "rhs": W, "strides": 2, "padding": "SAME"}
    with pytest.raises(error, match=re.escape(words)):
        kernels.conv_transpose(**(right | wrong))


def test_errors_come_while_tracing_and_from_explain_alike():
    with pytest.raises(ValueError, match="rhs expects 5"):
        jax.eval_shape(lambda x, w: kernels.conv(x, w, dimension_numbers=NHWC), X, W[:, :, :5])
    with pytest.raises(ValueError, match="rhs expects 5"):
        kernels.explain(kernels.conv, jnp.asarray(X), jnp.asarray(W[:, :, :5]), dimension_numbers=NHWC)
