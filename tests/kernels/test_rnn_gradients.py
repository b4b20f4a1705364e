"""rnn, gru and lstm: first and second derivatives, and what the backward pass costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.rnn_reference import arrays
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.rnn.cases import TESTS, Case
from llmasos_xla.kernels.rnn.choice import PLAIN, TANGENT

OPS = {"lstm": kernels.lstm, "gru": kernels.gru, "rnn": kernels.rnn}
each_op = pytest.mark.parametrize("op", OPS)
RAGGED = (4, 2, 0)


def loss(case, formulation, arrays, **options):
    """A number that depends on every output unevenly, in the formulation asked for."""
    lengths = None if case.lengths is None else np.array(case.lengths)
    with _dispatch.forced(formulation):
        outputs = jax.tree.leaves(OPS[case.op](**arrays, lengths=lengths, reverse=case.reverse, **options))
    weights = (jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o in outputs)
    return sum(jnp.sum(w * o * o) + jnp.sum(o) for w, o in zip(weights, outputs))


def given(arrays, dtype):
    return {name: jnp.asarray(a, dtype) for name, a in arrays.items() if a is not None}


def with_bias_argument(case, given):
    return given if case.bias else given | {"bias": None}


@pytest.mark.thorough
@pytest.mark.parametrize("case", TESTS, ids=lambda c: c.name)
def test_gradient_equals_the_plain_scan_s(case):
    def gradient(formulation, a):
        return jax.grad(lambda a: loss(case, formulation, with_bias_argument(case, a)))(a)

    with jax.enable_x64(True):
        a = given(arrays(case), "float64")
        got, expected = jax.jit(lambda a: (gradient(TANGENT, a), gradient(PLAIN, a)))(a)
    for name in a:
        assert_close(got[name], expected[name], message=name)


@each_op
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_gradient_equals_finite_differences(op, lengths, reverse):
    case = Case("finite", op, 3, 4, 2, 3, lengths, reverse)
    with jax.enable_x64(True):
        a = given(arrays(case), "float64")
        value = jax.jit(functools.partial(loss, case, TANGENT))
        gradient = jax.jit(jax.grad(functools.partial(loss, case, TANGENT)))(a)
        rng = np.random.default_rng(1)
        for name in a:
            direction, step = rng.standard_normal(a[name].shape), 1e-5
            up, down = (value(a | {name: a[name] + sign * step * direction}) for sign in (1, -1))
            along = float(jnp.sum(gradient[name] * direction))
            assert along == pytest.approx(float((up - down) / (2 * step)), rel=1e-6, abs=1e-7), name


def test_relu_gradient_equals_the_plain_scan_s():
    case = Case("relu", "rnn", 3, 4, 2, 3, RAGGED)
    with jax.enable_x64(True):
        a = given(arrays(case), "float64")
        got, expected = (jax.grad(functools.partial(loss, case, f, activation="relu"))(a) for f in (TANGENT, PLAIN))
    for name in a:
        assert_close(got[name], expected[name], message=name)


@pytest.mark.parametrize("op", slow_but([("gru",)], OPS))
def test_second_derivatives_in_every_mode(op):
    case = Case("second", op, 2, 3, 1, 2, (3, 1), True)
    f, plain = (functools.partial(loss, case, formulation) for formulation in (TANGENT, PLAIN))
    with jax.enable_x64(True):
        a = given(arrays(case), "float64")
        expected = jax.jit(jax.hessian(plain))(a)
        for mode in (jax.hessian(f), jax.jacrev(jax.grad(f)), jax.jacfwd(jax.jacfwd(f))):
            jax.tree.map(assert_close, jax.jit(mode)(a), expected)


@each_op
def test_derivatives_under_jvp_remat_vmap_and_scan(op):
    case = Case("transforms", op, 2, 4, 3, 2, (4, 2))
    f = functools.partial(loss, case, TANGENT)

    @jax.jit
    def every_way(a, b):
        both = jax.tree.map(lambda *x: jnp.stack(x), a, b)
        return (
            jax.jvp(f, (a,), (b,))[1],
            jax.grad(jax.checkpoint(f))(a),
            jax.vmap(jax.grad(f))(both),
            jax.lax.scan(lambda c, x: (c, jax.grad(f)(x)), 0, both)[1],
            jax.grad(lambda x: jnp.sum(jax.vmap(f)(x)))(both),
        )

    with jax.enable_x64(True):
        a, b = (given(arrays(case, seed), "float64") for seed in (0, 1))
        gradient = jax.jit(jax.grad(f))
        ga, gb = gradient(a), gradient(b)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), ga, gb)
        expected = (sum(jnp.sum(ga[name] * b[name]) for name in a), ga, stacked, stacked, stacked)
        jax.tree.map(assert_close, every_way(a, b), expected)


@each_op
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_gradients_are_close_and_keep_their_dtype(op, dtype):
    case = Case("low", op, 3, 6, 5, 8, (6, 3, 1))
    low = given(arrays(case, scale=0.4), dtype)
    got = jax.jit(jax.grad(functools.partial(loss, case, TANGENT)))(low)
    exact = jax.jit(jax.grad(functools.partial(loss, case, PLAIN)))(given(low, "float32"))
    for name in low:
        assert got[name].dtype == dtype
        size = float(jnp.abs(exact[name]).max())
        assert_close(np.asarray(got[name], np.float64) / size, exact[name] / size, dtype=dtype, message=name)


@each_op
def test_each_loop_has_one_product_a_step(op):
    # dU gathered inside the reverse loop would be a second product there.
    case = Case("cost", op, 3, 6, 5, 8)
    a = given(arrays(case), "float32")
    jaxpr = jax.jit(jax.grad(functools.partial(loss, case, TANGENT))).trace(a).jaxpr
    assert products_in_loops(jaxpr.jaxpr) == [1, 1]


def products_in_loops(jaxpr):
    """The number of matrix products in the body of each scan."""
    counts = []
    for eqn in jaxpr.eqns:
        inner = [p.jaxpr for p in eqn.params.values() if hasattr(p, "jaxpr")]
        if eqn.primitive.name == "scan":
            counts.append(str(inner[0]).count("dot_general["))
        else:
            counts += [n for j in inner for n in products_in_loops(j)]
    return [n for n in counts if n]
