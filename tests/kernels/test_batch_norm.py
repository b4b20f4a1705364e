"""Batch normalization: every implementation equals float64 NumPy, its derivatives those of the naive formula."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._dispatch import forced, tracing_for
from llmasos_xla.kernels.norm.cases import TESTS

EPSILON = 1e-3
CASES = {case.name: case for case in TESTS}
onednn = pytest.mark.skipif(_onednn.problem() is not None, reason=f"no oneDNN: {_onednn.problem()}")


def drawn(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.uniform(-3, 3, shape[-1]), 1.5, shape)
    scale, offset = rng.uniform(0.5, 2, (2, shape[-1]))
    return jnp.asarray(x, dtype), jnp.asarray(scale, jnp.float32), jnp.asarray(offset, jnp.float32)


def ours(implementation=None):
    def f(x, scale, offset):
        return kernels.batch_norm(x, scale, offset, epsilon=EPSILON, implementation=implementation)

    return f


def naive(x, scale, offset):
    """The formula as it stands, differentiated by JAX."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axes, keepdims=True)
    y = (x - mean) * lax.rsqrt(variance + EPSILON)
    row = (1,) * (x.ndim - 1) + (-1,)
    y = y if scale is None else y * scale.reshape(row)
    y = y if offset is None else y + offset.reshape(row)
    return y, mean.reshape(-1), variance.reshape(-1)


def widened(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), tree)


def with_gradients(f, arrays, cotangents):
    results, pull = jax.vjp(f, *arrays)
    return results, pull(cotangents)


def cotangents_of(x, moments, seed=5):
    """For y, and for mean and variance: zeros, as in training, or numbers."""
    rng = np.random.default_rng(seed)
    high = np.float32 if x.dtype.itemsize < 4 else x.dtype
    sides = rng.standard_normal((2, x.shape[-1])) * moments
    return jnp.asarray(rng.standard_normal(x.shape), x.dtype), *(jnp.asarray(s, high) for s in sides)


def runs(shape, dtype):
    """Names of what can compute a shape on this machine."""
    x, c = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    found = kernels.explain(kernels.batch_norm, x, c, c).candidates
    return [c.formulation for c in found if c.objection is None or c.able]


EVERY = [
    (case.name, dtype, name) for case in TESTS for dtype in ("float32", "bfloat16") for name in runs(case.x, dtype)
]


@pytest.mark.parametrize("moments", [False, True], ids=["y", "y-mean-variance"])
@pytest.mark.parametrize(("name", "dtype", "formulation"), EVERY)
def test_values_and_gradients_equal_the_naive_formula_in_float64(name, dtype, formulation, moments):
    x, scale, offset = drawn(CASES[name].x, dtype)
    cotangents = cotangents_of(x, moments)
    with forced(formulation):
        got = with_gradients(ours(), (x, scale, offset), cotangents)
    assert got[0][0].dtype == got[1][0].dtype == dtype
    assert all(a.dtype == jnp.float32 for a in (*got[0][1:], *got[1][1:]))
    with jax.enable_x64(True):
        wanted = with_gradients(naive, widened((x, scale, offset)), widened(cotangents))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
            assert_close(a, b, scale=10, dtype=dtype if a.ndim > 1 else "float32")


AFTER = [("relu", False), ("relu", True), (None, True), ("tanh", True), ("ReLU", False)]


def followed(f, activation):
    """`f` of x, scale and offset with a residual or without, then the activation, as it would be written by hand."""

    def g(x, scale, offset, residual=None):
        y, *moments = f(x, scale, offset)
        y = y if residual is None else y + residual
        return (kernels.activation(activation)(y), *moments)

    return g


def fused(implementation, activation):
    def g(x, scale, offset, residual=None):
        return kernels.batch_norm(
            x, scale, offset, residual=residual, activation=activation, epsilon=EPSILON, implementation=implementation
        )

    return g


@pytest.mark.thorough
@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("activation", "residual"), AFTER)
@pytest.mark.parametrize("shape", [(4, 3, 5, 16), (33, 80), (700, 144)])
def test_what_follows_in_the_same_pass_equals_what_follows_by_hand(shape, activation, residual, dtype, implementation):
    arrays = drawn(shape, dtype) + ((drawn(shape, dtype, seed=1)[0],) if residual else ())
    with jax.enable_x64(True):
        sums = followed(naive, None)(*widened(arrays))[0]
    dy, *sides = cotangents_of(arrays[0], True)
    # Where a sum is within rounding of 0 the ReLU's mask may be either.
    dy = jnp.where(np.abs(np.asarray(sums)) < (0.1 if dtype == "bfloat16" else 1e-4), 0, dy)
    got = with_gradients(fused(implementation, activation), arrays, (dy, *sides))
    assert got[0][0].dtype == got[1][0].dtype == dtype
    with jax.enable_x64(True):
        wanted = with_gradients(followed(naive, activation), widened(arrays), widened((dy, *sides)))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
            assert_close(a, b, scale=20 if dtype == "float32" else 12, dtype=dtype)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
