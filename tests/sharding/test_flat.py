"""Arrays packed into buffers come out as they went in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sharding.pipelines import mesh_of

from llmasos_xla.sharding.pipeline.carrier import Carrier, split_floats
from llmasos_xla.sharding.pipeline.flat import Arrangement, Rows, without

ROWS = 5
FLOATS = [[jnp.float32], [jnp.bfloat16], [jnp.float16], [jnp.bfloat16, jnp.float32], [jnp.bfloat16, jnp.float16], []]


def carried(floats, rng):
    """Activations beside a mask and ids, and special values."""
    tree = {
        "mask": jnp.asarray(rng.random((ROWS, 7)) > 0.5),
        "ids": jnp.asarray(rng.integers(-(2**31), 2**31, (ROWS, 3)), jnp.int32),
        "small": jnp.asarray(rng.integers(-128, 128, (ROWS, 2, 2)), jnp.int8),
        "scalar": jnp.asarray(rng.integers(0, 9, ROWS), jnp.uint16),
    }
    for number, dtype in enumerate(floats):
        values = rng.normal(size=(ROWS, 3, 2)).astype(np.float32)
        values[0, 0], values[1, 1] = (np.nan, np.inf), (-0.0, 1e-40)
        tree[f"float{number}"] = jnp.asarray(values).astype(dtype)
    return tree


@pytest.mark.parametrize("floats", FLOATS)
def test_what_is_carried_arrives_bit_for_bit(floats, rng):
    tree, other = carried(floats, rng), {"y": jnp.zeros((ROWS, 40), floats[0] if floats else jnp.int32)}

    def both(tree):
        carrier = Carrier([tree, other], ROWS, P())
        words = carrier.pack(tree)
        assert words.shape == carrier.pack(other).shape == (ROWS, carrier.width)
        return carrier.unpack(words, tree)

    with jax.set_mesh(mesh_of(data=1)):
        found = jax.jit(both)(tree)
    for name, a in tree.items():
        assert found[name].dtype == a.dtype
        assert np.asarray(found[name]).tobytes() == np.asarray(a).tobytes(), name


def test_cotangents_are_those_of_the_floats(rng):
    tree = carried([jnp.bfloat16, jnp.float32], rng)
    floats, put = split_floats(tree)
    assert [a.dtype for a in floats] == [jnp.bfloat16, jnp.float32]
    assert put(floats).keys() == tree.keys()

    def through(floats):
        carrier = Carrier([tree], ROWS, P())
        buffer = carrier.pack_cotangents(floats)
        assert buffer.shape == (ROWS, 12)
        return carrier.unpack_cotangents(buffer, tree)

    with jax.set_mesh(mesh_of(data=1)):
        found = jax.jit(through)(floats)
    for a, b in zip(found, floats, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("at_rest", [{}, {"a": P("pipe"), "b": P(None, "pipe"), "c": P(None, ("fsdp", "pipe"), None)}])
def test_what_stages_hold_is_given_back(at_rest, rng):
    """Whatever the shapes and dtypes, cut or not between steps, whole arrays or rows."""
    arrays = {
        "a": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(5, 4)), jnp.bfloat16),
        "c": jnp.asarray(rng.integers(0, 99, (6, 4, 2)), jnp.int32),
        "d": jnp.float32(2.5),
        "e": jnp.asarray(rng.normal(size=(7,)), jnp.float32),
        "f": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
    }
    owned = [["a", Rows("c", 0, 1)], ["d"], [Rows("c", 1, 6), "b"], ["e"]]
    arranged = Arrangement.of(arrays, owned, ["f"], at_rest, (), 1)
    mesh = mesh_of(pipe=4, fsdp=2)

    def run(number, arrays):
        held = arranged.hold(arrays, number[0])
        # What a stage sees of its arrays, as often as there are stages.
        seen = [arranged.arrays(stage, held) for stage in range(4)]
        own = [jnp.where(number[0] == s, jnp.sum(seen[s][n].astype(jnp.float32)), 0) for s, n in ((0, "a"), (2, "b"))]
        return arranged.give(held), jax.lax.psum(own, "pipe")

    mapped = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(P("pipe"), arranged.at_rest),
        out_specs=(arranged.at_rest, P()),
        axis_names={"pipe"},
        check_vma=False,
    )
    found, sums = jax.jit(mapped)(jnp.arange(4), arrays)
    for name, a in arrays.items():
        np.testing.assert_array_equal(found[name], a)
    for total, name in zip(sums, ("a", "b"), strict=True):
        np.testing.assert_allclose(total, np.asarray(arrays[name], np.float32).sum(), rtol=1e-5)


def test_axes_are_left_out_of_a_spec():
    assert without(P(("pipe", "fsdp"), "tensor", None), ["pipe", "fsdp"]) == P(None, "tensor", None)
    assert without(P(("data", "tensor")), ["pipe"]) == P(("data", "tensor"))
