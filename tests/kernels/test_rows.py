"""In a program over a mesh each device runs the ops' own implementation on its rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
from llmasos_xla.sharding import MeshSpec

NHWC = ("NHWC", "HWIO", "NHWC")
AXES = ("data", "fsdp")


def f32(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def conv(x, w, b):
    return kernels.conv(x, w, 1, "SAME", dimension_numbers=NHWC, bias=b, activation="relu")


def both(x, w, u, b):
    one = {"w_input": w, "w_recurrent": u, "bias": b}
    return kernels.bidirectional(kernels.lstm, x, one, one)


# op, arrays, whether oneDNN runs it on CPU
CASES = {
    "conv": (conv, (f32(16, 14, 14, 8), f32(3, 3, 8, 16), f32(16)), True),
    "conv, channels first": (lambda x, w: kernels.conv(x, w, 1, "SAME"), (f32(16, 8, 14, 14), f32(16, 8, 3, 3)), True),
    "conv, rows in groups": (
        lambda x, w: kernels.conv(x, w, 1, "SAME", dimension_numbers=NHWC, batch_group_count=2),
        (f32(16, 14, 14, 8), f32(3, 3, 8, 16)),
        False,
    ),
    "conv_transpose": (
        lambda x, w: kernels.conv_transpose(x, w, 2, "SAME"),
        (f32(8, 7, 7, 16), f32(3, 3, 16, 16)),
        True,
    ),
    "dense": (kernels.dense, (f32(16, 64), f32(64, 32), f32(32)), False),
    "max_pool": (lambda x: kernels.max_pool(x, 2), (f32(16, 8, 8, 4),), False),
    "lstm": (
        lambda x, w, u, b, h: kernels.lstm(x, w, u, b, h, lengths=jnp.arange(16) % 9),
        (f32(16, 9, 8), f32(8, 64), f32(16, 64), f32(64), f32(16, 16)),
        True,
    ),
    "bidirectional": (both, (f32(16, 9, 8), f32(8, 64), f32(16, 64), f32(64)), True),
    "linear_scan": (kernels.linear_scan, (f32(1, 1, 8), f32(16, 9, 8)), False),
    "rows that do not divide": (conv, (f32(9, 14, 14, 8), f32(3, 3, 8, 16), f32(16)), False),
}


def gradients(function):
    def total(*arrays):
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(function(*arrays)))

    return lambda *arrays: jax.value_and_grad(total, argnums=tuple(range(len(arrays))))(*arrays)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_one_device(name):
    function, arrays, foreign = CASES[name]
    placement_mesh = MeshSpec(data=2, fsdp=4).mesh()
    wanted = jax.jit(gradients(function))(*arrays)
    rows = jax.sharding.NamedSharding(placement_mesh, jax.sharding.PartitionSpec(AXES))
    with kernels.dividing_rows(placement_mesh, AXES):
        given = list(arrays)
        if arrays[0].shape[0] % 8 == 0:
            given[0] = jax.device_put(arrays[0], rows)
        compiled = jax.jit(gradients(function)).lower(*given).compile()
    got = compiled(*given)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))
    if _onednn.problem() is None and arrays[0].shape[0] % 8 == 0:
        assert bool(re.search(r'custom_call_target="llmasos', compiled.as_text())) == foreign


def test_refusals_name_the_whole_shapes():
    mesh = MeshSpec(data=8).mesh()
    with kernels.dividing_rows(mesh, ("data",)), pytest.raises(ValueError, match=r"\(16, 14, 14, 8\)"):
        conv(f32(16, 14, 14, 8), f32(3, 3, 4, 16), f32(16))


def test_steps_over_devices_are_not_gathered():
    """Where rows are not all that is divided an op is XLA's: laid out for oneDNN the steps would be put together."""
    mesh = MeshSpec(seq=8).mesh()
    x, w, b = f32(4, 64, 784), f32(784, 128), f32(128)
    laid = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "seq")))

    def program(*arrays):
        return jax.jit(gradients(lambda x, w, b: kernels.dense(x, w, b, "relu"))).lower(*arrays).compile()

    with kernels.dividing_by_xla():
        compiled = program(laid, w, b)
    assert "all-gather" not in compiled.as_text()
    got, wanted = compiled(laid, w, b), program(x, w, b)(x, w, b)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * max(1.0, float(jnp.abs(theirs).max())))


@pytest.mark.skipif(_onednn.problem() is not None, reason="oneDNN is not here")
def test_a_named_implementation_runs_where_xla_divides():
    x, w = f32(32, 784), f32(784, 128)
    with kernels.dividing_by_xla():
        chosen = {name: kernels.explain(kernels.dense, x, w, implementation=name).chosen for name in (None, "onednn")}
    assert chosen[None].implementation == "xla"
    assert chosen["onednn"].implementation == "onednn"