@pytest.mark.parametrize("residual", [False, True])
def test_every_derivative_through_the_relu(residual, implementation):
    def four(seed):
        return drawn((3, 2, 4, 16), seed=seed) + ((drawn((3, 2, 4, 16), seed=seed + 9)[0],) if residual else ())

    arrays, u, v = (four(seed) for seed in range(3))
    got = derivatives(fused(implementation, "relu"), arrays, u, v)
    wanted = derivatives(followed(naive, "relu"), arrays, u, v)
    jax.tree.map(lambda a, b: assert_close(a, b, scale=50), got, wanted)


@pytest.mark.thorough
@onednn
@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 3000), blocks=st.integers(1, 9), residual=st.booleans(), seed=st.integers(0, 9),
    parts=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
)  # fmt: skip
def test_the_relu_at_any_size(rows, blocks, residual, parts, seed):
    x, scale, offset = drawn((rows, 16 * blocks), seed=seed)
    arrays = (x, scale if parts[0] else None, offset if parts[1] else None)
    arrays += (drawn(x.shape, seed=seed + 1)[0],) if residual else ()
    got, pull = jax.vjp(fused("onednn", "relu"), *arrays)
    wanted, pull_wanted = jax.vjp(followed(lambda *a: naive(*a), "relu"), *arrays)
    for a, b in zip(got, wanted):
        assert_close(a, b, scale=30)
    # The same mask for both, so that no element hangs on the last bit.
    dy = jnp.where((got[0] > 0) == (wanted[0] > 0), cotangents_of(x, False, seed)[0], 0)
    zeros = jnp.zeros_like(got[1])
    for a, b in zip(jax.tree.leaves(pull((dy, zeros, zeros))), jax.tree.leaves(pull_wanted((dy, zeros, zeros)))):
        assert_close(a, b, scale=100 if rows < 5 else 30)


@onednn
def test_nan_passes_the_relu_and_gets_no_gradient():
    x = drawn((40, 16))[0].at[3, 5].set(jnp.nan)
    (y, *_), pull = jax.vjp(fused("onednn", "relu"), x, None, None)
    np.testing.assert_array_equal(np.isnan(y).all(0), np.arange(16) == 5)
    wanted = jax.vjp(followed(naive, "relu"), x, None, None)[1]
    ones = (jnp.ones_like(x), jnp.zeros(16), jnp.zeros(16))
    np.testing.assert_array_equal(np.isnan(pull(ones)[0]), np.isnan(wanted(ones)[0]))


def test_values_equal_numpy():
    x, scale, offset = drawn((4, 5, 3, 16))
    y, mean, variance = ours()(x, scale, offset)
    wide = np.asarray(x, np.float64)
    axes = (0, 1, 2)
    assert_close(mean, wide.mean(axes))
    assert_close(variance, wide.var(axes))
    assert_close(
        y, (wide - wide.mean(axes)) / np.sqrt(wide.var(axes) + EPSILON) * np.asarray(scale) + np.asarray(offset)
    )


