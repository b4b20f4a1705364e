"""Transposed convolution: equal to loops in float64, gradients equal to those of lax and to finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from kernels import conv_reference as reference
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels._dispatch import forced, tracing_for
from llmasos_xla.kernels.conv.cases import TRANSPOSE_TESTS

CASES = {case.name: case for case in TRANSPOSE_TESTS}


def drawn(case, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(case.lhs), rng.standard_normal(case.rhs)


def rest(case):
    return {
        "strides": case.strides,
        "padding": case.padding,
        "rhs_dilation": case.rhs_dilation,
        "transpose_kernel": case.transpose_kernel,
    }


def rest_for_lax(case):
    rank = len(case.lhs) - 2
    both = {name: reference.spread(getattr(case, name), rank) for name in ("strides", "rhs_dilation")}
    return rest(case) | both


def expected(case, x, w):
    return reference.conv_transpose(x, w, case.strides, case.padding, case.rhs_dilation, case.transpose_kernel)


def with_gradients(f):
    def loss(x, w):
        return jnp.sin(f(x, w)).sum()

    return jax.jit(lambda x, w: (f(x, w), *jax.grad(loss, (0, 1))(x, w)))


@pytest.mark.parametrize(("formulation", "platform"), [("canonical", "cpu"), ("canonical", "gpu"), ("lax", "cpu")])
@pytest.mark.parametrize("name", list(CASES))
def test_values_equal_loops_and_gradients_those_of_lax(name, formulation, platform):
    case = CASES[name]
    x, w = drawn(case)

    def ours(x, w):
        with forced(formulation), tracing_for(platform):
            return kernels.conv_transpose(x, w, **rest(case))

    with jax.enable_x64(True):
        got = with_gradients(ours)(x, w)
        wanted = with_gradients(lambda x, w: lax.conv_transpose(x, w, **rest_for_lax(case)))(x, w)
    assert_close(got[0], expected(case, x, w))
    jax.tree.map(assert_close, got, wanted)


@pytest.mark.parametrize("name", ["keras", "explicit"])
def test_gradients_equal_finite_differences(name):
    case = CASES[name]
    x, w = drawn(case)
    with jax.enable_x64(True):
        _, dx, dw = with_gradients(lambda x, w: kernels.conv_transpose(x, w, **rest(case)))(x, w)
    head = np.s_[:1, :2]

    def of(which):
        def f(v):
            moved = {"x": x.copy(), "w": w.copy()}
            moved[which][head] = v
            return np.sin(expected(case, **moved)).sum()

        return f

    np.testing.assert_allclose(dx[head], reference.finite_differences(of("x"), x[head]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dw[head], reference.finite_differences(of("w"), w[head]), rtol=1e-5, atol=1e-6)


def test_it_is_the_gradient_of_the_convolution_with_that_kernel():
    w = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype(np.float32)
    y = np.random.default_rng(1).standard_normal((1, 4, 4, 4)).astype(np.float32)

    def conv(x):
        return kernels.conv(x, jnp.asarray(w), 2, ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    (pulled,) = jax.vjp(conv, jnp.ones((1, 8, 8, 2)))[1](jnp.asarray(y))
    assert_close(kernels.conv_transpose(y, w, 2, ((1, 2), (1, 2)), transpose_kernel=True), pulled)


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_bias_activation_and_another_order_of_dimensions(activation, implementation):
    case = CASES["valid"]
    x, w = (a.astype(np.float32) for a in drawn(case))
    b = np.linspace(-1, 1, 3, dtype=np.float32)
    y = kernels.conv_transpose(
        x.transpose(0, 3, 1, 2), w, case.strides, case.padding, dimension_numbers=("NCHW", "HWIO", "NCHW"),
        bias=b, activation=activation, implementation=implementation,
    )  # fmt: skip
    wanted = kernels.activation(activation)(jnp.asarray(expected(case, x, w) + b, jnp.float32))
    assert_close(y.transpose(0, 2, 3, 1), wanted, scale=5)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_choice_among_the_xla_formulations_is_canonical_everywhere(platform):
    case = CASES["same"]
    x, w = (a.astype(np.float32) for a in drawn(case))
    with tracing_for(platform):
        found = kernels.explain(kernels.conv_transpose, x, w, **rest(case), implementation="xla")
        assert found.chosen.formulation == "canonical"
        got = with_gradients(lambda x, w: kernels.conv_transpose(x, w, **rest(case)))(x, w)
    wanted = with_gradients(lambda x, w: lax.conv_transpose(x, w, **rest_for_lax(case)))(x, w)
    jax.tree.map(assert_close, got, wanted)
