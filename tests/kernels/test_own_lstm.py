"""The LSTM in float32 that is this package's own: values and gradients at every remainder of rows, gates, NaN."""

import jax.numpy as jnp
import numpy as np
import pytest
from kernels.rnn_problems import assert_values_and_gradients, call, drawn
from repetitions import slow_but

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels.rnn.cases import Case

pytestmark = pytest.mark.skipif(_onednn.problem() is not None, reason=f"oneDNN: {_onednn.problem()}")


SIZES = [(1, 16, False), (7, 48, True), (20, 80, False), (3, 144, True)]
BATCHES = [1, 2, 3, 4, 5, 6, 7, 12, 17]
# Every batch, and every size four times or five: with few rows and with many.
QUICK = [(SIZES[(i + j) % 4], batch) for j in (0, 2) for i, batch in enumerate(BATCHES)]


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "batch"), slow_but(QUICK, SIZES, BATCHES))
def test_an_lstm_whose_units_fill_registers(batch, size):
    cin, hidden, reverse = size
    case = Case("own", "lstm", batch, 5, cin, hidden, None, reverse)
    assert_values_and_gradients(case, *drawn(case, scale=0.5))


def test_an_lstms_gates_are_exact_at_both_ends_of_their_range():
    """Gates of one unit over a ramp of pre-activations: through the output gate a cell shows sigmoid and tanh."""
    ramp = np.concatenate([np.linspace(-30, 30, 481), [-1e30, -200, -88.5, 0.0, 1e-6, -1e-6, 88.5, 200, 1e30]])
    batch, hidden = len(ramp), 16
    w_input = np.zeros((1, 4, hidden))
    bias = np.zeros((4, hidden))

    def outputs(gate, others):
        w, b = w_input.copy(), bias.copy()
        w[0, gate] = 1
        for other, value in others.items():
            b[other] = value
        case = Case("ramp", "lstm", batch, 1, 1, hidden)
        whole = {
            "x": ramp.reshape(batch, 1, 1), "w_input": w.reshape(1, -1), "w_recurrent": np.zeros((hidden, 4 * hidden)),
            "bias": b.reshape(-1), "h0": np.zeros((batch, hidden)), "c0": np.ones((batch, hidden)),
        }  # fmt: skip
        _, _, c = call(case, {k: jnp.asarray(v, jnp.float32) for k, v in whole.items()})
        return np.asarray(c, np.float64)[:, 0]

    closed, opened = -1e30, 1e30
    wide = np.float64(np.float32(ramp))
    sigmoid = np.where(wide < 0, np.exp(np.minimum(wide, 0)), 1) / (1 + np.exp(-np.abs(wide)))
    # c = f c0 + i g with c0 = 1: the forget gate alone, then the fresh value alone.
    np.testing.assert_allclose(outputs(1, {0: closed}), sigmoid, rtol=4e-7, atol=1e-37)
    np.testing.assert_allclose(outputs(2, {0: opened, 1: closed}), np.tanh(wide), rtol=4e-7, atol=0)


def test_an_lstm_keeps_nan_in_its_row():
    case = Case("nan", "lstm", 8, 4, 3, 32)
    whole, _ = drawn(case)
    whole["x"] = whole["x"].at[2, 1, 0].set(jnp.nan)
    y, h, c = call(case, whole)
    at = np.isnan(np.asarray(y))
    assert at[2, 1:].all()
    assert not at[2, 0].any()
    for other in (y, h, c):
        assert not np.isnan(np.delete(np.asarray(other), 2, 0)).any()