@pytest.mark.thorough
@onednn
@settings(max_examples=10, deadline=None)
@given(
    space=st.lists(st.integers(1, 6), max_size=3), batch=st.integers(1, 5), blocks=st.integers(1, 5),
    parts=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_size(space, batch, blocks, parts, seed):
    x, scale, offset = drawn((batch, *space, 16 * blocks), seed=seed)
    arrays = x, scale if parts[0] else None, offset if parts[1] else None
    cotangents = cotangents_of(x, True, seed)
    got = with_gradients(ours("onednn"), arrays, cotangents)
    with jax.enable_x64(True):
        wanted = with_gradients(naive, widened(arrays), widened(cotangents))
        assert jax.tree.structure(got) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
            # A channel of one or two values has a variance near 0: its derivatives are large and nearly cancel.
            assert_close(a, b, scale=30)


def derivatives(f, arrays, u, v):
    """Of y, mean and variance, in both modes and of second and third order."""

    def total(*arrays):
        y, mean, variance = f(*arrays)
        return jnp.sin(y).sum() + (mean * variance).sum()

    every = tuple(range(len(arrays)))
    slope = jax.grad(total, every)

    def dot(a, b):
        return sum((p * q).sum() for p, q in zip(a, b))

    def second(*arrays):
        return jax.jvp(slope, arrays, u)[1]

    return jax.jit(
        lambda *arrays: {
            "tangent": jax.jvp(f, arrays, u),
            "tangent of x": jax.jvp(lambda x: f(x, *arrays[1:]), arrays[:1], u[:1]),
            "tangent of scale": jax.jvp(lambda scale: f(arrays[0], scale, *arrays[2:]), arrays[1:2], u[1:2]),
            "gradient": slope(*arrays),
            "gradient of offset": jax.grad(total, 2)(*arrays),
            "forward over reverse": second(*arrays),
            "reverse over reverse": jax.grad(lambda *a: dot(slope(*a), v), every)(*arrays),
            "third": jax.grad(lambda *a: dot(second(*a), v), every)(*arrays),
            "remat": jax.grad(jax.checkpoint(total), (0, 1))(*arrays),
        }
    )(*arrays)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
def test_every_derivative_is_that_of_the_naive_formula(implementation):
    arrays, u, v = (drawn((3, 2, 4, 16), seed=seed) for seed in range(3))
    got = derivatives(ours(implementation), arrays, u, v)
    wanted = derivatives(naive, arrays, u, v)
    jax.tree.map(lambda a, b: assert_close(a, b, scale=50), got, wanted)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
@pytest.mark.parametrize("mapped", [(0, None, None), (2, 0, None), (None, None, 0), (1, 1, 0)])
def test_vmap_and_gradients_under_it(mapped, implementation):
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.standard_normal(shape if axis is None else np.insert(shape, axis, 2)), jnp.float32)
        for shape, axis in zip(((6, 4, 16), (16,), (16,)), mapped)
    ]

    def everything(f):
        def slope(*arrays):
            return jax.grad(lambda *a: (f(*a)[0] ** 3).sum(), (0, 1, 2))(*arrays)

        return jax.jit(lambda *a: (jax.vmap(f, mapped)(*a), jax.vmap(slope, mapped)(*a)))(*arrays)

    got, wanted = everything(ours(implementation)), everything(naive)
    jax.tree.map(lambda a, b: assert_close(a, b, scale=30), got, wanted)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
def test_a_constant_channel_gives_the_offset_and_finite_gradients(implementation):
    x, scale, offset = jnp.full((8, 3, 16), 7.0), jnp.full(16, 2.0), jnp.arange(16.0)
    cotangents = cotangents_of(x, False)
    (y, mean, variance), (dx, dscale, doffset) = with_gradients(ours(implementation), (x, scale, offset), cotangents)
    np.testing.assert_array_equal(y, np.broadcast_to(offset, x.shape))
    np.testing.assert_array_equal((mean[0], variance[0]), (7, 0))
    dy = np.asarray(cotangents[0], np.float64)
    assert_close(dx, 2 / np.sqrt(EPSILON) * (dy - dy.mean((0, 1))), scale=10)
    np.testing.assert_array_equal(dscale, np.zeros(16))
    assert_close(doffset, dy.sum((0, 1)), scale=10)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
def test_a_large_mean_does_not_cost_the_variance(implementation):
    x = jnp.asarray(np.random.default_rng(0).normal(1e4, 1.0, (64, 8, 8, 16)), jnp.float32)
    _, mean, variance = ours(implementation)(x, None, None)
    wide = np.asarray(x, np.float64)
    # The mean is known to 24 bits, so the variance is off by the square of what that leaves: far below these.
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-3)


def test_nan_stays_in_its_channel():
    for implementation in ("xla", "onednn") if _onednn.problem() is None else ("xla",):
        x = drawn((4, 5, 16))[0].at[1, 2, 3].set(jnp.nan)
        bad = np.isnan(np.asarray(ours(implementation)(x, None, None)[0])).all((0, 1))
        np.testing.assert_array_equal(bad, np.arange(16) == 3)


def test_float64_keeps_its_bits():
    with jax.enable_x64(True):
        x, scale, offset = widened(drawn((4, 3, 5)))
        cotangents = cotangents_of(x, True)
        got = with_gradients(ours(), (x, scale, offset), cotangents)
        wanted = with_gradients(naive, (x, scale, offset), cotangents)
        assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(got))
        jax.tree.map(lambda a, b: assert_close(a, b), got, wanted)


