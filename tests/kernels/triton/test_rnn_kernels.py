"""The persistent recurrences, interpreted inside JAX programs: values and all gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.triton import interp, toy
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.rnn import triton
from llmasos_xla.kernels.rnn.choice import PERSISTENT
from llmasos_xla.kernels.rnn.triton_spec import Tiles

GATES = {"lstm": 4, "gru": 3, "rnn": 1, "slstm": 4}
STATES = {"lstm": ("h0", "c0"), "gru": ("h0",), "rnn": ("h0",), "slstm": ("h0", "c0", "n0", "m0")}


def drawn(op, batch, time, cin, heads, head, seed=0):
    rng = np.random.default_rng(seed)
    hidden, gates = heads * head, GATES[op]
    block = (heads, head) if heads > 1 else (hidden,)
    found = {
        "x": rng.standard_normal((batch, time, cin)),
        "w_input": 0.5 * rng.standard_normal((cin, gates * hidden)),
        "w_recurrent": rng.standard_normal((*block, gates * head)) / np.sqrt(head),
        "bias": 0.5 * rng.standard_normal(gates * hidden),
    }
    found |= {name: 0.5 * rng.standard_normal((batch, hidden)) for name in STATES[op]}
    if op == "slstm":
        found["n0"] = 1 + np.abs(found["n0"])
    if op == "gru":
        found["recurrent_bias"] = 0.5 * rng.standard_normal(gates * hidden)
    return found


def as_dtype(arrays, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)


def value_and_gradients(op, arrays, options):
    """Outputs, and the gradients of a weighted sum of all of them but the stabilizer."""
    function, options = getattr(kernels, op), dict(options)
    weights = np.random.default_rng(1).standard_normal((4, 1 + max(a.size for a in jax.tree.leaves(arrays))))

    def weighted(leaf, row):
        w = jnp.asarray(weights[row, : leaf.size].reshape(leaf.shape) if leaf.size < weights.shape[1] else 1.0)
        return jnp.sum(leaf.astype(w.dtype) * w)

    def loss(arrays):
        y, state = function(**arrays, **options)
        outputs = [y, *(state if isinstance(state, tuple) else (state,))]
        return sum(weighted(a, i) for i, a in enumerate(outputs[:4])), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return outputs[:4], gradients


def assert_kernel_is_right(op, arrays, options, interpreted, dtype="float32", scale=1.0):
    low = as_dtype(arrays, dtype)
    with interpreted() as launches:
        ours = jax.block_until_ready(value_and_gradients(op, low, options | {"implementation": "triton"}))
        assert launches == ["forward", "backward"]
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), low)
    with jax.enable_x64(True):
        wide = {n: jnp.asarray(v, "float64") if n == "recurrent_mask" else v for n, v in options.items()}
        expected = value_and_gradients(op, as_dtype(exact, "float64"), wide | {"implementation": "xla"})
        expected = jax.tree.map(np.asarray, expected)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == dtype
        # Gradients of weights are sums over all rows and steps.
        most = max(1.0, float(np.abs(theirs).max()))
        assert_close(np.asarray(mine, np.float64) / most, theirs / most, dtype=dtype, scale=scale)


RAGGED = {"lengths": np.array([4, 0, 2], np.int32), "resets": np.array([[0, 0, 1, 0], [1] * 4, [1, 1, 0, 1]], bool)}


PROBLEMS = {
    "odd": ((3, 4, 5, 1, 11), {}),
    "one": ((1, 1, 1, 1, 1), {}),
    "ragged-reverse-resets": ((3, 4, 2, 1, 17), {**RAGGED, "reverse": True}),
    "heads-mask": (
        (3, 4, 2, 2, 5),
        {**RAGGED, "recurrent_mask": 2.0 * np.random.default_rng(3).integers(0, 2, (3, 10))},
    ),
}
QUICK = [
    ("odd", "gru"), ("odd", "rnn"), ("one", "lstm"), ("one", "slstm"), ("ragged-reverse-resets", "lstm"),
    ("ragged-reverse-resets", "gru"), ("heads-mask", "rnn"), ("heads-mask", "slstm"),
]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(("problem", "op"), slow_but(QUICK, PROBLEMS, GATES))
def test_one_program_a_block(op, problem, interpreted):
    sizes, options = PROBLEMS[problem]
    arrays = drawn(op, *sizes)
    given = {n: jnp.asarray(v, "float32") if n == "recurrent_mask" else v for n, v in options.items()}
    assert_kernel_is_right(op, arrays, given, interpreted)


@pytest.fixture
def cut(monkeypatch):
    """Cuts every problem into small tiles that share blocks: the largest sizes that are interpreted in no time."""

    def into(rows=16, units=16, inner=16, depth=4, resident=1, warps=4, held=1):
        def tiles(kind, batch, blocks, head, dtype, precision, device, backward):
            count, splits = -(-batch // rows), -(-head // units)
            if splits == 1:
                return Tiles(rows, units, units, 1, 1, warps, resident, -(-count // resident))
            rounds = -(-count // resident)
            return Tiles(rows, units, inner, depth, splits, warps, resident, rounds, held, quads=held > 1)

        monkeypatch.setattr(triton, "tiles", tiles)

    return into


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("large", "op"), slow_but([(True, "lstm"), (False, "gru"), (True, "slstm"), (False, "rnn")], [False, True], GATES)
)
def test_programs_that_share_a_block(op, large, cut, interpreted):
    """A large program has the gates in one product and reads several operands ahead."""
    cut(**({"depth": 2, "warps": 8, "held": 2} if large else {}))
    assert_kernel_is_right(op, drawn(op, 3, 4, 3, 1, 37), {**RAGGED, "reverse": large}, interpreted, scale=2)


@pytest.mark.parametrize(("op", "units"), [pytest.param("lstm", 8, marks=pytest.mark.slow), ("gru", 32)])
def test_tiles_in_rounds(op, units, cut, interpreted):
    cut(units=units, resident=2)
    rng = np.random.default_rng(5)
    options = {"lengths": rng.integers(0, 4, 50).astype(np.int32), "resets": rng.random((50, 3)) < 0.3}
    assert_kernel_is_right(op, drawn(op, 50, 3, 3, 2, 20), options, interpreted, scale=4)


LOW = [("bfloat16", "lstm"), ("bfloat16", "rnn"), ("float16", "gru"), ("float16", "slstm")]


@pytest.mark.parametrize(("dtype", "op"), slow_but(LOW, ["bfloat16", "float16"], GATES))
def test_low_precision(op, dtype, cut, interpreted):
    cut()
    assert_kernel_is_right(op, drawn(op, 3, 5, 4, 1, 24), RAGGED | {"resets": None}, interpreted, dtype, scale=2)


def test_relu_keeps_nan(interpreted):
    arrays = as_dtype(drawn("rnn", 2, 3, 2, 1, 4), "float32")
    arrays["x"] = arrays["x"].at[1, 1].set(jnp.nan)
    with interpreted() as launches:
        y, _ = kernels.rnn(**arrays, activation="relu")
        assert np.isnan(y[1, 1:]).all()
        assert launches == ["forward"]
    expected, _ = kernels.rnn(**arrays, activation="relu", implementation="xla")
    assert_close(y, expected)


def test_padding_is_not_looked_at(interpreted):
    arrays = as_dtype(drawn("lstm", 3, 4, 2, 1, 5), "float32")
    lengths = RAGGED["lengths"]
    padding = np.arange(4)[None, :, None] >= lengths[:, None, None]

    def loss(x, w_input):
        y, state = kernels.lstm(x, w_input, **rest, lengths=lengths)
        return jnp.sum(jnp.sin(y)) + jnp.sum(state[1])

    rest = {name: a for name, a in arrays.items() if name not in ("x", "w_input")}
    clean = jnp.where(padding, 0.0, arrays["x"])
    dirty = jnp.where(padding, jnp.nan, arrays["x"])
    with interpreted():
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(dirty, arrays["w_input"])
        expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(clean, arrays["w_input"])
        jax.tree.map(assert_close, got, expected)


@pytest.mark.parametrize("op", slow_but([("gru",)], GATES))
def test_both_directions_in_one_launch(op, interpreted):
    one, other = (as_dtype(drawn(op, 3, 4, 5, 2, 6, seed), "float32") for seed in (1, 2))
    x, _ = one.pop("x"), other.pop("x")
    function = getattr(kernels, op)

    def loss(x, one, other):
        out = kernels.bidirectional(function, x, one, other, lengths=RAGGED["lengths"])
        leaves = [leaf for direction in out for leaf in jax.tree.leaves(direction)[:3]]
        return sum(jnp.sum(jnp.sin(leaf) * (i + 1)) for i, leaf in enumerate(leaves))

    expected = jax.value_and_grad(loss, (0, 1, 2))(x, one, other)
    with interpreted() as launches:
        got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, one, other)
        jax.block_until_ready(got)
        assert launches == ["forward", "backward"]
        ways = kernels.explain(kernels.bidirectional, function, x, one, other)
        assert ways.chosen.formulation == PERSISTENT
    jax.tree.map(lambda a, b: assert_close(a, b, scale=4), got, expected)


def test_vmap_joins_the_batch_and_mapped_weights_do_not(interpreted):
    arrays = as_dtype(drawn("gru", 2, 3, 4, 1, 5), "float32")
    xs = jnp.stack([arrays["x"], 2 * arrays["x"], -arrays["x"]])
    rest = {name: a for name, a in arrays.items() if name != "x"}
    ws = jnp.stack([arrays["w_recurrent"]] * 3)

    def over_x(xs):
        return jax.vmap(lambda x: kernels.gru(x, **rest)[0])(xs)

    def over_w(ws):
        return jax.vmap(lambda w: kernels.gru(arrays["x"], **(rest | {"w_recurrent": w}))[0])(ws)

    expected = over_x(xs), over_w(ws), jax.grad(lambda xs: over_x(xs).sum())(xs)
    with interpreted() as launches:
        got = over_x(xs), over_w(ws), jax.grad(lambda xs: over_x(xs).sum())(xs)
        jax.block_until_ready(got)
        assert launches[0] == "forward"
    jax.tree.map(assert_close, got, expected)


@pytest.mark.parametrize("op", slow_but([("lstm",)], ["lstm", "gru"]))
def test_gradients_of_each_example(op, interpreted):
    """Mapped gradients stay with the kernels: the batch is theirs, only gradients of weights stay apart."""
    arrays = as_dtype(drawn(op, 2, 3, 4, 2, 5), "float32")
    xs = jnp.stack([jnp.stack([s * arrays["x"], -s * arrays["x"]]) for s in (0.5, 1.0, 2.0)])
    mask = jnp.linspace(0.5, 1.5, 20).reshape(2, 10)

    def loss(arrays, x, mask):
        y, _ = getattr(kernels, op)(**{**arrays, "x": x}, recurrent_mask=mask, implementation=implementation)
        return jnp.sum(jnp.sin(y))

    def of_each():
        inner = jax.vmap(jax.grad(loss, (0, 1, 2)), (None, 0, None))
        return jax.vmap(inner, (None, 0, None))(arrays, xs, mask)

    implementation = "xla"
    expected = of_each()
    implementation = "triton"
    with interpreted() as launches:
        got = jax.block_until_ready(of_each())
        assert launches == ["forward", "backward"]
    jax.tree.map(lambda a, b: assert_close(a, b, scale=4), got, expected)


def test_mapped_weights_need_another_implementation(interpreted):
    arrays = as_dtype(drawn("rnn", 2, 3, 4, 1, 5), "float32")
    ws = jnp.stack([arrays["w_recurrent"]] * 3)
    with (
        interpreted(),
        pytest.raises(NotImplementedError, match="under jax.vmap, 3 recurrences of a batch of 2 have weights"),
    ):
        jax.vmap(lambda w: kernels.rnn(**{**arrays, "w_recurrent": w}, implementation="triton")[0])(ws)


@pytest.mark.thorough
def test_forward_mode_second_derivatives_scan_and_remat(interpreted):
    arrays = as_dtype(drawn("lstm", 2, 3, 4, 1, 5), "float32")

    def loss(arrays):
        y, _ = kernels.lstm(**arrays)
        return jnp.sum(jnp.sin(y))

    def looped(x):
        step = jax.checkpoint(lambda x, _: (kernels.lstm(**{**arrays, "x": x})[0][..., :4], None))
        return jax.lax.scan(step, x, None, length=2)[0].sum()

    def everything():
        directions = jax.tree.map(jnp.ones_like, arrays)
        return (
            jax.jvp(loss, (arrays,), (directions,)),
            jax.jvp(jax.grad(loss), (arrays,), (directions,)),
            jax.grad(lambda a: jnp.sum(jax.grad(loss)(a)["x"] ** 2))(arrays),
            jax.grad(looped)(arrays["x"]),
        )

    expected = everything()
    with interpreted() as launches:
        got = jax.block_until_ready(everything())
        assert {"forward", "backward"} <= set(launches)
    jax.tree.map(lambda a, b: assert_close(a, b, scale=4), got, expected)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=["plain", "layer-norm"])
def test_layers_run_through_it(options, interpreted):
    import llmasos_xla as lm

    x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype("float32")

    def prediction():
        recurrent = lm.layers.Bidirectional(lm.layers.LSTM(5, **options), input_shape=(6, 3))
        return lm.Sequential([recurrent, lm.layers.Dense(2)], seed=3).predict(x)

    expected = prediction()
    with interpreted() as launches:
        assert_close(prediction(), expected)
        assert launches == ["forward"]


def test_a_wait_that_nobody_ends_is_found():
    """The interpreter's barrier counts: a kernel that waits for more arrivals than come is an error, not a hang."""
    interp.run(toy.waiting_kernel, (3,), np.zeros(1, np.int32), TARGET=3)
    with pytest.raises(AssertionError, match="waits for 4 arrivals, 3 came"):
        interp.run(toy.waiting_kernel, (3,), np.zeros(1, np.int32), TARGET=4)


