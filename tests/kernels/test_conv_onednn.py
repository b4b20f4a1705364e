"""Convolution by oneDNN: values of loops in float64, gradients that are their adjoints, every transformation of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from kernels import conv_reference as reference
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._dispatch import tracing_for
from llmasos_xla.kernels._onednn.descriptors import ELTWISE
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.conv.cases import TESTS, TRANSPOSE_TESTS, Case

pytestmark = pytest.mark.skipif(_onednn.problem() is not None, reason=f"no oneDNN: {_onednn.problem()}")

CASES = {case.name: case for case in TESTS}
NHWC = ("NHWC", "HWIO", "NHWC")


def drawn(case, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(case.lhs).astype(dtype), rng.standard_normal(case.rhs).astype(dtype)


def ours(case, **more):
    return lambda x, w: kernels.conv(x, w, **case.arguments, **more, implementation="onednn")


def expected(case, x, w):
    return reference.conv(x, w, case.stride, case.padding, case.rhs_dilation, case.lhs_dilation, case.groups)


def assert_value_and_adjoints(case, seed):
    """`<dx, u> = <dy, conv(u, w)>` and `<dw, v> = <dy, conv(x, v)>` for any u and v: the convolution is bilinear."""
    x, w = drawn(case, seed)
    u, v = drawn(case, seed + 1)
    y, vjp = jax.vjp(ours(case), x, w)
    wanted = expected(case, x, w)
    assert_close(y, wanted)
    dy = np.random.default_rng(seed + 2).standard_normal(y.shape).astype(np.float32)
    dx, dw = (np.asarray(g, np.float64) for g in vjp(jnp.asarray(dy)))
    scale = max(float(np.sqrt(dy.size)), 1.0)
    assert_close((dx * u).sum() / scale, (dy * expected(case, u, w)).sum() / scale, scale=4, dtype="float32")
    assert_close((dw * v).sum() / scale, (dy * expected(case, x, v)).sum() / scale, scale=4, dtype="float32")


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    assert_value_and_adjoints(CASES[name], 0)


@st.composite
def geometries(draw):
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    small = st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    per_group = draw(st.sampled_from([1, 1, 2, 3, 16, 17]))
    out_per_group = draw(st.sampled_from([1, 2, 3, 16, 17]))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    stride = tuple(draw(small) for _ in range(rank))
    reach = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank))
    pads = tuple((draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in range(rank))
    least = tuple(max((k - 1) * d + 1 - low - high, 3) for k, d, (low, high) in zip(kernel, reach, pads))
    size = tuple(draw(st.integers(n, n + (6, 6, 4, 1)[rank])) for n in least)
    batch = draw(st.sampled_from([1, 1, 2, 3]))
    lhs, rhs = (batch, *size, groups * per_group), (*kernel, per_group, groups * out_per_group)
    return Case("random", lhs, rhs, stride, pads, reach, groups=groups)


@pytest.mark.thorough
@pytest.mark.parametrize("examples", slow_but([(80,)], [80, 300]))
def test_random_geometries(examples):
    @given(geometries(), st.integers(0, 1000))
    @settings(max_examples=examples, deadline=None, derandomize=True)
    def law(case, seed):
        assert_value_and_adjoints(case, seed)

    law()


@pytest.mark.parametrize("case", TRANSPOSE_TESTS, ids=lambda case: case.name)
def test_transposed_convolution(case):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(case.lhs).astype(np.float32), rng.standard_normal(case.rhs).astype(np.float32)

    def f(implementation):
        def run(x, w):
            return kernels.conv_transpose(
                x, w, case.strides, case.padding, case.rhs_dilation, transpose_kernel=case.transpose_kernel,
                implementation=implementation,
            )  # fmt: skip

        return run

    def both(f):
        return jax.jit(lambda x, w: (f(x, w), jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))(x, w)))(x, w)

    jax.tree.map(lambda a, b: assert_close(a, b, scale=8), both(f("onednn")), both(f("xla")))


@pytest.mark.parametrize("name", ["3x3", "groups", "depthwise", "dilated-stride", "asymmetric"])
def test_derivatives_of_every_kind_equal_those_of_lax(name):
    case = CASES[name]
    x, w, tx, tw = map(jnp.asarray, (*drawn(case), *drawn(case, seed=1)))

    def derivatives(f):
        def total(x, w):
            return (f(x, w) ** 3).sum() / 9

        hessian_product = jax.jvp(jax.grad(total, (0, 1)), (x, w), (tx, tw))[1]
        reverse = jax.grad(lambda x, w: (jax.grad(total, 1)(x, w) * tw).sum(), (0, 1))(x, w)
        return jax.jvp(f, (x, w), (tx, tw)), hessian_product, reverse

    def lax_conv(x, w):
        return lax.conv_general_dilated(x, w, **case.arguments_of_lax())

    got = jax.jit(lambda: derivatives(ours(case)))()
    with jax.enable_x64(True):
        x, w, tx, tw = (jnp.asarray(a, np.float64) for a in (x, w, tx, tw))
        wanted = jax.jit(lambda: derivatives(lax_conv))()
    scale = 8 * max(float(np.abs(a).max()) for a in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: assert_close(np.asarray(a) / scale, np.asarray(b) / scale), got, wanted)


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (1, 3)])
@pytest.mark.parametrize("name", ["3x3", "groups", "depthwise-multiplier"])
def test_vmap_of_values_and_gradients(name, mapped):
    case = CASES[name]
    pairs = [drawn(case, seed) for seed in range(3)]
    stacked = [a[0] if axis is None else np.stack(a, axis) for a, axis in zip(zip(*pairs), mapped)]

    def gradients(x, w):
        return ours(case)(x, w), *jax.grad(lambda x, w: (ours(case)(x, w) ** 2).sum(), (0, 1))(x, w)

    got = jax.jit(jax.vmap(gradients, mapped))(*stacked)
    each = [
        gradients(*(s if axis is None else np.take(s, i, axis) for s, axis in zip(stacked, mapped))) for i in range(3)
    ]
    jax.tree.map(lambda *a: assert_close(a[0], np.stack(a[1:]), scale=8), got, *each)


@pytest.mark.parametrize("axes", [(None, None, 0), (0, None, 0), (0, 0, 0)])
def test_vmap_of_a_fused_bias(axes):
    case = CASES["3x3"]
    pairs = [drawn(case, seed) for seed in range(2)]
    b = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    x, w = (a[0] if axis is None else np.stack(a) for a, axis in zip(zip(*pairs), axes))

    def f(x, w, b):
        return ours(case, bias=b, activation="relu")(x, w)

    got = jax.vmap(f, axes)(x, w, b)
    each = [f(x if axes[0] is None else x[i], w if axes[1] is None else w[i], b[i]) for i in range(2)]
    assert_close(got, np.stack(each))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_bias_and_activation_and_their_gradients(name):
    case = CASES["stride"]
    x, w = drawn(case)
    b = np.linspace(-1, 1, case.rhs[-1], dtype=np.float32)

    def with_gradients(implementation):
        def f(x, w, b):
            more = {"bias": b, "activation": name, "implementation": implementation}
            return kernels.conv(x, w, **case.arguments, **more)

        return jax.jit(lambda: (f(x, w, b), jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2))(x, w, b)))()

    jax.tree.map(lambda a, b: assert_close(a, b, scale=8), with_gradients("onednn"), with_gradients("xla"))


@pytest.mark.parametrize("activation", sorted(ELTWISE))
def test_a_nan_and_an_infinity_come_out_as_from_xla(activation):
    x, w = np.ones((1, 3, 3, 16), np.float32), np.ones((1, 1, 16, 16), np.float32)
    x[0, 0, 0, 0], x[0, 1, 1, 0], x[0, 2, 2, 0] = np.nan, np.inf, -np.inf
    got, wanted = (
        np.asarray(kernels.conv(x, w, dimension_numbers=NHWC, activation=activation, implementation=i))
        for i in ("onednn", "xla")
    )
    assert np.isnan(got[0, 0, 0]).all()
    np.testing.assert_array_equal(np.isnan(got[0, 1]), np.isnan(wanted[0, 1]))
    assert_close(got[0, 1], wanted[0, 1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("preferred", [None, "float32"])
@pytest.mark.parametrize("name", ["3x3", "1x1-stride", "groups", "depthwise"])
def test_sixteen_bits(name, preferred, dtype):
    case = CASES[name]
    x, w = (jnp.asarray(a, dtype) for a in drawn(case))
    arguments = case.arguments | {"preferred_element_type": preferred}
    if kernels.explain(kernels.conv, x, w, **arguments).chosen.implementation != "onednn":
        assert dtype == "float16"  # which needs instructions that not every CPU has
        pytest.skip("this CPU computes no float16")

    def f(x, w):
        return kernels.conv(x, w, **arguments, implementation="onednn")

    y, vjp = jax.vjp(f, x, w)
    dx, dw = vjp(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.dtype(preferred or dtype), x.dtype, w.dtype)
    wide = [np.asarray(a, np.float64) for a in (x, w)]
    assert_close(y, expected(case, *wide), scale=2, dtype=preferred or dtype)
    with jax.enable_x64(True):
        _, vjp = jax.vjp(lambda x, w: lax.conv_general_dilated(x, w, **case.arguments_of_lax()), *wide)
        for got, wanted in zip((dx, dw), vjp(np.ones(y.shape))):
            assert_close(got, wanted, scale=4, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("name", ["3x3", "groups", "depthwise"])
def test_sixteen_bits_with_a_float32_bias(name, activation, dtype):
    case = CASES[name]
    x, w = (jnp.asarray(a, dtype) for a in drawn(case))
    if kernels.explain(kernels.conv, x, w, **case.arguments).chosen.implementation != "onednn":
        pytest.skip("this CPU computes no float16")
    wanted = expected(case, *(np.asarray(a, np.float64) for a in (x, w)))
    bias = np.random.default_rng(1).standard_normal(wanted.shape[-1]).astype(np.float32)
    wanted = wanted + bias

    def f(bias):
        return ours(case, bias=bias, activation=activation, preferred_element_type=jnp.float32)(x, w)

    y, vjp = jax.vjp(f, bias)
    assert_close(y, np.tanh(wanted) if activation else wanted)
    (slope,) = vjp(jnp.ones_like(y))
    slopes = 1 - np.tanh(wanted) ** 2 if activation else np.ones_like(wanted)
    assert_close(slope, slopes.sum(tuple(range(y.ndim - 1))), scale=3)


@pytest.mark.parametrize("name", ["3x3", "1x1-stride", "groups", "depthwise", "1d-causal", "3d"])
def test_int8_with_scales(name):
    case = CASES[name]
    rng = np.random.default_rng(0)
    x, w = rng.integers(-128, 128, case.lhs, np.int8), rng.integers(-128, 128, case.rhs, np.int8)
    sums = expected(case, x, w)
    y = kernels.conv(x, w, **case.arguments, preferred_element_type=jnp.int32, implementation="onednn")
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, sums)
    scale = rng.uniform(1e-4, 1e-3, case.rhs[-1]).astype(np.float32)
    b = rng.standard_normal(case.rhs[-1]).astype(np.float32)
    for implementation in ("onednn", "xla"):
        more = {"scale": scale, "bias": b, "activation": "relu", "implementation": implementation}
        y = kernels.conv(x, w, **case.arguments, **more)
        assert y.dtype == jnp.float32
        assert_close(y, np.maximum(sums * scale + b, 0), scale=4)
    y = kernels.conv(x, w, **case.arguments, scale=np.float32(0.5), implementation="onednn")
    assert_close(y, 0.5 * sums)


def test_int8_has_no_derivative():
    x, w = np.ones((1, 3, 3, 4), np.int8), np.ones((1, 1, 4, 4), np.int8)

    def f(scale):
        return kernels.conv(x, w, dimension_numbers=NHWC, scale=scale, implementation="onednn").sum()

    with pytest.raises(NotImplementedError, match="no derivative; train with fake-quantized floats"):
        jax.grad(f)(jnp.ones(4))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"lhs": np.zeros((0, 3, 3, 4), np.float32)}, "an array is empty"),
        ({"lhs": np.zeros((2, 3, 3, 4), np.float32), "batch_group_count": 2}, "batch_group_count=2"),
        ({"window_strides": 2, "lhs_dilation": 2}, "both lhs_dilation and the stride are above 1"),
        (
            {
                "lhs": np.ones((1, 3, 3, 4), np.int8),
                "rhs": np.ones((1, 1, 4, 2), np.int8),
                "preferred_element_type": jnp.int16,
            },
            "the result is int16",
        ),
    ],
)
def test_what_it_cannot_do_it_names_and_xla_does(arguments, why):
    given = {"lhs": np.ones((1, 3, 3, 4), np.float32), "rhs": np.ones((1, 1, 4, 2), np.float32)} | arguments
    given |= {"dimension_numbers": NHWC}
    with pytest.raises(NotImplementedError, match=why):
        kernels.conv(**given, implementation="onednn")
    assert kernels.explain(kernels.conv, **given).chosen.implementation == "xla"
    kernels.conv(**given)


def test_it_is_chosen_on_cpu_and_only_there():
    case = CASES["3x3"]
    x, w = drawn(case)
    assert kernels.explain(kernels.conv, x, w, **case.arguments).chosen.implementation == "onednn"
    with tracing_for("tpu"):
        found = kernels.explain(kernels.conv, x, w, **case.arguments)
    assert found.chosen.implementation == "xla"
    assert "runs on cpu, this is tpu" in str(found)


def test_an_exported_program_holds_the_xla_version_for_a_symbolic_batch():
    w = np.ones((3, 3, 3, 4), np.float32)
    f = jax.jit(lambda x: kernels.conv(x, w, 1, "SAME", dimension_numbers=NHWC))
    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(f)(jax.ShapeDtypeStruct((n, 5, 5, 3), jnp.float32))
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 3)).astype(np.float32)
    assert "llmasos_onednn" not in exported.mlir_module()
    assert_close(exported.call(x), f(x))
