"""Dense layers: every implementation equals float64 NumPy, its derivatives those of XLA, under every transformation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.core import pure
from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._dispatch import forced, tracing_for
from llmasos_xla.kernels._onednn.descriptors import ELTWISE
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.dense.cases import BENCH, TESTS, Case
from llmasos_xla.models import layers

CASES = {case.name: case for case in TESTS}
DTYPES = ("float32", "bfloat16", "float16")
onednn = pytest.mark.skipif(_onednn.problem() is not None, reason=f"no oneDNN: {_onednn.problem()}")


def drawn(case, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in (case.x, case.w, (case.cout,))]


def ours(case, implementation=None, activation=None, **more):
    def f(x, w, bias=None):
        return kernels.dense(
            x, w, bias, activation, transpose_kernel=case.transpose_kernel, implementation=implementation, **more
        )

    return f


def expected(case, x, w, bias=None):
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    y = x @ (w.T if case.transpose_kernel else w)
    return y if bias is None else y + np.asarray(bias, np.float64)


def runs(case, dtype):
    """Names of what can compute a case in a dtype on this machine."""
    shapes = (jax.ShapeDtypeStruct(shape, dtype) for shape in (case.x, case.w))
    found = kernels.explain(kernels.dense, *shapes, transpose_kernel=case.transpose_kernel).candidates
    return [c.formulation for c in found if c.objection is None or c.able]


EVERY = [(case.name, dtype, name) for case in TESTS for dtype in DTYPES for name in runs(case, dtype)]


@pytest.mark.parametrize(("name", "dtype", "formulation"), EVERY)
def test_values_and_gradients_equal_numpy(name, dtype, formulation):
    case = CASES[name]
    x, w, bias = drawn(case, dtype)
    with forced(formulation):
        y, vjp = jax.vjp(ours(case), x, w, bias)
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), dtype)
        gradients = vjp(dy)
    assert y.dtype == dtype
    assert_close(y, expected(case, x, w, bias), scale=3)
    rows, turned = (np.asarray(a, np.float64).reshape(-1, n) for a, n in ((x, case.cin), (dy, case.cout)))
    dw = turned.T @ rows if case.transpose_kernel else rows.T @ turned
    wide = np.asarray(w, np.float64)
    dx = turned @ (wide if case.transpose_kernel else wide.T)
    wanted = (dx.reshape(case.x), dw, turned.sum(0))
    for got, want in zip(gradients, wanted):
        assert got.dtype == dtype
        assert_close(got, want, scale=3)


@pytest.mark.thorough
@onednn
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40), cin=st.integers(1, 40), cout=st.integers(1, 40), transposed=st.booleans(),
    activation=st.sampled_from([None, *ELTWISE]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_size(rows, cin, cout, transposed, activation, seed):
    case = Case("drawn", (rows,), cin, cout, transposed)
    arrays = drawn(case, seed=seed)
    results = [ours(case, i, activation)(*arrays) for i in ("onednn", "xla")]
    assert_close(*results, scale=3)
    with jax.enable_x64(True):
        wanted = ACTIVATIONS[activation or "linear"](jnp.asarray(expected(case, *arrays)))
    assert_close(results[0], wanted, scale=3)


@onednn
@pytest.mark.parametrize(
    "activation", [None, "relu", "leaky_relu", "tanh", "sigmoid", "gelu_tanh", "elu", "gelu", "softmax"]
)
def test_every_derivative_is_that_of_xla(activation):
    case = CASES["odd"]
    arrays, u, v = drawn(case), drawn(case, seed=1), drawn(case, seed=2)

    def derivatives(implementation):
        f = ours(case, implementation, activation)

        def total(*arrays):
            return (jnp.sin(f(*arrays))).sum()

        slope = jax.grad(total, (0, 1, 2))

        def dot(a, b):
            return sum(jax.tree.leaves(jax.tree.map(lambda p, q: (p * q).sum(), a, b)))

        def second(*arrays):
            return jax.jvp(slope, arrays, tuple(u))[1]

        return jax.jit(
            lambda *arrays: {
                "tangent": jax.jvp(f, arrays, tuple(u)),
                "gradient": slope(*arrays),
                "forward over reverse": second(*arrays),
                "reverse over reverse": jax.grad(lambda *a: dot(slope(*a), tuple(v)), (0, 1, 2))(*arrays),
                "third": jax.grad(lambda *a: dot(second(*a), tuple(v)), (0, 1, 2))(*arrays),
                "remat": jax.grad(jax.checkpoint(total), 1)(*arrays),
            }
        )(*arrays)

    jax.tree.map(lambda a, b: assert_close(a, b, scale=20), derivatives("onednn"), derivatives("xla"))


@onednn
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "mapped", [(0, None, None), (None, 0, None), (0, 0, None), (0, 1, 0), (None, None, 0), (1, 2, 1)]
)
def test_vmap_and_gradients_under_it(mapped, transposed):
    case = Case("mapped", (5,), 4, 3, transposed)
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(shape if axis is None else np.insert(shape, axis, 2)).astype(np.float32)
        for shape, axis in zip((case.x, case.w, (case.cout,)), mapped)
    ]

    def everything(implementation):
        f = ours(case, implementation, "tanh")

        def slope(*arrays):
            return jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2))(*arrays)

        return jax.jit(lambda *a: (jax.vmap(f, mapped)(*a), jax.vmap(slope, mapped)(*a)))(*arrays)

    jax.tree.map(lambda a, b: assert_close(a, b, scale=3), everything("onednn"), everything("xla"))


@onednn
def test_scan_nested_vmap_and_jacobians():
    case = CASES["time"]
    x, w, bias = drawn(case)
    ws = jnp.stack([w, 2 * w, w - 1])

    def everything(implementation):
        f = ours(case, implementation, "sigmoid")

        def slope(w):
            return jax.grad(lambda w: (f(x, w, bias) ** 2).sum())(w)

        return jax.jit(
            lambda ws: {
                "scan": jax.lax.scan(lambda c, w: (c, slope(w)), 0, ws)[1],
                "nested": jax.vmap(lambda w: jax.vmap(lambda x: f(x, w, bias))(x))(ws),
                "per example": jax.vmap(lambda x: jax.grad(lambda w: f(x, w, bias).sum())(w))(x),
                "jacfwd": jax.jacfwd(f, 1)(x, w, bias),
                "jacrev": jax.jacrev(f, 1)(x, w, bias),
            }
        )(ws)

    jax.tree.map(lambda a, b: assert_close(a, b, scale=3), everything("onednn"), everything("xla"))


@onednn
@pytest.mark.parametrize("implementation", ["onednn", "xla"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_int8_is_exact_and_scaled(rows, transposed, implementation):
    if implementation == "onednn" and not _onednn.multiplies("int8"):
        pytest.skip("this CPU has no products in int8")
    case = Case("int8", (rows,), 70, 9, transposed)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.integers(-128, 128, shape), jnp.int8) for shape in (case.x, case.w))
    scale, bias = (rng.standard_normal(9).astype(np.float32) for _ in range(2))
    scale /= 1e4
    sums = expected(case, x, w)
    scaled = sums * scale.astype(np.float64)

    whole = ours(case, implementation, preferred_element_type=jnp.int32)
    np.testing.assert_array_equal(whole(x, w), sums)
    np.testing.assert_array_equal(whole(x, w, jnp.arange(9)), sums + np.arange(9))
    y = ours(case, implementation, "relu", scale=scale)(x, w, bias)
    assert y.dtype == np.float32
    assert_close(y, np.maximum(scaled + bias, 0))
    assert_close(ours(case, implementation, scale=np.float32(0.5))(x, w), sums / 2)
    slope = jax.grad(lambda bias: ours(case, implementation, "tanh", scale=scale)(x, w, bias).sum())(bias)
    assert_close(slope, (1 - np.tanh(scaled + bias) ** 2).sum(0))
    mapped = jax.vmap(ours(case, implementation, scale=scale))
    assert_close(mapped(jnp.stack([x, x]), jnp.stack([w, w]), np.stack([bias, -bias]))[1], scaled - bias)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_narrow_operands_may_give_float32(dtype, implementation):
    case = Case("wide", (64,), 300, 200)
    x, w, bias = drawn(case, dtype)
    y, vjp = jax.vjp(ours(case, implementation, preferred_element_type=jnp.float32), x, w, bias.astype(jnp.float32))
    dx, dw, db = vjp(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype, db.dtype) == (np.float32, x.dtype, w.dtype, np.float32)
    assert_close(y, expected(case, x, w, bias), scale=10)
    assert_close(
        dw.astype(jnp.float32), np.asarray(x, np.float64).sum(0)[:, None] * np.ones((1, 200)), scale=10, dtype=dtype
    )


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("activation", [None, "tanh", "softmax"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
def test_a_float32_bias_keeps_its_bits(implementation, dtype, activation, rows):
    if implementation == "onednn" and dtype == "float16" and not _onednn.multiplies("float16"):
        pytest.skip("on this processor oneDNN multiplies no float16 whose sums stay float32")
    case = Case("wide", (rows,), 30, 20)
    x, w, _ = drawn(case, dtype)
    bias = np.random.default_rng(2).standard_normal(20).astype(np.float32)
    f = ours(case, implementation, activation, preferred_element_type=jnp.float32)
    with jax.enable_x64(True):
        wanted = ACTIVATIONS[activation or "linear"](jnp.asarray(expected(case, x, w, bias)))
    assert_close(f(x, w, bias), wanted)
    assert jax.grad(lambda bias: f(x, w, bias).sum())(bias).dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["xla", pytest.param("onednn", marks=onednn)])
def test_sixteen_bits_are_rounded_where_the_docstring_says(implementation, dtype):
    def rounded(y):
        return np.asarray(jnp.asarray(y.astype(np.float32)).astype(dtype), np.float64)

    if implementation == "onednn" and not _onednn.multiplies(dtype):
        pytest.skip(f"this CPU has no products in {dtype}")
    case = Case("rounding", (64,), 300, 200)
    x, w, bias = drawn(case, dtype)
    x = x / 16  # exact, and tanh is not saturated
    product, bias64 = expected(case, x, w), np.asarray(bias, np.float64)
    once = rounded(np.tanh(product + bias64))
    each = rounded(np.tanh(rounded(rounded(product) + bias64)))
    y = np.asarray(ours(case, implementation, "tanh")(x, w, bias), np.float64)
    equal = {"once": (y == once).mean(), "each": (y == each).mean()}
    assert max(equal, key=equal.__getitem__) == ("once" if implementation == "onednn" else "each"), equal
    assert max(equal.values()) > 0.99


@onednn
@pytest.mark.parametrize("rows", [1, 6])
def test_nan_and_infinity_stay_visible(rows):
    case = Case("special", (rows,), 3, 4)
    x, w, _ = drawn(case)
    for value in (np.nan, np.inf):
        for activation in (None, *ELTWISE):
            results = [ours(case, i, activation)(x.at[0, 1].set(value), w) for i in ("onednn", "xla")]
            np.testing.assert_array_equal(*map(np.isnan, results))
            np.testing.assert_array_equal(*map(np.isinf, results))


def chosen(case, dtype, **more):
    x, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in (case.x, case.w))
    found = kernels.explain(kernels.dense, x, w, transpose_kernel=case.transpose_kernel, **more)
    return found.chosen.implementation


@onednn
def test_the_choice():
    bench = {case.name: case for case in BENCH}
    large = {"language-head", "vgg-fc2-b1", "decode-head", "decode-tied-head", "feed-forward"}
    assert {chosen(bench[name], np.float32) for name in large} == {"xla"}
    assert {chosen(bench[name], np.float32) for name in ("seed-cnn", "mnist-mlp")} == {"onednn"}
    assert chosen(CASES["plain"], np.float32) == chosen(CASES["plain"], jnp.bfloat16) == "xla"
    if _onednn.multiplies("bfloat16"):
        assert {chosen(bench[name], jnp.bfloat16) for name in (*large, "seed-cnn")} == {"onednn"}
    if _onednn.multiplies("int8"):
        assert chosen(bench["vgg-fc2-b1"], np.int8, preferred_element_type=jnp.int32) == "onednn"
        assert chosen(bench["seed-cnn"], np.int8, preferred_element_type=jnp.int32) == "xla"


@onednn
def test_each_product_is_chosen_for_itself():
    case = next(case for case in BENCH if case.name == "seed-cnn")
    x, w = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (case.x, case.w))

    def calls(f):
        return jax.jit(f).lower(x, w).as_text().count("llmasos_onednn")

    def slope(argument):
        return jax.grad(lambda x, w: ours(case, activation="relu")(x, w).sum(), argument)

    # The input's gradient, of 5,408 columns, is even with XLA in float32.
    assert [calls(f) for f in (ours(case), slope(0), slope(1), slope((0, 1)))] == [1, 1, 2, 2]


def test_elsewhere_than_on_cpu_lax_runs():
    for platform in ("gpu", "tpu"):
        with tracing_for(platform):
            x, w = jnp.ones((64, 512), jnp.bfloat16), jnp.ones((512, 512), jnp.bfloat16)
            assert kernels.explain(kernels.dense, x, w).chosen.formulation == "dot"
            with pytest.raises(NotImplementedError, match=f"runs on cpu, this is {platform}"):
                kernels.dense(x, w, implementation="onednn")


X, W = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)

WRONG = [
    ({"w": W[0]}, ValueError, "w must be [cin, cout], got shape (4,)"),
    ({"w": W.T}, ValueError, "x has shape (2, 3), w takes 4 channels on its last axis (w (4, 3) = [cin, cout])"),
    ({"transpose_kernel": True}, ValueError, "w takes 4 channels on its last axis (w (3, 4) = [cout, cin])"),
    ({"x": X.astype(np.int32)}, TypeError, "x is int32, w is float32; cast one of them"),
    ({"bias": X[0]}, ValueError, "bias has shape (3,), expected (4,) = (cout,)"),
    ({"bias": np.ones(4, np.int32)}, TypeError, "bias is int32, the operands are float32; cast the bias"),
    ({"activation": "rely"}, ValueError, "unknown activation 'rely'; did you mean 'relu'?"),
    (
        {"scale": np.ones(4, np.float32)},
        TypeError,
        "scale is for int8 operands summed in int32, the operands are float32",
    ),
    ({"scale": X}, ValueError, "scale has shape (2, 3), expected () or (4,) = (cout,)"),
    ({"scale": np.ones(4, np.int32)}, TypeError, "scale is int32, expected floating point"),
    ({"x": X.astype(np.int8), "w": W.astype(np.int8)}, TypeError, "sums of int8 overflow"),
    ({"implementation": "onnx"}, ValueError, "unknown implementation 'onnx'; did you mean 'onednn'?"),
    (
        {"x": X.astype(np.int8), "w": W.astype(np.int8), "preferred_element_type": np.int32, "activation": "relu"},
        TypeError,
        "activation='relu' needs floating point, the result is int32",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("wrong", "error", "words"), WRONG)
def test_dense_refuses(wrong, error, words):
    with pytest.raises(error, match=re.escape("dense: ")) as caught:
        kernels.dense(**({"x": X, "w": W} | wrong))
    assert words in str(caught.value)


@onednn
def test_by_name_it_runs_or_says_why_not():
    assert_close(kernels.dense(X, W, implementation="onednn"), 3 * np.ones((2, 4)))
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="operands are float64; it takes float32"):
        kernels.dense(X.astype(np.float64), W.astype(np.float64), implementation="onednn")
    with pytest.raises(NotImplementedError, match="an array is empty"):
        kernels.dense(X[:0], W, implementation="onednn")
    assert kernels.dense(X[:0], W).shape == (0, 4)


@onednn
def test_shard_map_partitioned_and_exported_programs():
    case = Case("sharded", (64,), 256, 256)
    x, w, bias = drawn(case, jnp.bfloat16)
    if chosen(case, jnp.bfloat16) == "xla":
        pytest.skip("this CPU has no products in bfloat16")
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])

    def slope(x, w):
        return jax.grad(lambda x, w: (ours(case)(x, w, bias).astype(jnp.float32) ** 2).sum(), (0, 1))(x, w)

    wanted = slope(x, w)
    mapped = jax.jit(jax.shard_map(slope, mesh=mesh, in_specs=(P("batch"), P()), out_specs=(P("batch"), P())))
    assert "llmasos_onednn" in mapped.lower(x, w).as_text()
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, P("batch")))
    assert "llmasos_onednn" not in jax.jit(slope).lower(split, w).as_text()
    for got in (mapped(x, w), jax.jit(slope)(split, w)):
        jax.tree.map(lambda a, b: assert_close(a / 100, b / 100, scale=3), got, wanted)
    exported = jax.export.export(jax.jit(ours(case)))(x, w, bias)
    assert "custom_call" not in exported.mlir_module()
    assert_close(exported.call(x, w, bias), ours(case)(x, w, bias))


@onednn
@pytest.mark.parametrize("layer", [layers.Dense(128, activation="relu"), layers.MultiHeadAttention(2, 64)])
def test_layers_multiply_by_it(layer):
    net = pure(lambda rngs: layer.build((64, 128), rngs))
    variables = jax.tree.map(lambda a: a.astype(jnp.bfloat16), net.init(jax.random.key(0)))
    x = jnp.ones((2, 64, 128), jnp.bfloat16)
    if chosen(Case("layer", (2, 64), 128, 128), x.dtype) == "xla":
        pytest.skip("this CPU has no products in bfloat16")
    text = jax.jit(lambda v, x: net.apply(v, x, train=False)).lower(variables, x).as_text()
    assert "llmasos_onednn" in text
