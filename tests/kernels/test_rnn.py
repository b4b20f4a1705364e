"""rnn, gru and lstm: values against a NumPy loop, the laws of lengths and direction, and what is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.rnn_reference import arrays, reference, sigmoid
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.rnn.cases import TESTS, Case
from llmasos_xla.kernels.rnn.choice import PLAIN, TANGENT

OPS = {"lstm": kernels.lstm, "gru": kernels.gru, "rnn": kernels.rnn}
each_op = pytest.mark.parametrize("op", OPS)
each_case = pytest.mark.parametrize("case", TESTS, ids=lambda c: c.name)


def call(case, arrays, **options):
    """The public function on a case: `(y, [states])`."""
    lengths = None if case.lengths is None else np.array(case.lengths)
    y, states = OPS[case.op](**arrays, lengths=lengths, reverse=case.reverse, **options)
    return y, list(states) if case.op == "lstm" else [states]


def as_dtype(arrays, dtype):
    return {name: None if a is None else jnp.asarray(a, dtype) for name, a in arrays.items()}


def assert_same(actual, expected, **kwargs):
    jax.tree.map(lambda a, b: assert_close(a, b, **kwargs), actual, expected)


@each_case
@pytest.mark.parametrize("formulation", [TANGENT, PLAIN])
def test_values_match_numpy(case, formulation):
    drawn = arrays(case)
    with _dispatch.forced(formulation):
        got = jax.jit(functools.partial(call, case))(as_dtype(drawn, "float32"))
    assert_same(got, reference(case, drawn))


@each_case
def test_float64_is_exact(case):
    drawn = arrays(case)
    with jax.enable_x64(True):
        y, states = call(case, as_dtype(drawn, "float64"))
        assert y.dtype == "float64"
        assert_same((y, states), reference(case, drawn))


@each_op
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("formulation", [TANGENT, PLAIN])
def test_low_precision_is_close_and_keeps_its_dtype(op, dtype, formulation):
    case = Case("low", op, 3, 9, 5, 8, (9, 4, 1))
    low = as_dtype(arrays(case, scale=0.4), dtype)
    with _dispatch.forced(formulation):
        got = call(case, low)
    assert {a.dtype.name for a in jax.tree.leaves(got)} == {dtype}
    assert_same(got, reference(case, {name: np.asarray(a, np.float64) for name, a in low.items()}), dtype=dtype)


@each_op
def test_the_state_is_not_rounded_between_steps(op):
    # 300 steps of bfloat16 states would drift by far more than one rounding of the result.
    case = Case("long", op, 1, 300, 4, 8)
    low = as_dtype(arrays(case, scale=0.3), "bfloat16")
    y, _ = call(case, low)
    y32, _ = call(case, as_dtype(low, "float32"))
    assert float(jnp.abs(y.astype(jnp.float32) - y32).max()) < 0.01


@each_op
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_not_looked_at(op, reverse):
    case = Case("ragged", op, 3, 5, 4, 3, (5, 2, 0), reverse)
    clean = as_dtype(arrays(case), "float32")
    padding = jnp.arange(5)[None, :, None] >= jnp.array(case.lengths)[:, None, None]
    dirty = clean | {"x": jnp.where(padding, jnp.nan, clean["x"])}

    @jax.jit
    def both(arrays):
        grads = jax.grad(lambda a: sum(jnp.sum(s**2) for s in jax.tree.leaves(call(case, a))))(arrays)
        return call(case, arrays), grads

    for a, b in zip(jax.tree.leaves(both(clean)), jax.tree.leaves(both(dirty))):
        np.testing.assert_array_equal(a, b)


@each_op
@pytest.mark.parametrize("reverse", [False, True])
def test_a_ragged_batch_equals_its_rows_alone(op, reverse):
    case = Case("ragged", op, 3, 6, 4, 5, (6, 1, 3), reverse)
    batch = as_dtype(arrays(case), "float32")
    y, states = call(case, batch)
    for row, length in enumerate(case.lengths):
        alone = {k: a[row : row + 1] if k in ("x", "h0", "c0") else a for k, a in batch.items()}
        y1, states1 = call(case._replace(batch=1, lengths=None), alone | {"x": alone["x"][:, :length]})
        assert_same(y[row : row + 1, :length], y1)
        assert_same([s[row : row + 1] for s in states], states1)
        assert not y[row, length:].any()


@each_op
def test_reverse_is_flip_run_flip(op):
    case = Case("flip", op, 2, 5, 3, 4)
    a = as_dtype(arrays(case), "float32")
    y, states = call(case._replace(reverse=True), a)
    flipped, same = call(case, a | {"x": jnp.flip(a["x"], 1)})
    assert_same((y, states), (jnp.flip(flipped, 1), same))


@each_op
def test_two_halves_make_the_whole(op):
    case = Case("halves", op, 2, 8, 3, 4)
    a = as_dtype(arrays(case), "float32")
    y, states = call(case, a)
    y1, between = call(case, a | {"x": a["x"][:, :4]})
    y2, last = call(case, a | {"x": a["x"][:, 4:]} | dict(zip(("h0", "c0"), between)))
    assert_same((y, states), (jnp.concatenate([y1, y2], 1), last))


@each_op
def test_a_missing_state_or_bias_is_zero(op):
    case = Case("default", op, 2, 3, 3, 4)
    a = as_dtype(arrays(case), "float32")
    optional = {name for name in a if name not in ("x", "w_input", "w_recurrent")}
    zeros = a | {name: jnp.zeros_like(a[name]) for name in optional}
    assert_same(call(case, zeros), call(case, a | dict.fromkeys(optional)))


@each_op
def test_jit_vmap_and_scan_change_nothing(op):
    case = Case("transforms", op, 2, 4, 3, 5, (4, 2))
    stack = [as_dtype(arrays(case, seed), "float32") for seed in range(3)]
    one_by_one = jax.tree.map(lambda *a: jnp.stack(a), *[call(case, a) for a in stack])
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *stack)
    run = functools.partial(call, case)
    assert_same(jax.tree.map(lambda *a: jnp.stack(a), *[jax.jit(run)(a) for a in stack]), one_by_one)
    assert_same(jax.vmap(run)(stacked), one_by_one)
    assert_same(jax.lax.scan(lambda carry, a: (carry, run(a)), None, stacked)[1], one_by_one)


def test_lengths_may_be_traced_and_of_any_integer_dtype():
    case = Case("traced", "gru", 2, 4, 3, 5, (4, 2))
    a = as_dtype(arrays(case), "float32")
    for dtype in (jnp.int8, jnp.uint32):
        y, h = jax.jit(kernels.gru)(**a, lengths=jnp.array(case.lengths, dtype))
        assert_same((y, [h]), call(case, a))


def test_lengths_map_over_a_batch_of_batches():
    case = Case("vmap", "lstm", 2, 4, 3, 5)
    a = as_dtype(arrays(case), "float32")
    lengths = jnp.array([[4, 2], [1, 0]])
    y, _ = jax.vmap(lambda n: kernels.lstm(**a, lengths=n))(lengths)
    for got, n in zip(y, lengths):
        assert_same(got, kernels.lstm(**a, lengths=n)[0])


@each_case
def test_differentiating_does_not_change_the_value(case):
    # A call that is differentiated may run another formulation of the forward pass.
    a = as_dtype(arrays(case), "float32")
    run = functools.partial(call, case)
    assert_same(jax.jit(lambda a: jax.vjp(run, a)[0])(a), jax.jit(run)(a))


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


@pytest.mark.parametrize(
    ("op", "names", "functions"),
    [
        ("lstm", {"activation": "relu"}, (lambda x: np.maximum(x, 0), sigmoid)),
        ("lstm", {"recurrent_activation": "hard_sigmoid"}, (np.tanh, hard_sigmoid)),
        ("gru", {"activation": None, "recurrent_activation": "Hard_Sigmoid"}, (lambda x: x, hard_sigmoid)),
        ("rnn", {"activation": "relu"}, (lambda x: np.maximum(x, 0), None)),
        ("rnn", {"activation": "softsign"}, (lambda x: x / (1 + abs(x)), None)),
    ],
)
def test_other_activations(op, names, functions):
    case = Case("activations", op, 3, 4, 3, 5, (4, 1, 2))
    drawn = arrays(case)
    assert_same(call(case, as_dtype(drawn, "float32"), **names), reference(case, drawn, *functions))


@pytest.mark.parametrize("reverse", [False, True])
def test_reset_before_the_product(reverse):
    case = Case("reset", "gru", 3, 4, 3, 5, (4, 1, 2), reverse)
    drawn = arrays(case)
    got = call(case, as_dtype(drawn, "float32"), reset_after=False)
    assert_same(got, reference(case, drawn, reset_after=False))


@each_op
def test_explain_says_what_runs(op):
    case = Case("explain", op, 2, 4, 3, 5)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, "float32"), arrays(case))
    by_xla = functools.partial(kernels.explain, OPS[op], implementation="xla")
    assert by_xla(**shapes, lengths=jax.ShapeDtypeStruct((2,), "int32")).chosen.formulation == TANGENT
    other = by_xla(**shapes, activation="hard_sigmoid")
    assert other.chosen.formulation == PLAIN
    assert "needs activation tanh" in str(other)
    one_step = by_xla(**shapes | {"x": jax.ShapeDtypeStruct((2, 1, 3), "float32")})
    assert one_step.chosen.formulation == PLAIN
    found = kernels.explain(kernels.gru, **gru_shapes(), reset_after=False).candidates
    assert [c.able for c in found[:2]] == [False] * 2


def gru_shapes():
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, "float32"), arrays(Case("", "gru", 2, 4, 3, 5)))


@each_op
def test_an_implementation_by_name_runs_or_says_why_not(op):
    case = Case("named", op, 2, 4, 3, 5)
    a = as_dtype(arrays(case), "float32")
    assert_same(call(case, a, implementation="xla"), call(case, a))
    with pytest.raises(ValueError, match=f"{op}: unknown implementation 'cudnn'; Known: .*xla"):
        call(case, a, implementation="cudnn")