def test_what_it_refuses_and_in_which_words():
    arrays = as_dtype(drawn("lstm", 2, 3, 4, 1, 5), "float32")

    def objection(**changes):
        options = {n: changes.pop(n) for n in ("activation", "lengths") if n in changes}
        return kernels.explain(kernels.lstm, **{**arrays, **changes}, **options).candidates[0].objection

    assert objection() == "runs on gpu, this is cpu"
    with _dispatch.tracing_for("gpu"):
        assert objection() is None
        assert objection(activation="relu") == "needs activation tanh and recurrent_activation sigmoid"
        assert objection(x=arrays["x"][:, :1]) == "one step has no loop to save"
        wide = {
            "x": jax.ShapeDtypeStruct((2, 3, 4), "float32"),
            "w_input": jax.ShapeDtypeStruct((4, 36000), "float32"),
            "w_recurrent": jax.ShapeDtypeStruct((9000, 36000), "float32"),
            "bias": jax.ShapeDtypeStruct((36000,), "float32"),
            "h0": jax.ShapeDtypeStruct((2, 9000), "float32"),
            "c0": jax.ShapeDtypeStruct((2, 9000), "float32"),
        }
        many = {"x": jax.ShapeDtypeStruct((1 << 20, 3, 4), "float32"), "h0": None, "c0": None}
        assert objection(**many) == "1048576 rows of 16 units are a state of more than 16776960 elements"
        assert objection(**wide).startswith("1 block(s) of 9008 units do not fit: recurrent weights of float32")
    with pytest.raises(NotImplementedError, match=r"implementation='triton' cannot run: .* runs on gpu, this is cpu"):
        kernels.lstm(**arrays, implementation="triton")
