"""Recurrence by oneDNN: values, derivatives of every order and mode, lengths, precision, and what it refuses."""

import concurrent.futures
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from kernels.rnn_problems import (
    OPS,
    assert_same,
    assert_same_gradients,
    assert_values_and_gradients,
    call,
    drawn,
    expected_outputs,
    is_refused,
    loss,
    shapes,
)
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch, _onednn
from llmasos_xla.kernels.rnn.cases import TESTS, Case
from llmasos_xla.kernels.rnn.choice import LIBRARY
from llmasos_xla.kernels.rnn.onednn_operations import BACKWARD, TRAINING
from llmasos_xla.kernels.rnn.onednn_plans import workspace_bytes
from llmasos_xla.kernels.rnn.onednn_spec import Spec

pytestmark = pytest.mark.skipif(_onednn.problem() is not None, reason=f"oneDNN: {_onednn.problem()}")

each_op = pytest.mark.parametrize("op", OPS)
# Every size from given states or from zeros, the operations in turn.
STARTS = [(case, (i + i // 8) % 2 == 0) for i, case in enumerate(TESTS)]


@pytest.mark.parametrize(
    ("case", "given"),
    slow_but(STARTS, TESTS, [True, False]),
    ids=lambda v: v.name if isinstance(v, Case) else "given-states" if v else "from-zeros",
)
def test_values_match_numpy_and_gradients_match_xla(case, given):
    whole, present = drawn(case, given=given)
    if is_refused(case, given):
        with pytest.raises(NotImplementedError, match="onednn"):
            call(case, whole)
        return
    assert_values_and_gradients(case, whole, present)


@st.composite
def problems(draw):
    """A case of any geometry that is not refused, and which optional arrays it has."""
    op = draw(st.sampled_from(tuple(OPS)))
    batch, time = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    sizes = st.one_of(st.integers(1, 9), st.sampled_from((16, 31, 32, 48, 65)))
    lengths = draw(st.none() | st.tuples(*[st.integers(0, time)] * batch))
    case = Case("any", op, batch, time, draw(sizes), draw(sizes), lengths, draw(st.booleans()), draw(st.booleans()))
    given = draw(st.booleans())
    hypothesis.assume(not is_refused(case, given))
    return case, given


def assert_matches_numpy_and_its_finite_differences(problem):
    case, given = problem
    whole, present = drawn(case, given=given, scale=0.5)
    direction = drawn(case, given=given, scale=0.5, seed=1)[1]
    cotangents = [np.cos(np.arange(e.size)).reshape(e.shape) for e in expected_outputs(case, whole)]

    @jax.jit
    def pull(present):
        outputs, back = jax.vjp(lambda p: call(case, whole | p), present)
        return outputs, back(tuple(jnp.asarray(c, jnp.float32) for c in cotangents))[0]

    outputs, gradient = pull(present)
    assert_same(outputs, expected_outputs(case, whole))

    def along(step):
        moved = {k: np.asarray(v, np.float64) + step * np.asarray(direction[k], np.float64) for k, v in present.items()}
        return sum(np.sum(c * e) for c, e in zip(cotangents, expected_outputs(case, whole | moved)))

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    terms = [np.asarray(gradient[k], np.float64) * np.asarray(direction[k], np.float64) for k in present]
    size = 1 + sum(np.abs(t).sum() for t in terms)
    assert sum(t.sum() for t in terms) / size == pytest.approx(slope / size, abs=2e-5)


@pytest.mark.parametrize("examples", slow_but([(20,)], [20, 60]))
def test_any_geometry_matches_numpy_and_its_finite_differences(examples):
    law = hypothesis.given(problems())(assert_matches_numpy_and_its_finite_differences)
    hypothesis.settings(max_examples=examples, deadline=None, derandomize=True)(law)()


@pytest.mark.parametrize("op", slow_but([("lstm",)], OPS))
def test_derivatives_of_every_mode_equal_xla_s(op):
    case = Case("modes", op, 3, 5, 4, 6, (5, 2, 0), reverse=op == "gru")
    (_, a), (_, b) = drawn(case, scale=0.4), drawn(case, scale=0.4, seed=1)

    @functools.partial(jax.jit, static_argnums=0)
    def every_mode(implementation, a, b):
        f = functools.partial(loss, case, implementation=implementation)
        slope = lambda a: jax.jvp(f, (a,), (b,))[1]  # noqa: E731
        return {
            "forward": slope(a),
            "forward over reverse": jax.jvp(jax.grad(f), (a,), (b,))[1],
            "reverse over forward": jax.grad(slope)(a),
            "reverse over reverse": jax.grad(lambda a: sum(jnp.vdot(g, b[k]) for k, g in jax.grad(f)(a).items()))(a),
            "forward over forward": jax.jvp(slope, (a,), (b,))[1],
            "remat": jax.grad(jax.checkpoint(f))(a),
        }

    got, expected = every_mode("onednn", a, b), every_mode("xla", a, b)
    assert_same(got, expected, scale=20.0)


@each_op
def test_reverse_mode_runs_no_scan(op):
    case = Case("program", op, 3, 5, 4, 6)
    _, present = drawn(case)
    lowered = jax.jit(jax.grad(functools.partial(loss, case))).lower(present).as_text()
    assert lowered.count("custom_call @llmasos_onednn") == 2
    assert "stablehlo.while" not in lowered


@each_op
def test_vmap_scan_and_eager_change_nothing(op):
    case = Case("transforms", op, 2, 4, 3, 5, (4, 2))
    (_, a), (_, b) = drawn(case), drawn(case, seed=1)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), a, b)
    run = functools.partial(call, case)
    slope = jax.grad(functools.partial(loss, case))
    alone = jax.tree.map(lambda *x: jnp.stack(x), (run(a), slope(a)), (run(b), slope(b)))

    @jax.jit
    def every_way(stacked):
        return (
            jax.vmap(lambda a: (run(a), slope(a)))(stacked),
            jax.lax.scan(lambda carry, a: (carry, (run(a), slope(a))), None, stacked)[1],
        )

    mapped, scanned = every_way(stacked)
    assert_same(mapped[0], alone[0])
    assert_same_gradients(mapped[1], alone[1])
    assert_same(scanned[0], alone[0])
    assert_same_gradients(scanned[1], alone[1])


@each_op
def test_a_mapped_batch_joins_the_batch(op):
    case = Case("vmap", op, 2, 4, 3, 5)
    whole, present = drawn(case, given=False)
    xs = jnp.stack([present["x"], -present["x"], 2 * present["x"]], axis=2)

    def run(x):
        return call(case, whole | {"x": x})

    mapped = jax.jit(jax.vmap(run, in_axes=2))
    lowered = mapped.lower(xs).as_text()
    assert lowered.count("custom_call @llmasos_onednn") == 1
    assert "stablehlo.while" not in lowered
    assert_same(mapped(xs), jax.tree.map(lambda *a: jnp.stack(a), *[run(xs[:, :, i]) for i in range(3)]))
    total = lambda w: jnp.sum(jax.vmap(lambda x: call(case, whole | {"x": x, "w_input": w})[0], 2)(xs) ** 2)  # noqa: E731
    one_by_one = lambda w: sum(jnp.sum(call(case, whole | {"x": xs[:, :, i], "w_input": w})[0] ** 2) for i in range(3))  # noqa: E731
    gradients = jax.jit(lambda w: (jax.grad(total)(w), jax.grad(one_by_one)(w)))(whole["w_input"])
    assert_close(gradients[0], gradients[1], scale=5.0)


def test_four_threads_get_what_one_gets():
    case = Case("threads", "lstm", 4, 20, 16, 24, (20, 11, 3, 0))
    inputs = [drawn(case, seed=seed)[1] for seed in range(4)]
    slope = jax.jit(jax.value_and_grad(functools.partial(loss, case)))
    alone = [slope(a) for a in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(slope, inputs * 8))
    for got, expected in zip(together, alone * 8):
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@each_op
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_not_looked_at(op, reverse):
    case = Case("ragged", op, 3, 5, 4, 3, (5, 2, 0), reverse)
    if is_refused(case, given=False):
        pytest.skip("refused")
    _, clean = drawn(case, given=False)
    padding = jnp.arange(5)[None, :, None] >= jnp.array(case.lengths)[:, None, None]
    dirty = clean | {"x": jnp.where(padding, jnp.nan, clean["x"])}
    both = jax.jit(jax.value_and_grad(functools.partial(loss, case)))
    jax.tree.map(np.testing.assert_array_equal, both(dirty), both(clean))


@each_op
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_keeps_the_state_however_long_it_is(op, reverse):
    short = Case("short", op, 2, 3, 4, 5, (3, 2), reverse)
    if is_refused(short, given=False):
        pytest.skip("refused")
    whole, present = drawn(short, given=False)
    # A memory far from 0 shows a gate that lets a little through.
    whole["bias"] = present["bias"] = present["bias"] + 3.0
    long = short._replace(time=300)
    padded = present | {"x": jnp.pad(present["x"], ((0, 0), (0, 297), (0, 0)), constant_values=1.0)}

    def states(case, present):
        return call(case, whole | present)[1:]

    pulled = []
    for case, given in ((short, present), (long, padded)):
        outputs, pull = jax.vjp(functools.partial(states, case), given)
        pulled.append((outputs, pull(jax.tree.map(jnp.ones_like, outputs))[0]))
    (few, few_slopes), (many, many_slopes) = pulled
    assert_same(many, few, scale=0.1)
    assert not many_slopes["x"][:, 3:].any()
    assert_same_gradients(many_slopes | {"x": many_slopes["x"][:, :3]}, few_slopes)


@each_op
@pytest.mark.parametrize("size", [30.0, 1e4, 1e8])
def test_saturated_gates_give_finite_gradients(op, size):
    case = Case("saturated", op, 2, 6, 3, 5, (6, 3))
    _, present = drawn(case)
    present |= {"x": size * present["x"], "w_recurrent": 10 * present["w_recurrent"]}
    both = jax.jit(lambda a: [jax.value_and_grad(loss, 1)(case, a, name) for name in ("onednn", "xla")])
    got, expected = both(present)
    assert_close(got[0], expected[0], scale=10.0)
    for name in present:
        assert jnp.isfinite(got[1][name]).all(), name
    if size > 1000:  # every gate is closed or open, and nothing but h0 and c0 could tell
        assert_same_gradients(got[1], expected[1], scale=10.0)


@pytest.mark.parametrize("op", ["lstm", "rnn"])
def test_bfloat16_rounds_where_xla_does(op):
    case = Case("low", op, 3, 9, 6, 8, (9, 4, 1))
    whole, present = drawn(case, "bfloat16", scale=0.4)
    outputs = jax.jit(functools.partial(call, case))(whole)
    assert {o.dtype.name for o in outputs} == {"bfloat16"}
    assert_same(outputs, expected_outputs(case, whole), dtype="bfloat16")
    assert_same(outputs, call(case, whole, "xla"), dtype="bfloat16", scale=0.5)
    gradients = jax.jit(jax.grad(functools.partial(loss, case)))(present)
    exact = jax.grad(functools.partial(loss, case), 0)({k: v.astype(jnp.float32) for k, v in present.items()}, "xla")
    for name, gradient in gradients.items():
        assert gradient.dtype == "bfloat16"
        size = float(jnp.abs(exact[name]).max())
        assert_close(np.asarray(gradient, np.float64) / size, exact[name] / size, dtype="bfloat16", message=name)


@pytest.mark.parametrize("op", ["lstm", "rnn"])
def test_the_state_is_not_rounded_between_steps(op):
    case = Case("long", op, 1, 300, 4, 8)
    whole, _ = drawn(case, "bfloat16", scale=0.3)
    exact = call(case, {k: None if v is None else v.astype(jnp.float32) for k, v in whole.items()})
    assert float(jnp.abs(call(case, whole)[0].astype(jnp.float32) - exact[0]).max()) < 0.01


def refusal(op, dtype="float32", **options):
    """The objection to oneDNN on a small problem."""
    found = kernels.explain(OPS[op], **shapes(Case("", op, 2, 4, 3, 5), dtype) | options).candidates
    return next(c.objection for c in found if c.formulation == LIBRARY)


@pytest.mark.parametrize(
    ("op", "options", "words"),
    [
        ("lstm", {"activation": "relu"}, "needs activation tanh and recurrent_activation sigmoid"),
        ("gru", {"recurrent_activation": "hard_sigmoid"}, "needs activation tanh and recurrent_activation sigmoid"),
        ("gru", {"reset_after": False}, "needs reset_after=True"),
        ("rnn", {"activation": "softsign"}, "needs activation tanh"),
        ("rnn", {"activation": "relu"}, "needs activation tanh; its relu turns NaN into 0"),
        ("gru", {"dtype": "bfloat16"}, "keeps a GRU's state in bfloat16 between steps, where float32 is promised"),
        ("lstm", {"dtype": "float16"}, "takes float32 and bfloat16, x is float16"),
        (
            "lstm",
            {"lengths": jax.ShapeDtypeStruct((2,), "int32"), "reverse": True},
            "cannot carry an LSTM's initial h over leading padding: lengths, reverse and a state are given",
        ),
        (
            "rnn",
            {"lengths": jax.ShapeDtypeStruct((2,), "int32"), "reverse": True},
            "has no gates to skip leading padding with: lengths and reverse are given",
        ),
    ],
)
def test_what_it_refuses_and_in_which_words(op, options, words):
    assert refusal(op, **options) == words


@each_op
def test_other_platforms_refuse(op):
    with _dispatch.tracing_for("gpu"):
        assert refusal(op) == "runs on cpu, this is gpu"


@each_op
def test_it_is_chosen_where_it_was_measured_faster(op):
    assert kernels.explain(OPS[op], **shapes(Case("size", op, 32, 128, 256, 256))).chosen.formulation == LIBRARY
    whole, _ = drawn(Case("xla", op, 2, 3, 4, 5))
    by_xla = jax.jit(lambda a: OPS[op](**a, implementation="xla")).lower(whole).as_text()
    assert "llmasos_onednn" not in by_xla


def test_a_workspace_of_another_cpu_is_refused_when_its_plan_is_made():
    """A program from elsewhere names its workspace's size; writing past it would corrupt memory."""
    for op, hidden in (("lstm", 32), ("lstm", 7), ("gru", 16)):
        s = Spec(op, 2, 3, 4, hidden, "float32", False, False)
        s = s._replace(workspace=workspace_bytes(s))
        assert _onednn.refusal(TRAINING, s) is None
        for operation in (TRAINING, BACKWARD):
            why = _onednn.refusal(operation, s._replace(workspace=s.workspace - 64))
            assert "bytes from forward to backward" in why
