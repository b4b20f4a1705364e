"""Pooling by oneDNN: values and gradients of loops in float64, ties and NaN as XLA has them, every transformation."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from kernels import conv_reference as reference
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._dispatch import tracing_for
from llmasos_xla.kernels.pool.cases import BENCH, TESTS, Case

pytestmark = pytest.mark.skipif(_onednn.problem() is not None, reason=f"no oneDNN: {_onednn.problem()}")

CASES = {case.name: case for case in TESTS}
OPS = {"max_pool": kernels.max_pool, "avg_pool": kernels.avg_pool}
# Of 81 places in a window; the others are taken.
REFUSED = {("max_pool", "large-overlapping")}


def rest(case):
    return {"window": case.window, "strides": case.strides, "padding": case.padding}


def pool(op, case, implementation="onednn", **more):
    return lambda x: OPS[op](x, **rest(case), **more, implementation=implementation)


def gradient(op, case, x, dy):
    """By loops: the first of equal values of a window takes it all, or each element its share."""
    size = case.x[1:-1]
    window = reference.spread(case.window, len(size))
    stride = window if case.strides is None else reference.spread(case.strides, len(size))
    pads = reference.pairs(case.padding, size, window, stride)
    batch, channel = np.ogrid[: case.x[0], : case.x[-1]]
    dx = np.zeros(case.x)
    for out in np.ndindex(*dy.shape[1:-1]):
        axes = [
            [i for i in range(o * s - low, o * s - low + k) if 0 <= i < n]
            for o, s, k, (low, _), n in zip(out, stride, window, pads, size)
        ]
        places = list(itertools.product(*axes))
        if op == "max_pool":
            first = np.argmax([x[:, *place] for place in places], axis=0)
            np.add.at(dx, (batch, *np.moveaxis(np.array(places)[first], -1, 0), channel), dy[:, *out])
        else:
            for place in places:
                dx[:, *place] += dy[:, *out] / len(places)
    return dx


def library(op, x, case):
    return next(c for c in kernels.explain(OPS[op], x, **rest(case)).candidates if c.implementation == "onednn")


def assert_value_and_gradient(op, case, seed=0):
    rng = np.random.default_rng(seed)
    # A few levels only, so that windows hold equal elements.
    x = rng.integers(-1, 2, case.x).astype(np.float32)
    y, vjp = jax.vjp(pool(op, case), x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    assert_close(y, getattr(reference, op)(x, **rest(case)))
    assert_close(vjp(jnp.asarray(dy))[0], gradient(op, case, x, dy))


@pytest.mark.parametrize(("op", "name"), [pair for pair in itertools.product(OPS, CASES) if pair not in REFUSED])
def test_values_and_gradients_equal_loops(op, name):
    assert_value_and_gradient(op, CASES[name])


@st.composite
def geometries(draw):
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    axes = []
    for _ in range(rank):
        window = draw(st.integers(1, 3))
        low, high = draw(st.integers(0, window - 1)), draw(st.integers(0, window - 1))
        axes.append((draw(st.integers(window, 7)), window, draw(st.integers(1, 3)), (low, high)))
    size, window, strides, pads = zip(*axes)
    return Case("drawn", (draw(st.integers(1, 3)), *size, draw(st.sampled_from([1, 3, 16, 17]))), window, strides, pads)


@settings(max_examples=30, deadline=None)
@given(op=st.sampled_from(list(OPS)), case=geometries(), seed=st.integers(0, 9))
def test_values_and_gradients_of_any_geometry(op, case, seed):
    assert_value_and_gradient(op, case, seed)


@settings(max_examples=10, deadline=None)
@given(case=geometries())
def test_avg_pool_counts_padding_when_told(case):
    x = np.random.default_rng(0).standard_normal(case.x).astype(np.float32)
    y = pool("avg_pool", case, count_include_pad=True)(x)
    assert_close(y, reference.avg_pool(x, **rest(case), count_include_pad=True))


SPECIAL = [np.nan, -np.inf, np.finfo(np.float32).min, np.inf]


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("name", ["3x3-stride", "asymmetric"])
def test_special_values_are_xlas_to_the_bit(name, value):
    case = CASES[name]
    x = np.random.default_rng(0).standard_normal(case.x).astype(np.float32)
    x[0, 1:4, 2:] = value

    def both(implementation):
        return jax.jit(lambda x: jax.vjp(pool("max_pool", case, implementation), x)[0])(x)

    np.testing.assert_array_equal(both("onednn"), both("xla"))
    if not np.isnan(value):  # which NaN of a window takes the gradient is nobody's promise
        slopes = [jax.grad(lambda x, i=i: pool("max_pool", case, i)(x).sum())(x) for i in ("onednn", "xla")]
        np.testing.assert_array_equal(*slopes)


def test_nan_propagates_under_vmap_and_in_the_mean():
    case = CASES["3x3-stride"]
    xs = np.zeros((3, *case.x), np.float32)
    xs[1, 0, 0, 0, 0] = np.nan
    for op in OPS:
        y = jax.vmap(pool(op, case))(xs)
        assert np.argwhere(np.isnan(y)).tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["2x2-rest", "3x3-stride"])
def test_every_derivative_is_that_of_xla(op, name):
    case = CASES[name]
    x, u, v = np.random.default_rng(0).standard_normal((3, *case.x)).astype(np.float32)

    def derivatives(implementation):
        f = pool(op, case, implementation)

        def total(x):
            return (f(x) ** 3).sum()

        slope = jax.grad(total)
        return jax.jit(
            lambda x, u, v: {
                "tangent": jax.jvp(f, (x,), (u,)),
                "gradient": slope(x),
                "forward over reverse": jax.jvp(slope, (x,), (u,)),
                "reverse over reverse": jax.grad(lambda x: (slope(x) * u).sum())(x),
                "reverse over forward": jax.grad(lambda x: jax.jvp(total, (x,), (u,))[1])(x),
                "third": jax.grad(lambda x: (jax.jvp(slope, (x,), (u,))[1] * v).sum())(x),
                "remat": jax.grad(jax.checkpoint(total))(x),
            }
        )(x, u, v)

    jax.tree.map(lambda a, b: assert_close(a, b, scale=10), derivatives("onednn"), derivatives("xla"))


@pytest.mark.parametrize("case", [Case("tiles", (4, 64, 63, 67), 2), Case("strided", (1, 65, 64, 17), 3, 2)], ids=str)
def test_a_maximum_alone_is_xlas_where_that_is_faster_and_its_gradient_onednns(case):
    x = np.random.default_rng(0).integers(-2, 3, case.x).astype(np.float32)
    f, plain = pool("max_pool", case, None), pool("max_pool", case, "xla")

    def slope(f):
        return jax.jit(jax.grad(lambda x: jnp.sin(f(x)).sum()))

    assert library("max_pool", x, case).objection is None
    assert "llmasos_onednn" not in jax.jit(f).lower(x).as_text()
    assert "llmasos_onednn" in slope(f).lower(x).as_text()
    np.testing.assert_array_equal(f(x), plain(x))
    assert_close(slope(f)(x), slope(plain)(x))
    assert_close(jax.vmap(f)(x[None])[0], plain(x))


@pytest.mark.parametrize("op", OPS)
def test_vmap_scan_and_jacobians(op):
    case = Case("small", (1, 5, 4, 2), 3, 2, "SAME")
    xs = np.random.default_rng(0).standard_normal((3, *case.x)).astype(np.float32)

    def everything(implementation):
        f = pool(op, case, implementation)

        def slope(x):
            return jax.grad(lambda x: (f(x) ** 2).sum())(x)

        return jax.jit(
            lambda xs: {
                "vmap": jax.vmap(f)(xs),
                "inner axis": jax.vmap(f, in_axes=3, out_axes=2)(jnp.moveaxis(xs, 0, 3)),
                "vmap of grad": jax.vmap(slope)(xs),
                "scan": jax.lax.scan(lambda c, x: (c, slope(x)), 0, xs)[1],
                "jacfwd": jax.jacfwd(f)(xs[0]),
                "jacrev": jax.jacrev(f)(xs[0]),
                "nested": jax.vmap(jax.vmap(f))(xs[None]),
            }
        )(xs)

    jax.tree.map(assert_close, everything("onednn"), everything("xla"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("op", OPS)
def test_narrow_types(op, dtype):
    case = CASES["3x3-stride"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal(case.x), dtype)
    if not library(op, x, case).able:
        pytest.skip("oneDNN has no pooling in this dtype on this CPU")
    y, vjp = jax.vjp(pool(op, case), x)
    (dx,) = vjp(jnp.ones_like(y))
    wide = np.asarray(x, np.float64)
    assert y.dtype == dx.dtype == dtype
    assert_close(y, getattr(reference, op)(wide, **rest(case)))
    assert_close(dx, gradient(op, case, wide, np.ones(y.shape)))


WANTED = [
    ("resnet-stem", np.float32, "onednn", "onednn"),
    ("inception", np.float32, "onednn", "onednn"),
    ("mnist", np.float32, "onednn", "onednn"),
    ("mnist", jnp.bfloat16, "onednn", "onednn"),
    ("last-7x7", np.float32, "onednn", "onednn"),
    ("text-1d", np.float32, "xla", "xla"),
    ("2x2", np.float32, "xla", "xla"),
    ("3x3-stride", np.float32, "xla", "xla"),
]


@pytest.mark.parametrize(("name", "dtype", "maximum", "mean"), WANTED)
def test_the_choice(name, dtype, maximum, mean):
    case = next(case for case in (*BENCH, *TESTS) if case.name == name)
    x = jax.ShapeDtypeStruct(case.x, dtype)
    if not library("max_pool", x, case).able:
        pytest.skip("oneDNN has no pooling in this dtype on this CPU")
    found = (kernels.explain(f, x, **rest(case)).chosen.implementation for f in OPS.values())
    assert tuple(found) == (maximum, mean)


@pytest.mark.usefixtures("unchecked")
def test_by_name_it_runs_or_says_why_not():
    x = np.ones((1, 6, 6, 2), np.float32)
    assert_close(kernels.max_pool(x, 2, implementation="onednn"), np.ones((1, 3, 3, 2)))
    for wrong, words in (
        ({"x": x.astype(np.int32)}, "x is int32; it takes float32, bfloat16, float16"),
        ({"x": np.ones((1, 9, 9, 2), np.float32), "window": 9}, "81 elements in a window"),
        ({"padding": ((2, 0), (0, 0)), "strides": 1}, "a window holds padding only"),
        ({"x": x[:0]}, "an array is empty"),
        ({"padding": ((-1, 0), (0, 0))}, "oneDNN says invalid_arguments to pooling_forward"),
    ):
        refusal = f"max_pool: implementation='onednn' cannot run: onednn (library): {words}"
        with pytest.raises(NotImplementedError, match=re.escape(refusal)):
            kernels.max_pool(**({"x": x, "window": 2} | wrong), implementation="onednn")
    with tracing_for("gpu"), pytest.raises(NotImplementedError, match="runs on cpu, this is gpu"):
        kernels.avg_pool(x, 2, implementation="onednn")


@pytest.mark.parametrize("op", OPS)
def test_shard_map_and_partitioned_programs(op):
    case = Case("sharded", (4, 65, 64, 17), 3, 2, "SAME")
    x = np.random.default_rng(0).standard_normal(case.x).astype(np.float32)
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=automatic, devices=jax.devices()[:2])

    def slope(implementation):
        return lambda x: jax.grad(lambda x: (pool(op, case, implementation)(x) ** 2).sum())(x)

    wanted = slope("xla")(x)
    mapped = jax.jit(jax.shard_map(slope(None), mesh=mesh, in_specs=P("batch"), out_specs=P("batch")))
    assert "llmasos_onednn" in mapped.lower(x).as_text()
    assert_close(mapped(x), wanted)
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, P("batch")))
    partitioned = jax.jit(slope(None))
    assert "llmasos_onednn" not in partitioned.lower(split).as_text()
    assert_close(partitioned(split), wanted)


@pytest.mark.parametrize("op", OPS)
def test_an_exported_program_is_plain_xla(op):
    case = Case("exported", (2, 65, 64, 17), 3, 2, "SAME")
    x = np.random.default_rng(0).standard_normal(case.x).astype(np.float32)
    assert library(op, x, case).objection is None
    exported = jax.export.export(jax.jit(pool(op, case, None)))(x)
    assert "custom_call" not in exported.mlir_module()
    assert_close(exported.call(x), pool(op, case)(x))


def test_an_exported_program_takes_pictures_of_any_size(unchecked):
    f = jax.jit(lambda x: kernels.max_pool(x, 3, 2, ((1, 1), (1, 1))))
    n, height, width = jax.export.symbolic_shape("n, height, width")
    exported = jax.export.export(f)(jax.ShapeDtypeStruct((n, height, width, 8), jnp.float32))
    x = np.random.default_rng(0).standard_normal((2, 65, 64, 8)).astype(np.float32)
    np.testing.assert_array_equal(exported.call(x), f(x))
