"""Pooling: every formulation equals loops in float64, and its gradients those of lax and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import conv_reference as reference
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels._dispatch import forced, tracing_for
from llmasos_xla.kernels.pool.cases import BENCH, TESTS

CASES = {case.name: case for case in TESTS}
OPS = {"max_pool": kernels.max_pool, "avg_pool": kernels.avg_pool}


def rest(case):
    return {"window": case.window, "strides": case.strides, "padding": case.padding}


def shape(case):
    return jax.ShapeDtypeStruct(case.x, np.float32)


def able(op, case):
    found = kernels.explain(OPS[op], shape(case), **rest(case)).candidates
    return [c.formulation for c in found if c.implementation == "xla" and (c.objection is None or c.able)]


EVERY = [(op, case.name, formulation) for op in OPS for case in TESTS for formulation in able(op, case)]


def with_gradient(op, formulation, case, **more):
    def f(x):
        if formulation is None:
            return OPS[op](x, **rest(case), **more)
        with forced(formulation):
            return OPS[op](x, **rest(case), **more)

    def weighted(x):
        y = f(x)
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()

    return jax.jit(lambda x: (f(x), jax.grad(weighted)(x)))


@pytest.mark.parametrize(("op", "name", "formulation"), EVERY)
def test_every_formulation_equals_loops_and_its_gradient_that_of_reduce_window(op, name, formulation):
    case = CASES[name]
    # A few levels only, so that windows hold equal elements: the first of them takes the gradient.
    x = np.random.default_rng(0).integers(-1, 2, case.x).astype(np.float64)
    with jax.enable_x64(True):
        y, dx = with_gradient(op, formulation, case)(x)
        _, wanted = with_gradient(op, "reduce window", case)(x)
    assert y.dtype == dx.dtype == np.float64
    assert_close(y, getattr(reference, op)(x, **rest(case)))
    assert_close(dx, wanted)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["2x2-rest", "3x3-stride", "gaps", "asymmetric-tiles", "1d-overlapping"])
def test_gradients_equal_finite_differences(op, name):
    case = CASES[name]
    x = np.random.default_rng(0).permutation(np.prod(case.x)).reshape(case.x) / 7.0
    with jax.enable_x64(True):
        _, dx = with_gradient(op, None, case)(x)

    def loss(x):
        y = getattr(reference, op)(x, **rest(case))
        return (y * np.cos(np.arange(y.size)).reshape(y.shape)).sum()

    np.testing.assert_allclose(dx, reference.finite_differences(loss, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("formulation", ["blocks", "slices", "reduce window"])
@pytest.mark.parametrize("op", OPS)
def test_nan_propagates(op, formulation):
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 0] = np.nan
    with forced(formulation):
        y = OPS[op](x, 2)
    assert np.isnan(y).ravel().tolist() == [True, False, False, False]


@pytest.mark.parametrize("name", ["2x2-rest", "3x3-stride"])
def test_max_pool_under_vmap_scan_and_twice_differentiated(name):
    case = CASES[name]
    xs = np.random.default_rng(0).standard_normal((3, *case.x))

    def gradient(x, formulation=None):
        def total(x):
            if formulation is None:
                return (kernels.max_pool(x, **rest(case)) ** 3).sum()
            with forced(formulation):
                return (kernels.max_pool(x, **rest(case)) ** 3).sum()

        return jax.grad(total)(x), jax.grad(lambda x: (jax.grad(total)(x) ** 2).sum())(x)

    def scanned(xs):
        return jax.lax.scan(lambda c, x: (c, gradient(x)), 0, xs)[1]

    with jax.enable_x64(True):
        wanted = jax.jit(lambda xs: jax.lax.map(lambda x: gradient(x, "reduce window"), xs))(xs)
        jax.tree.map(assert_close, jax.jit(jax.vmap(gradient))(xs), wanted)
        jax.tree.map(assert_close, jax.jit(scanned)(xs), wanted)
        tangent = jax.jit(lambda x: jax.jvp(lambda x: kernels.max_pool(x, **rest(case)), (x,), (x,))[1])(xs[0])
    assert_close(tangent, reference.max_pool(xs[0], **rest(case)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", OPS)
def test_narrow_types(op, dtype):
    case = CASES["3x3-stride"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal(case.x), dtype)
    y, dx = with_gradient(op, None, case)(x)
    assert y.dtype == dx.dtype == dtype
    assert_close(y, getattr(reference, op)(np.asarray(x, np.float64), **rest(case)))


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_max_pool_takes_integers(dtype):
    case = CASES["3x3-stride"]
    x = np.random.default_rng(0).integers(0, 200, case.x).astype(dtype)
    y = kernels.max_pool(x, **rest(case))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, reference.max_pool(x, **rest(case)))


@pytest.mark.parametrize("name", ["3x3-stride", "asymmetric", "asymmetric-tiles"])
def test_avg_pool_counts_padding_when_told(name):
    case = CASES[name]
    x = np.random.default_rng(0).standard_normal(case.x)
    with jax.enable_x64(True):
        y, _ = with_gradient("avg_pool", None, case, count_include_pad=True)(x)
    assert_close(y, reference.avg_pool(x, **rest(case), count_include_pad=True))


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 4), s=st.integers(1, 3), padding=st.sampled_from(["SAME", "VALID"]))
def test_any_size_of_one_axis(n, k, s, padding):
    if padding == "VALID" and k > n:
        k = n
    x = np.random.default_rng(n).standard_normal((1, n, 1)).astype(np.float32)
    for op, f in OPS.items():
        assert_close(f(x, k, s, padding), getattr(reference, op)(x, k, s, padding))


XLA_ON_CPU = {
    "mnist": ("blocks", "slices"),
    "resnet-stem": ("slices", "slices"),
    "last-7x7": ("slices", "blocks"),
}


@pytest.mark.parametrize(("name", "wanted"), XLA_ON_CPU.items())
def test_the_choice_of_xla_on_cpu(name, wanted):
    case = next(case for case in BENCH if case.name == name)
    found = (kernels.explain(f, shape(case), **rest(case), implementation="xla") for f in OPS.values())
    assert tuple(f.chosen.formulation for f in found) == wanted


@pytest.mark.parametrize("op", OPS)
def test_elsewhere_than_on_cpu_reduce_window_runs(op):
    for case, name in itertools.product(BENCH, ("gpu", "tpu")):
        with tracing_for(name):
            found = kernels.explain(OPS[op], shape(case), **rest(case))
        assert found.chosen.formulation == "reduce window"
