"""An LSTM with layer normalization in plain JAX: values and gradients against NumPy in float64, laws, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.rnn_reference import sigmoid
from tolerances import assert_close

from llmasos_xla import kernels

BATCH, TIME, CIN, HIDDEN = 3, 5, 4, 6
EPSILON = 1e-3


def drawn(seed=0, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (BATCH, TIME, CIN),
        "w_input": (CIN, 4 * hidden),
        "w_recurrent": (hidden, 4 * hidden),
        **dict.fromkeys(("bias", "input_scale", "recurrent_scale"), (4 * hidden,)),
        **dict.fromkeys(("cell_scale", "cell_offset"), (hidden,)),
        **dict.fromkeys(("h0", "c0"), (BATCH, hidden)),
    }
    return {name: rng.standard_normal(shape) + name.endswith("scale") for name, shape in shapes.items()}


def normal(a):
    return (a - a.mean()) / np.sqrt(a.var() + EPSILON)


def reference(a, lengths=None, resets=None, mask=None, reverse=False):
    """`(y, h, c)` by a loop over rows and steps."""
    y, h_last, c_last = np.zeros((BATCH, TIME, HIDDEN)), a["h0"].copy(), a["c0"].copy()
    for row in range(BATCH):
        h, c = a["h0"][row], a["c0"][row]
        length = TIME if lengths is None else lengths[row]
        for t in reversed(range(length)) if reverse else range(length):
            if resets is not None and resets[row, t]:
                h, c = np.zeros(HIDDEN), np.zeros(HIDDEN)
            entered = h if mask is None else h * mask[row]
            p = a["input_scale"] * normal(a["x"][row, t] @ a["w_input"]) + a["bias"]
            i, f, g, o = np.split(p + a["recurrent_scale"] * normal(entered @ a["w_recurrent"]), 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(a["cell_scale"] * normal(c) + a["cell_offset"])
            y[row, t] = h
        h_last[row], c_last[row] = h, c
    return y, h_last, c_last


def call(arrays, lengths=None, resets=None, mask=None, reverse=False, dtype="float32", **more):
    arrays = {name: jnp.asarray(a, dtype) for name, a in arrays.items()}
    names = ("input_scale", "recurrent_scale", "cell_scale", "cell_offset")
    norm = kernels.LayerNorm(*(arrays.pop(name) for name in names), epsilon=EPSILON)
    mask = None if mask is None else jnp.asarray(mask, dtype)
    given = {"lengths": lengths, "resets": resets, "recurrent_mask": mask, "reverse": reverse, "layer_norm": norm}
    y, (h, c) = kernels.lstm(**arrays, **given, **more)
    return y, h, c


OPTIONS = {
    "plain": {},
    "reverse": {"reverse": True},
    "all": {
        "lengths": np.array([5, 0, 2]),
        "resets": np.array([[0, 0, 1, 0, 0], [1, 0, 0, 1, 1], [0, 1, 0, 0, 0]], bool),
        "mask": np.array([[2.0, 0, 2, 0, 0, 2], [0] * 6, [2] * 6]),
        "reverse": True,
    },
}
each_option = pytest.mark.parametrize("name", OPTIONS)


@each_option
def test_values_match_numpy(name):
    jax.tree.map(assert_close, call(drawn(), **OPTIONS[name]), reference(drawn(), **OPTIONS[name]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype):
    arrays = {name: np.asarray(jnp.asarray(a, dtype), np.float64) for name, a in drawn().items()}
    got = call(arrays, dtype=dtype)
    assert all(a.dtype == dtype for a in got)
    jax.tree.map(lambda a, b: assert_close(a, b, scale=2), got, reference(arrays))


@each_option
def test_every_gradient_is_the_slope_of_numpy(name):
    """Along a random direction of each array, by central differences."""
    arrays, rng, options = drawn(), np.random.default_rng(4), OPTIONS[name]
    weights = [rng.standard_normal(a.shape) for a in reference(arrays)]

    def loss(arrays, outputs):
        return sum((w * o).sum() for w, o in zip(weights, outputs(arrays, **options)))

    with jax.enable_x64(True):
        wide = {n: jnp.asarray(a, "float64") for n, a in arrays.items()}
        gradients = jax.grad(lambda a: loss(a, lambda a, **o: call(a, dtype="float64", **o)))(wide)
        gradients = jax.tree.map(np.asarray, gradients)
    for n, a in arrays.items():
        step = 1e-6 * rng.standard_normal(a.shape)
        slope = loss(arrays | {n: a + step}, reference) - loss(arrays | {n: a - step}, reference)
        assert_close(np.sum(gradients[n] * step) * 1e6, slope / 2 * 1e6, dtype="float32", message=n)


def test_weights_may_be_scaled_and_scales_left_out():
    """What normalization is for: x W and h U times a number are the same; no arrays are ones and zeros."""
    a = {name: jnp.asarray(v, jnp.float32) for name, v in drawn().items()}
    rest = {n: a[n] for n in ("x", "bias")}

    def outputs(factor, norm):
        return kernels.lstm(**rest, w_input=a["w_input"] * factor, w_recurrent=a["w_recurrent"] * factor,
                            layer_norm=norm)  # fmt: skip

    ones = jnp.ones(4 * HIDDEN)
    expected = outputs(1, kernels.LayerNorm(ones, ones, ones[:HIDDEN], 0 * ones[:HIDDEN], epsilon=1e-12))
    jax.tree.map(assert_close, outputs(8, kernels.LayerNorm(epsilon=1e-12)), expected)


def test_statistics_are_those_of_all_heads():
    a = drawn()
    blocks = np.random.default_rng(8).standard_normal((2, 3, 12))
    full = np.zeros((2, 3, 4, 2, 3))
    for k in range(2):
        full[k, :, :, k] = blocks[k].reshape(3, 4, 3)
    jax.tree.map(
        assert_close, call(a | {"w_recurrent": blocks}), call(a | {"w_recurrent": full.reshape(HIDDEN, 4 * HIDDEN)})
    )


def test_both_directions():
    one, other = drawn(1), drawn(2)

    def arrays(a):
        low = {name: jnp.asarray(v, jnp.float32) for name, v in a.items() if name != "x"}
        names = ("input_scale", "recurrent_scale", "cell_scale", "cell_offset")
        return low | {"layer_norm": kernels.LayerNorm(*(low.pop(name) for name in names), epsilon=EPSILON)}

    x = jnp.asarray(one["x"], jnp.float32)
    (there, _), (back, _) = kernels.bidirectional(kernels.lstm, x, arrays(one), arrays(other))
    assert_close(there, reference(one)[0])
    assert_close(back, reference(other | {"x": one["x"]}, reverse=True)[0])


def test_only_the_plain_scan_and_the_persistent_kernel_take_it():
    a = {name: jnp.asarray(v, jnp.float32) for name, v in drawn().items() if name in ("x", "w_input", "w_recurrent")}
    ways = kernels.explain(kernels.lstm, **a, bias=None, layer_norm=kernels.LayerNorm())
    assert [c.objection for c in ways.candidates if c.implementation == "onednn"] == ["layer_norm is given"]
    assert ways.chosen.formulation == "plain scan"


@pytest.mark.usefixtures("unchecked")
def test_what_it_refuses_and_in_which_words():
    a = {name: jnp.asarray(v, jnp.float32) for name, v in drawn().items() if name in ("x", "w_input", "w_recurrent")}
    for norm, kind, words in (
        ("yes", TypeError, r"lstm: layer_norm is a str, expects kernels.LayerNorm\(input_scale, ...\)"),
        (kernels.LayerNorm(epsilon=0.0), ValueError, r"lstm: layer_norm.epsilon=0.0 must be a positive number, no arr"),
        (
            kernels.LayerNorm(cell_scale=jnp.ones(5)),
            ValueError,
            r"lstm: layer_norm.cell_scale is \(5,\), expects \[hidden\] = \(6,\)",
        ),
        (
            kernels.LayerNorm(input_scale=jnp.ones(24, jnp.float16)),
            TypeError,
            r"lstm: layer_norm.input_scale is float16, x is float32",
        ),
    ):
        with pytest.raises(kind, match=words):
            kernels.lstm(**a, bias=None, layer_norm=norm)