def test_unread_statistics_cost_nothing():
    def primitives(f):
        x, scale, offset = drawn((4, 3, 16))
        _, pull = jax.vjp(f, x, scale, offset)
        return str(jax.make_jaxpr(pull)(x)).count("reduce_sum")

    assert primitives(lambda *a: ours("xla")(*a)[0]) == 2


@onednn
def test_over_devices_statistics_are_those_of_the_whole_batch_or_of_the_part():
    mesh = jax.make_mesh((8,), ("d",))
    x, scale, offset = drawn((16, 4, 16))
    split = jax.device_put(x, jax.NamedSharding(mesh, P("d")))
    assert_close(jax.jit(ours())(split, scale, offset)[0], naive(x, scale, offset)[0], scale=3)

    def of_part(x, scale, offset):
        return ours("onednn")(x, scale, offset)[0]

    mapped = jax.jit(jax.shard_map(of_part, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P("d")))
    wanted = [naive(part, scale, offset)[0] for part in x.reshape(8, 2, 4, 16)]
    assert_close(mapped(split, scale, offset), np.concatenate(wanted), scale=3)


@onednn
@pytest.mark.parametrize(
    ("shape", "dtype", "chosen", "why"),
    [
        ((64, 32, 32, 16), "float32", "onednn", ""),
        ((64, 4, 4, 64), "bfloat16", "onednn", ""),
        ((16, 256), "float32", "xla", "4096 elements; a call pays from 32768"),
        ((64, 32, 32, 24), "float32", "xla", "24 channels; it takes multiples of 16"),
    ],
)
def test_the_choice_on_a_cpu(shape, dtype, chosen, why):
    x, c = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    library, plain = kernels.explain(kernels.batch_norm, x, c, c).candidates
    assert kernels.explain(kernels.batch_norm, x, c, c).chosen.implementation == chosen
    assert why in (library.objection or "")
    assert plain.objection is None


def test_elsewhere_it_is_xla():
    with tracing_for("gpu"):
        found = kernels.explain(kernels.batch_norm, jnp.ones((4, 16)), None, None)
    assert found.chosen.implementation == "xla"
    assert found.candidates[0].objection == "runs on cpu, this is gpu"


WRONG = [
    ({"x": jnp.ones((2, 4), jnp.int32)}, TypeError, "x is int32; cast it to float32"),
    ({"x": jnp.float32(1)}, ValueError, "x must be [..., channels], got a scalar"),
    ({"scale": jnp.ones(3)}, ValueError, "scale has shape (3,), x [..., channels] (2, 4) wants (4,)"),
    ({"offset": jnp.ones((1, 4))}, ValueError, "offset has shape (1, 4), x [..., channels] (2, 4) wants (4,)"),
    ({"offset": jnp.ones(4, jnp.int32)}, TypeError, "offset is int32; cast it to float32"),
    ({"residual": jnp.ones((1, 4))}, ValueError, "residual is float32 (1, 4); it is added to x and"),
    ({"residual": jnp.ones((2, 4), jnp.bfloat16)}, ValueError, "residual is bfloat16 (2, 4); it is added to x"),
    ({"activation": "rel"}, ValueError, "unknown activation 'rel'; did you mean 'relu'?"),
    ({"epsilon": 0}, ValueError, "epsilon=0 must be a positive number"),
    ({"epsilon": float("nan")}, ValueError, "epsilon=nan must be a positive number"),
    ({"implementation": "onnx"}, ValueError, "unknown implementation 'onnx'; did you mean 'onednn'?"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("wrong", "error", "words"), WRONG)
def test_refuses(wrong, error, words):
    with pytest.raises(error, match=re.escape(f"batch_norm: {words}")):
        kernels.batch_norm(**({"x": jnp.ones((2, 4)), "scale": None, "offset": None} | wrong))


@onednn
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (jnp.ones((4, 16), jnp.float16), "x is float16; it takes float32, bfloat16"),
        (jnp.ones((0, 16)), "an array is empty"),
        (jnp.ones((4, 3)), "3 channels; it takes multiples of 16"),
    ],
)
def test_onednn_by_name_says_why_not(x, words):
    with pytest.raises(
        NotImplementedError, match=re.escape(f"implementation='onednn' cannot run: onednn (library): {words}")
    ):
        ours("onednn")(x, None, None)
