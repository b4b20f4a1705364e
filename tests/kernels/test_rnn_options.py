"""Heads, resets, the recurrent mask and sLSTM in plain JAX: values against a NumPy loop, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.rnn_reference import gru_step, lstm_step, rnn_step, sigmoid
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.rnn.choice import APART, PLAIN

GATES = {"lstm": 4, "gru": 3, "rnn": 1, "slstm": 4}
STATES = {"lstm": ("h0", "c0"), "gru": ("h0",), "rnn": ("h0",), "slstm": ("h0", "c0", "n0", "m0")}
BATCH, TIME, CIN, HEADS, HEAD = 3, 5, 4, 2, 3
HIDDEN = HEADS * HEAD
each_op = pytest.mark.parametrize("op", GATES)


def slstm_step(a, state, u, rb, f, g):
    h, c, n, m = state
    i, forget, z, o = np.split(a + h @ u, 4)
    log_f = -np.log1p(np.exp(-forget))
    top = np.maximum(log_f + m, i)
    i, forget = np.exp(i - top), np.exp(log_f + m - top)
    c, n = forget * c + i * np.tanh(z), forget * n + i
    return sigmoid(o) * c / n, c, n, top


STEPS = {"lstm": lstm_step, "gru": gru_step, "rnn": rnn_step, "slstm": slstm_step}


def drawn(op, seed=0):
    rng = np.random.default_rng(seed)
    columns = GATES[op] * HIDDEN
    found = {
        "x": rng.standard_normal((BATCH, TIME, CIN)),
        "w_input": 0.5 * rng.standard_normal((CIN, columns)),
        "w_recurrent": 0.5 * rng.standard_normal((HEADS, HEAD, GATES[op] * HEAD)),
        "bias": 0.5 * rng.standard_normal(columns),
    }
    found |= {name: 0.5 * rng.standard_normal((BATCH, HIDDEN)) for name in STATES[op]}
    if op == "slstm":
        found["n0"] = 1 + np.abs(found["n0"])
    if op == "gru":
        found["recurrent_bias"] = 0.5 * rng.standard_normal(columns)
    return found


def whole(u, gates):
    """Block-diagonal weights as a full matrix, gate by gate."""
    full = np.zeros((HIDDEN, gates, HEADS, HEAD))
    for k in range(HEADS):
        full[k * HEAD : (k + 1) * HEAD, :, k] = u[k].reshape(HEAD, gates, HEAD)
    return full.reshape(HIDDEN, gates * HIDDEN)


def reference(op, a, lengths=None, resets=None, mask=None, reverse=False):
    u, rb = whole(a["w_recurrent"], GATES[op]), a.get("recurrent_bias")
    y, final = np.zeros((BATCH, TIME, HIDDEN)), [np.zeros((BATCH, HIDDEN)) for _ in STATES[op]]
    for row in range(BATCH):
        state = tuple(a[name][row] for name in STATES[op])
        length = TIME if lengths is None else lengths[row]
        scaled = u if mask is None else mask[row][:, None] * u
        for t in reversed(range(length)) if reverse else range(length):
            if resets is not None and resets[row, t]:
                state = tuple(np.full(HIDDEN, -1e30 if i == 3 else 0.0) for i in range(len(state)))
            p = a["x"][row, t] @ a["w_input"] + a["bias"]
            state = STEPS[op](p, state, scaled, rb, np.tanh, sigmoid)
            y[row, t] = state[0]
        for out, s in zip(final, state):
            out[row] = s
    return y, final


def options():
    rng = np.random.default_rng(7)
    resets = np.array([[0, 0, 1, 0, 0], [1, 0, 0, 1, 1], [0, 1, 0, 0, 0]], bool)
    return {
        "heads alone": {},
        "resets": {"resets": resets},
        "mask": {"mask": 2.0 * rng.integers(0, 2, (BATCH, HIDDEN))},
        "all": {
            "resets": resets,
            "mask": 2.0 * rng.integers(0, 2, (BATCH, HIDDEN)),
            "lengths": np.array([5, 0, 2]),
            "reverse": True,
        },
    }


def call(op, arrays, lengths=None, resets=None, mask=None, reverse=False, **more):
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}
    mask = None if mask is None else jnp.asarray(mask, jnp.float32)
    given = {"lengths": lengths, "resets": resets, "recurrent_mask": mask, "reverse": reverse}
    y, state = getattr(kernels, op)(**arrays, **given, **more)
    return y, list(state) if isinstance(state, tuple) else [state]


@each_op
@pytest.mark.parametrize("name", options())
def test_values_match_numpy(op, name):
    arrays = drawn(op)
    got = call(op, arrays, **options()[name])
    jax.tree.map(assert_close, got, reference(op, arrays, **options()[name]))


@each_op
def test_one_head_is_the_full_matrix(op):
    arrays = drawn(op)
    full = whole(arrays["w_recurrent"], GATES[op])
    heads = call(op, arrays)
    jax.tree.map(assert_close, call(op, arrays | {"w_recurrent": full}, implementation="xla"), heads)
    jax.tree.map(assert_close, call(op, arrays | {"w_recurrent": full[None]}), heads)


@each_op
def test_a_reset_row_is_two_rows(op):
    """Steps after a reset know nothing of those before, and neither do gradients."""
    arrays = {name: a for name, a in drawn(op).items() if name not in STATES[op]}
    resets = np.zeros((BATCH, TIME), bool)
    resets[:, 3] = True
    y, _ = call(op, arrays, resets=resets)
    first, _ = call(op, arrays | {"x": arrays["x"][:, :3]})
    second, _ = call(op, arrays | {"x": arrays["x"][:, 3:]})
    assert_close(y, np.concatenate([first, second], axis=1))

    def late(x):
        return call(op, arrays | {"x": x}, resets=resets)[0][:, 3:].sum()

    assert not np.any(jax.grad(late)(jnp.asarray(arrays["x"], jnp.float32))[:, :3])


def test_slstm_does_not_overflow_and_forgets_its_stabilizer():
    arrays = drawn("slstm")
    big = arrays | {"w_input": 60 * arrays["w_input"]}
    assert np.isfinite(call("slstm", big)[0]).all()
    # c, n and m describe c e^m and n e^m: shifting m is dividing c and n.
    shifted = arrays | {"m0": arrays["m0"] + 1, "c0": arrays["c0"] / np.e, "n0": arrays["n0"] / np.e}
    assert_close(call("slstm", shifted)[0], call("slstm", arrays)[0])


@each_op
def test_only_the_plain_scan_takes_them_on_cpu(op):
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in drawn(op).items()}
    ways = kernels.explain(getattr(kernels, op), **arrays)
    assert ways.chosen.formulation == PLAIN
    if op != "slstm":
        assert any(c.objection == "w_recurrent has heads" for c in ways.candidates)


@each_op
def test_bidirectional_is_the_op_twice(op):
    function, (one, other) = getattr(kernels, op), (drawn(op, 1), drawn(op, 2))
    x = jnp.asarray(one.pop("x"), jnp.float32)
    other.pop("x")
    one, other = ({n: jnp.asarray(a, jnp.float32) for n, a in d.items()} for d in (one, other))
    lengths = np.array([5, 0, 2])
    got = kernels.bidirectional(function, x, one, other, lengths=lengths)
    expected = function(x, **one, lengths=lengths), function(x, **other, lengths=lengths, reverse=True)
    jax.tree.map(assert_close, got, expected)
    assert kernels.explain(kernels.bidirectional, function, x, one, other).chosen.formulation == APART


def test_bidirectional_says_what_is_wrong():
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 8))
    with pytest.raises(ValueError, match="unknown op 'tanh'"):
        kernels.bidirectional(jnp.tanh, x, {}, {})
    with pytest.raises(ValueError, match=r"forward has \['w_input'\], expects w_recurrent too"):
        kernels.bidirectional(kernels.lstm, x, {"w_input": w}, {})
    arrays = {"w_input": w, "w_recurrent": w[:2], "kernel": w}
    with pytest.raises(ValueError, match=r"forward has .*'kernel'.*, lstm takes w_input, w_recurrent, bias"):
        kernels.bidirectional(kernels.lstm, x, arrays, arrays)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resets": np.zeros((2, 5), bool)}, r"lstm: resets is \(2, 5\), expects \[batch, time\] = \(3, 5\)"),
        ({"resets": np.zeros((3, 5), np.int32)}, "lstm: resets is int32, expects bool"),
        ({"recurrent_mask": np.ones((3, 5), np.float32)}, r"recurrent_mask is \(3, 5\), expects \[batch, hidden\]"),
        ({"w_recurrent": np.ones((2, 3, 8), np.float32)}, r"expects \[heads, head, 4 \* head\] = \(2, 3, 12\)"),
    ],
)
def test_errors(unchecked, wrong, words):
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in drawn("lstm").items()}
    with pytest.raises((ValueError, TypeError), match=words):
        kernels.lstm(**arrays | wrong)


def test_forced_formulations_say_why_not():
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in drawn("lstm").items()}
    with _dispatch.forced("hand-written derivative"), pytest.raises(NotImplementedError, match="has heads"):
        kernels.lstm(**arrays)
