"""rnn, gru and lstm: what is refused at the door, and in which words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla import kernels

pytestmark = pytest.mark.usefixtures("unchecked")

X, W, U, B = jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.ones(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"lstm: x is (5, 3), expects 3 axes: [batch, time, features]"),
        ({"w_input": B}, r"lstm: w_input is (16,), expects 2 axes: [features, 4 * hidden]"),
        (
            {"w_recurrent": U[:, :12]},
            r"lstm: w_recurrent is (4, 12), expects [hidden, 4 * hidden] = (4, 16) (gates i f g o)",
        ),
        ({"w_recurrent": U[:0, :0]}, r"lstm: w_recurrent is (0, 0) = hidden, 4 * hidden, expects at least one unit"),
        (
            {"x": X[..., :2]},
            r"lstm: w_input is (3, 16), expects [features, 4 * hidden] = (2, 16) for x (2, 5, 2) = batch, time, "
            r"features and w_recurrent (4, 16) = hidden, 4 * hidden",
        ),
        ({"w_input": W[:, :12]}, r"lstm: w_input is (3, 12), expects [features, 4 * hidden] = (3, 16) for x (2, 5, 3)"),
        ({"bias": B[:4]}, r"lstm: bias is (4,), expects [4 * hidden] = (16,)"),
        ({"h0": jnp.ones((1, 4))}, r"lstm: h0 is (1, 4), expects [batch, hidden] = (2, 4)"),
        ({"c0": jnp.ones(4)}, r"lstm: c0 is (4,), expects [batch, hidden] = (2, 4)"),
        ({"lengths": np.ones(3, int)}, r"lstm: lengths is (3,), expects [batch] = (2,), one length for each row of x"),
        ({"lengths": np.array([5, 6])}, r"lstm: lengths run from 5 to 6, x has 5 steps; expects 0 <= length <= 5"),
        ({"lengths": jnp.array([-1, 5])}, r"lstm: lengths run from -1 to 5, x has 5 steps"),
        ({"x": X[:0]}, r"lstm: x (0, 5, 3) = batch, time, features has an empty batch axis, expects at least one row"),
        (
            {"x": X[:, :0]},
            r"lstm: x (2, 0, 3) = batch, time, features has an empty time axis, expects at least one step",
        ),
        ({"activation": "tahn"}, r"lstm: unknown activation 'tahn'; did you mean 'tanh'? Known:"),
        ({"recurrent_activation": "sigmod"}, r"lstm: unknown activation 'sigmod'; did you mean 'sigmoid'?"),
        ({"implementation": "cudnn"}, r"lstm: unknown implementation 'cudnn'; Known: "),
    ],
)
def test_refused_with_value_error(change, message):
    with pytest.raises(ValueError) as error:
        kernels.lstm(**{"x": X, "w_input": W, "w_recurrent": U, "bias": B} | change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.astype(int)}, "lstm: x is int32, expects a floating dtype; convert it, e.g. x.astype('float32')"),
        (
            {"w_input": W.astype("bfloat16")},
            "lstm: w_input is bfloat16, x is float32; convert one of them with .astype",
        ),
        ({"h0": jnp.ones((2, 4), "float16")}, "lstm: h0 is float16, x is float32"),
        ({"lengths": np.ones(2)}, "lstm: lengths is float32, expects an integer dtype"),
        ({"lengths": np.ones(2, bool)}, "lstm: lengths is bool, expects an integer dtype"),
    ],
)
def test_refused_with_type_error(change, message):
    with pytest.raises(TypeError) as error:
        kernels.lstm(**{"x": X, "w_input": W, "w_recurrent": U, "bias": B} | change)
    assert message in str(error.value)


def test_gru_and_rnn_speak_of_their_own_gates():
    with pytest.raises(ValueError, match=r"gru: w_recurrent is .* = \(4, 12\) \(gates r z n\)"):
        kernels.gru(X, W, U, B)
    with pytest.raises(ValueError, match=r"gru: recurrent_bias is \(4,\), expects \[3 \* hidden\] = \(12,\)"):
        kernels.gru(X, W[:, :12], U[:, :12], B[:12], recurrent_bias=B[:4])
    with pytest.raises(ValueError, match=r"rnn: w_recurrent is \(4, 16\), expects \[hidden, hidden\] = \(4, 4\)"):
        kernels.rnn(X, W, U, B)


def test_the_door_is_checked_under_jit_and_by_explain():
    with pytest.raises(ValueError, match="lstm: bias is"):
        jax.jit(kernels.lstm)(X, W, U, B[:4])
    with pytest.raises(ValueError, match="lstm: bias is"):
        kernels.explain(kernels.lstm, X, W, U, B[:4])


def test_numpy_arrays_are_taken():
    arrays = [np.asarray(a) for a in (X, W, U, B)]
    np.testing.assert_array_equal(kernels.lstm(*arrays)[0], kernels.lstm(X, W, U, B)[0])
