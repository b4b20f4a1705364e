"""Convolution: every formulation equals loops in float64, and its gradients those of lax and finite differences."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from kernels import conv_reference as reference
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels._dispatch import forced, tracing_for
from llmasos_xla.kernels.conv.cases import BENCH, TESTS
from llmasos_xla.kernels.conv.xla import FORMULATIONS

by_group_module = sys.modules["llmasos_xla.kernels.conv.xla"]

CASES = {case.name: case for case in TESTS}
NHWC = ("NHWC", "HWIO", "NHWC")


def drawn(case, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(case.lhs).astype(dtype), rng.standard_normal(case.rhs).astype(dtype)


def shapes(case, dtype=np.float32):
    return jax.ShapeDtypeStruct(case.lhs, dtype), jax.ShapeDtypeStruct(case.rhs, dtype)


def able(case):
    """The formulations that can compute the case, fast or not."""
    found = kernels.explain(kernels.conv, *shapes(case), **case.arguments).candidates
    return [c.formulation for c in found if c.implementation == "xla" and (c.objection is None or c.able)]


def loss(y):
    # Weights of all signs, and a curvature for the second derivatives.
    return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum() + (y**3).sum() / 9


def expected(case, x, w):
    return reference.conv(x, w, case.stride, case.padding, case.rhs_dilation, case.lhs_dilation, case.groups)


def numpy_loss(y):
    return (y * np.cos(np.arange(y.size)).reshape(y.shape)).sum() + (y**3).sum() / 9


def conv_of(case, formulation):
    def f(x, w):
        with forced(formulation):
            return kernels.conv(x, w, **case.arguments)

    return f


def with_gradients(f):
    def g(x, w):
        return f(x, w), *jax.grad(lambda x, w: loss(f(x, w)), (0, 1))(x, w)

    return jax.jit(g)


EVERY = [(case.name, formulation) for case in TESTS for formulation in able(case) if formulation != "lax"]


@pytest.mark.parametrize(("name", "formulation"), EVERY)
def test_every_formulation_equals_loops_and_its_gradients_those_of_lax(name, formulation):
    case = CASES[name]
    x, w = drawn(case)
    with jax.enable_x64(True):
        y, dx, dw = with_gradients(conv_of(case, formulation))(x, w)
        _, lax_dx, lax_dw = with_gradients(conv_of(case, "lax"))(x, w)
    assert y.dtype == dx.dtype == dw.dtype == np.float64
    assert_close(y, expected(case, x, w))
    assert_close(dx, lax_dx)
    assert_close(dw, lax_dw)


@pytest.mark.parametrize("name", [case.name for case in TESTS])
def test_lax_equals_loops(name):
    case = CASES[name]
    x, w = drawn(case)
    with jax.enable_x64(True):
        assert_close(jax.jit(conv_of(case, "lax"))(x, w), expected(case, x, w))


@pytest.mark.parametrize(
    "name", ["stride", "dilated-stride", "input-dilated", "asymmetric", "groups", "depthwise", "1x1-stride"]
)
def test_gradients_equal_finite_differences(name):
    case = CASES[name]
    x, w = drawn(case)
    with jax.enable_x64(True):
        _, dx, dw = with_gradients(lambda x, w: kernels.conv(x, w, **case.arguments))(x, w)
    # On a part of the elements: the loops are slow.
    head, tail = np.s_[:1, 1:3], np.s_[:1, :2]

    def of_x(v):
        moved = x.copy()
        moved[head] = v
        return numpy_loss(expected(case, moved, w))

    def of_w(v):
        moved = w.copy()
        moved[tail] = v
        return numpy_loss(expected(case, x, moved))

    np.testing.assert_allclose(dx[head], reference.finite_differences(of_x, x[head]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dw[tail], reference.finite_differences(of_w, w[tail]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["3x3", "dilated-stride", "1x1-stride-pad", "groups", "depthwise-multiplier"])
def test_second_derivatives_and_forward_mode_equal_those_of_lax(name):
    case = CASES[name]
    x, w = drawn(case)
    tx, tw = drawn(case, seed=1)

    def derivatives(f):
        def total(x, w):
            return loss(f(x, w))

        def directional(x, w):
            return sum((a * b).sum() for a, b in zip(jax.grad(total, (0, 1))(x, w), (jnp.asarray(tx), jnp.asarray(tw))))

        reverse = jax.grad(directional, (0, 1))(x, w)
        forward = jax.jvp(jax.grad(total, (0, 1)), (x, w), (tx, tw))[1]
        return reverse, forward, jax.jvp(f, (x, w), (tx, tw))[1]

    with jax.enable_x64(True):
        got = jax.jit(lambda: derivatives(lambda x, w: kernels.conv(x, w, **case.arguments)))()
        wanted = jax.jit(lambda: derivatives(conv_of(case, "lax")))()
    jax.tree.map(assert_close, got, wanted)


@pytest.mark.parametrize("name", ["3x3", "1x1-stride", "groups", "depthwise"])
def test_vmap_remat_and_scan_change_nothing(name):
    case = CASES[name]
    xs, ws = (np.stack(pair) for pair in zip(*(drawn(case, seed) for seed in range(3))))

    def conv(x, w):
        return kernels.conv(x, w, **case.arguments)

    def gradients(x, w, conv=conv):
        return jax.grad(lambda x, w: loss(conv(x, w)), (0, 1))(x, w)

    with jax.enable_x64(True):
        each = jax.jit(lambda xs, ws: [gradients(x, w) for x, w in zip(xs, ws)])(xs, ws)
        wanted = jax.tree.map(lambda *parts: np.stack(parts), *each)
        for every in (
            jax.vmap(gradients),
            jax.vmap(lambda x, w: gradients(x, w, jax.checkpoint(conv))),
            lambda xs, ws: lax.scan(lambda c, pair: (c, gradients(*pair)), 0, (xs, ws))[1],
        ):
            jax.tree.map(assert_close, jax.jit(every)(xs, ws), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["3x3", "1x1-stride", "groups", "depthwise-multiplier"])
def test_narrow_types_give_narrow_results_near_the_reference(name, dtype):
    case = CASES[name]
    x, w = (jnp.asarray(a, dtype) for a in drawn(case, dtype=np.float32))
    y, dx, dw = with_gradients(lambda x, w: kernels.conv(x, w, **case.arguments))(x, w)
    assert y.dtype == dx.dtype == dw.dtype == dtype
    wide = [np.asarray(a, np.float64) for a in (x, w)]
    assert_close(y, expected(case, *wide), scale=2, dtype=dtype)


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_preferred_element_type_is_that_of_the_result(name):
    case = CASES[name]
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in drawn(case, dtype=np.float32))
    wide = [np.asarray(a, np.float64) for a in (x, w)]
    f = with_gradients(lambda x, w: kernels.conv(x, w, **case.arguments, preferred_element_type=jnp.float32))
    y, dx, dw = f(x, w)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert_close(y, expected(case, *wide))


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("numbers", [NHWC, ("NCHW", "HWIO", "NCHW"), ("HWNC", "HWIO", "CHNW")], ids=str)
@pytest.mark.parametrize("activation", [*kernels.ACTIVATIONS, "ReLU"])
def test_bias_and_activation_follow_the_sum_in_any_order_of_dimensions(activation, numbers, implementation):
    case = CASES["stride"]
    x, w = drawn(case, dtype=np.float32)
    b = np.linspace(-1, 1, case.rhs[-1], dtype=np.float32)
    image, _, out = numbers
    y = kernels.conv(
        x.transpose(["NHWC".index(axis) for axis in image]), w, **(case.arguments | {"dimension_numbers": numbers}),
        bias=b, activation=activation, implementation=implementation,
    )  # fmt: skip
    wanted = kernels.activation(activation)(jnp.asarray(expected(case, x, w) + b, jnp.float32))
    assert_close(y, wanted.transpose(["NHWC".index(axis) for axis in out]), scale=5)


@pytest.mark.parametrize(
    "numbers", [None, ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW"), ("HWNC", "IOHW", "CHNW")]
)
@pytest.mark.parametrize("name", ["stride", "groups-stride", "depthwise"])
def test_any_order_of_dimensions_gives_the_same_numbers(name, numbers):
    case = CASES[name]
    x, w = drawn(case)
    b = np.linspace(-1, 1, case.rhs[-1])
    image, kernel, out = numbers or ("NCHW", "OIHW", "NCHW")
    x_there = x.transpose(["NHWC".index(axis) for axis in image])
    w_there = w.transpose(["HWIO".index(axis) for axis in kernel])
    with jax.enable_x64(True):
        f = jax.jit(
            lambda x, w: kernels.conv(x, w, **(case.arguments | {"dimension_numbers": numbers}), bias=jnp.asarray(b))
        )
        y = f(x_there, w_there)
    assert_close(y, (expected(case, x, w) + b).transpose(["NHWC".index(axis) for axis in out]))


def test_it_takes_the_arguments_of_lax_by_position():
    case = CASES["groups-stride"]
    x, w = drawn(case, dtype=np.float32)
    arguments = case.arguments_of_lax()
    positional = [arguments[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")]
    rest = (arguments["dimension_numbers"], case.groups, 1, lax.Precision.HIGHEST, jnp.float32)
    assert_close(kernels.conv(x, w, *positional, *rest), lax.conv_general_dilated(x, w, *positional, *rest))


def test_batch_groups_and_integers_run_as_in_lax():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 5, 5, 3), np.float32), rng.standard_normal((3, 3, 3, 6), np.float32)
    assert_close(
        kernels.conv(x, w, dimension_numbers=NHWC, batch_group_count=2),
        lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC, batch_group_count=2),
    )
    x, w = rng.integers(-9, 9, x.shape, np.int8), rng.integers(-9, 9, w.shape, np.int8)
    y = kernels.conv(x, w, padding="SAME", dimension_numbers=NHWC, preferred_element_type=jnp.int32)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, reference.conv(x, w))


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_what_nnx_conv_calls(groups):
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype(np.float32)
    plain = nnx.Conv(4, 6, (3, 3), 2, feature_group_count=groups, rngs=nnx.Rngs(0))
    ours = nnx.Conv(4, 6, (3, 3), 2, feature_group_count=groups, conv_general_dilated=kernels.conv, rngs=nnx.Rngs(0))
    assert_close(ours(jnp.asarray(x)), plain(jnp.asarray(x)))


WANTED_ON_CPU = {
    "mnist-first-layer": "canonical",
    "resnet-stem": "canonical",
    "resnet50-expand": "canonical",
    "resnet50-shortcut": "strided pointwise",
    "resnext-28": "canonical by group",
    "mobilenet-depthwise": "depthwise multiply-adds",
    "wavenet-causal": "canonical",
}


@pytest.mark.parametrize(("name", "formulation"), WANTED_ON_CPU.items())
def test_the_choice_among_the_xla_formulations_on_cpu(name, formulation):
    case = next(case for case in BENCH if case.name == name)
    found = kernels.explain(kernels.conv, *shapes(case), **case.arguments, implementation="xla")
    assert found.chosen.formulation == formulation


def test_elsewhere_than_on_cpu_lax_runs():
    for case in BENCH:
        with tracing_for("tpu"):
            found = kernels.explain(kernels.conv, *shapes(case), **case.arguments)
        assert found.chosen.formulation == "lax"
        assert "measured to pay on cpu only, this is tpu" in str(found)


def chosen_on_gpu(case):
    with tracing_for("gpu"):
        found = kernels.explain(kernels.conv, *shapes(case), **case.arguments, implementation="xla")
    return found.chosen.formulation


REEXPRESSED = [case.name for case in TESTS if chosen_on_gpu(case) != "lax"]


def test_what_cudnn_has_no_form_for_is_reexpressed_on_gpu():
    assert {chosen_on_gpu(CASES[name]) for name in REEXPRESSED} == {"phases", "canonical"}


@pytest.mark.parametrize("name", REEXPRESSED)
def test_what_runs_on_gpu_equals_loops_and_its_derivatives_those_of_lax(name):
    case = CASES[name]
    x, w = drawn(case)

    def on_gpu(x, w):
        with tracing_for("gpu"):
            return kernels.conv(x, w, **case.arguments, implementation="xla")

    def derivatives(f):
        def directional(x, w):
            return sum((a * b).sum() for a, b in zip(jax.grad(lambda x, w: loss(f(x, w)), (0, 1))(x, w), (x, w)))

        return jax.jit(lambda x, w: (jax.jvp(f, (x, w), (x, w))[1], jax.grad(directional, (0, 1))(x, w)))(x, w)

    with jax.enable_x64(True):
        y, *gradients = with_gradients(on_gpu)(x, w)
        _, *wanted = with_gradients(conv_of(case, "lax"))(x, w)
        assert_close(y, expected(case, x, w))
        jax.tree.map(assert_close, gradients, wanted)
        jax.tree.map(assert_close, derivatives(on_gpu), derivatives(conv_of(case, "lax")))


@pytest.mark.parametrize("preferred", [None, jnp.float32])
@pytest.mark.parametrize("name", ["groups-stride", "groups-dilated", "dilated", "input-dilated"])
def test_narrow_types_on_gpu(name, preferred):
    case = CASES[name]
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in drawn(case, dtype=np.float32))

    def on_gpu(x, w):
        with tracing_for("gpu"):
            return kernels.conv(x, w, **case.arguments, preferred_element_type=preferred, implementation="xla")

    y, dx, dw = with_gradients(on_gpu)(x, w)
    assert (y.dtype, dx.dtype, dw.dtype) == (preferred or jnp.bfloat16, jnp.bfloat16, jnp.bfloat16)
    assert_close(y, expected(case, *(np.asarray(a, np.float64) for a in (x, w))), scale=2, dtype="bfloat16")


@pytest.mark.parametrize("name", ["groups", "groups-stride", "many-groups"])
def test_groups_give_the_same_with_a_call_each(name, monkeypatch):
    case = CASES[name]
    x, w = drawn(case)
    monkeypatch.setattr(by_group_module, "WORTH_A_CALL", 0)
    with jax.enable_x64(True):
        y, *gradients = with_gradients(conv_of(case, "canonical by group"))(x, w)
        _, *wanted = with_gradients(conv_of(case, "lax"))(x, w)
    assert_close(y, expected(case, x, w))
    jax.tree.map(assert_close, gradients, wanted)


def test_all_formulations_are_tested():
    assert {formulation for _, formulation in EVERY} == set(FORMULATIONS) - {"lax"}
