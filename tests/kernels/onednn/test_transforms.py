"""The primitive under JAX's transformations, and where the plain JAX version stands in for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from kernels.onednn.toy import Spec, needs_onednn, product
from tolerances import assert_close

from llmasos_xla import kernels

pytestmark = needs_onednn

NUMBERS = ("NHWC", "HWIO", "NHWC")
TARGET = "llmasos_onednn"


@pytest.fixture(scope="module")
def arrays():
    return Spec(6, 5, 4).arrays(np.random.default_rng(0))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s), "float32") for s in ((8, 7, 7, 3), (3, 3, 3, 8))]


def conv(x, w, implementation=None):
    return kernels.conv(x, w, 1, "SAME", dimension_numbers=NUMBERS, implementation=implementation)


def text(f, *arguments) -> str:
    return jax.jit(f).lower(*arguments).compile().as_text()


def plain(x, w):
    return np.float64(x) @ np.float64(w)


def test_eager_and_compiled_are_the_foreign_call(arrays):
    x, w = arrays
    assert TARGET in text(product, x, w)
    np.testing.assert_array_equal(product(x, w), jax.jit(product)(x, w))
    assert_close(product(x, w), plain(x, w))


def test_without_jit_it_is_compiled_all_the_same(arrays):
    x, w = arrays
    with jax.disable_jit():
        y, dx = product(x, w), jax.grad(lambda x: product(x, w).sum())(x)
    assert_close(y, plain(x, w))
    assert_close(dx, np.broadcast_to(np.float64(w).sum(1), x.shape))


def test_gradients_of_both_modes_and_orders(arrays):
    check_grads(lambda x, w: jnp.tanh(product(x, w)), arrays, order=2, rtol=2e-2, atol=2e-2)


def test_gradients_are_foreign_calls_too(arrays):
    assert text(jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), (0, 1)), *arrays).count(TARGET) >= 3


def test_a_batch_of_them(arrays):
    x, w = arrays
    xs, ws = jnp.stack([x, 2 * x, x - 1]), jnp.stack([w, w + 1, -w])
    assert_close(jax.vmap(product)(xs, ws), np.stack([plain(a, b) for a, b in zip(xs, ws)]))
    assert_close(jax.vmap(product, (0, None))(xs, w), np.stack([plain(a, w) for a in xs]))


def test_a_batched_convolution_is_one_call(images):
    x, w = images
    xs = jnp.stack([x, -x])
    assert text(jax.vmap(conv, (0, None)), xs, w).count("custom-call(") == 1
    assert_close(jax.vmap(conv, (0, None))(xs, w), jnp.stack([conv(a, w, "xla") for a in xs]), scale=5)


def test_inside_of_a_loop(arrays):
    x, w = arrays

    def total(x, w):
        def body(carry, scale):
            return carry, product(carry * scale, w).sum()

        return jax.lax.scan(body, x, jnp.arange(1.0, 5.0))[1].sum()

    assert text(total, x, w).count(TARGET) >= 1
    assert_close(jax.jit(total)(x, w), 10 * plain(x, w).sum(), scale=10)
    assert_close(jax.jit(jax.grad(total))(x, w), 10 * np.broadcast_to(np.float64(w).sum(1), x.shape), scale=10)


def test_in_both_arms_of_a_condition(arrays):
    x, w = arrays
    f = jax.jit(lambda p, x, w: jax.lax.cond(p, product, lambda x, w: -product(x, w), x, w))
    np.testing.assert_array_equal(f(True, x, w), -f(False, x, w))


def test_remat_computes_it_again(arrays):
    x, w = arrays

    def loss(x, w):
        return jnp.sum(jnp.sin(product(x, w)))

    np.testing.assert_array_equal(jax.jit(jax.grad(jax.checkpoint(loss)))(x, w), jax.jit(jax.grad(loss))(x, w))


def test_donated_arrays(arrays):
    x, _ = arrays
    square = jnp.eye(5) * 2
    step = jax.jit(lambda x, square: product(x, square), donate_argnums=0)
    donated = x + 0
    y = step(donated, square)
    assert donated.is_deleted()
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(step(y, square), 4 * x)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (3, 2, 0)])
def test_empty_arrays_are_left_to_xla(shape):
    rows, inner, columns = shape
    x, w = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    assert TARGET not in text(product, x, w)
    np.testing.assert_array_equal(product(x, w), np.zeros((rows, columns)))


# Devices.


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_eight_devices_under_shard_map_equal_one(images):
    x, w = images

    @functools.partial(
        jax.shard_map,
        mesh=mesh(),
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=(PartitionSpec("data"), PartitionSpec("data"), PartitionSpec()),
    )
    def sharded(x, w):
        y, vjp = jax.vjp(conv, x, w)
        return y, *vjp(y)

    y, vjp = jax.vjp(conv, x, w)
    assert TARGET in text(sharded, x, w)
    for _ in range(20):
        got = jax.jit(sharded)(x, w)
    for a, b in zip(got, (y, *vjp(y))):
        assert_close(a, b, scale=20)


def test_each_device_computes_what_it_holds(arrays):
    x, w = arrays
    program = jax.jit(product)
    wanted = np.asarray(program(x, w))
    held = [(jax.device_put(x, d), jax.device_put(w, d)) for d in jax.devices()]
    for _ in range(10):
        for y in [program(*a) for a in held]:
            np.testing.assert_array_equal(y, wanted)


def test_a_program_that_xla_partitions_is_plain(arrays):
    x, w = arrays
    x = jax.device_put(jnp.tile(x, (4, 1)), NamedSharding(mesh(), PartitionSpec("data")))
    w = jax.device_put(w, NamedSharding(mesh(), PartitionSpec()))
    assert TARGET not in text(product, x, w)
    assert_close(jax.jit(product)(x, w), plain(x, w))


def test_asked_for_by_name_it_stays_in_a_partitioned_program(arrays):
    x, w = arrays
    x = jax.device_put(jnp.tile(x, (4, 1)), NamedSharding(mesh(), PartitionSpec("data")))
    w = jax.device_put(w, NamedSharding(mesh(), PartitionSpec()))
    f = functools.partial(product, named=True)
    assert TARGET in text(f, x, w)
    assert_close(jax.jit(f)(x, w), plain(x, w))


# Elsewhere.


@pytest.mark.parametrize("platforms", [["cpu"], ["cpu", "cuda", "tpu"]])
def test_an_export_holds_no_foreign_call(images, platforms):
    x, w = images
    written = export.export(jax.jit(jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2))), platforms=platforms)(x, w)
    assert "custom_call" not in written.mlir_module()
    assert_close(written.call(x, w), jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2))(x, w), scale=50)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_asked_for_by_name_it_is_refused_elsewhere(arrays, platform):
    f = functools.partial(product, named=True)
    with pytest.raises(NotImplementedError) as refused:
        jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,))
    assert str(refused.value) == (
        "implementation='onednn' cannot run: toy product was asked for by name, and the program is compiled for "
        f"{platform}; onednn runs on cpu. Use implementation=None"
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_chosen_it_is_plain_elsewhere(arrays, platform):
    lowered = jax.jit(product).trace(*arrays).lower(lowering_platforms=(platform,))
    assert TARGET not in lowered.as_text()
    assert "dot_general" in lowered.as_text()


def test_asked_for_by_name_in_an_export_it_stays_and_says_so(arrays):
    with pytest.raises(ValueError, match=TARGET):
        export.export(jax.jit(functools.partial(product, named=True)), platforms=["cpu"])(*arrays)
