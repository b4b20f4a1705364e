"""Ring attention is dense attention: values, gradients, and what the compiled program sends."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tolerances import assert_close

from llmasos_xla.sharding import MeshSpec
from llmasos_xla.sharding.ring import ring_attention

BATCH = ("data", "fsdp", "expert")


def problem(heads=4, kv_heads=2, batch=4, time=16, dim=6, value_dim=None, masked=False, dtype=jnp.float32):
    rng = np.random.default_rng(heads * 100 + time)
    shapes = [(heads, dim), (kv_heads, dim), (kv_heads, value_dim or dim), (heads, value_dim or dim)]
    q, k, v, dy = (jnp.asarray(rng.normal(size=(batch, time, *s)), dtype) for s in shapes)
    mask = None
    if masked:
        # A row that is all padding, one step, an odd number, a whole one, and a hole in the middle.
        mask = np.arange(time) < np.resize([0, 1, time - 3, time], batch)[:, None]
        mask[-1, time // 2] = False
        mask = jnp.asarray(mask)
    return (q, k, v), mask, dy


def dense(q, k, v, mask, causal):
    """In float64 where x64 is on, else float32, with weights over the whole of time."""
    k, v = (np.repeat(np.asarray(a, np.float64), q.shape[2] // a.shape[2], axis=2) for a in (k, v))
    scores = np.einsum("bthd,bshd->bhts", np.asarray(q, np.float64), k) / np.sqrt(q.shape[-1])
    seen = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask[:, None, None], scores.shape)
    seen = seen & np.tri(q.shape[1], dtype=bool) if causal else seen
    scores = np.where(seen, scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


def jax_dense(q, k, v, mask, causal):
    return jax.nn.dot_product_attention(
        q, k, v, mask=None if mask is None else mask[:, None, None], is_causal=causal, implementation="xla"
    )


def put(mesh, arrays, heads=None):
    return tuple(
        jax.device_put(a, NamedSharding(mesh, PartitionSpec(BATCH, "seq", *([heads] if a.ndim > 2 else []))))
        for a in arrays
    )


def value_and_gradients(function, arrays, dy):
    y, pull = jax.vjp(function, *arrays)
    return y, *pull(dy)


def check(spec, causal, masked, **sizes):
    arrays, mask, dy = problem(masked=masked, **sizes)
    mesh = spec.mesh(jax.devices()[: spec.devices])
    attend = functools.partial(ring_attention, mesh=mesh, causal=causal)
    split, (dy_split, mask_split) = (
        put(mesh, arrays),
        (put(mesh, [a])[0] if a is not None else None for a in (dy, mask)),
    )
    run = jax.jit(lambda arrays, dy, mask: value_and_gradients(functools.partial(attend, mask=mask), arrays, dy))
    ours = run(split, dy_split, mask_split)
    dense_of = functools.partial(value_and_gradients, lambda *a: jax_dense(*a, mask, causal))
    expected = jax.jit(dense_of)(arrays, dy)
    for name, mine, theirs in zip(("y", "dq", "dk", "dv"), ours, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5, err_msg=name)
    assert_close(ours[0], dense(*arrays, mask, causal))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seq", [1, 2, 4, 8])
def test_value_and_gradients_are_those_of_dense_attention(seq, causal, masked):
    check(MeshSpec(seq=seq), causal, masked)


@pytest.mark.thorough
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (MeshSpec(data=2, seq=2, tensor=2), {}),
        (MeshSpec(fsdp=2, seq=4), {}),
        (MeshSpec(expert=2, data=2, seq=2), {}),
        (MeshSpec(seq=2, tensor=4), {"heads": 4, "kv_heads": 2}),
        (MeshSpec(seq=2, tensor=4), {"heads": 12, "kv_heads": 3}),
        (MeshSpec(seq=4, tensor=2), {"heads": 3, "kv_heads": 3}),
        (MeshSpec(seq=4), {"heads": 3, "kv_heads": 1, "time": 4, "dim": 1}),
        (MeshSpec(seq=3), {"heads": 5, "kv_heads": 5, "time": 21, "dim": 7}),
    ],
    ids=str,
)
def test_products_of_meshes_and_odd_sizes(spec, sizes, causal):
    check(spec, causal, masked=True, **sizes)


@pytest.mark.parametrize("causal", [False, True])
def test_values_may_be_of_another_size_than_keys(causal):
    arrays, mask, _ = problem(value_dim=9, masked=True)
    attend = functools.partial(ring_attention, mesh=MeshSpec(seq=4).mesh(jax.devices()[:4]), causal=causal, mask=mask)
    y = jax.jit(attend)(*arrays)
    assert_close(y, dense(*arrays, mask, causal))


def test_bfloat16_sums_in_float32():
    arrays, mask, dy = problem(time=64, masked=True, dtype=jnp.bfloat16)
    attend = functools.partial(ring_attention, mesh=MeshSpec(seq=8).mesh(), causal=True, mask=mask)
    ours = jax.jit(functools.partial(value_and_gradients, attend))(arrays, dy)
    wide = [a.astype(jnp.float32) for a in arrays]
    expected = value_and_gradients(lambda *a: jax_dense(*a, mask, True), wide, dy.astype(jnp.float32))
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == jnp.bfloat16
        assert_close(mine, theirs, scale=2)


def test_keys_and_values_travel_and_are_never_gathered():
    arrays, _, dy = problem(time=64)
    mesh = MeshSpec(data=2, seq=4).mesh()
    run = jax.jit(
        lambda arrays, dy: value_and_gradients(functools.partial(ring_attention, mesh=mesh, causal=True), arrays, dy)
    )
    text = run.lower(put(mesh, arrays), put(mesh, [dy])[0]).compile().as_text()
    assert re.search(r" collective-permute(-start)?\(", text)
    assert not re.search(r" (all-gather|all-to-all|all-reduce)(-start)?\(", text)
    # Blocks that the causal mask hides are not computed.
    assert re.search(r" conditional\(", text)


def temporary_bytes(seq, time):
    """Of one device, for the gradient; the scores, which go with the square of a block, are kept equal."""
    mesh = MeshSpec(seq=seq).mesh(jax.devices()[:seq])
    arrays, _, dy = problem(1, 1, batch=1, time=time, dim=64)
    run = jax.jit(
        lambda arrays, dy: value_and_gradients(functools.partial(ring_attention, mesh=mesh, causal=True), arrays, dy)
    )
    return run.lower(put(mesh, arrays), put(mesh, [dy])[0]).compile().memory_analysis().temp_size_in_bytes


def test_a_device_holds_a_block_however_long_the_ring():
    two, eight = temporary_bytes(2, 128), temporary_bytes(8, 512)
    assert eight < 1.3 * two


@pytest.mark.parametrize("causal", [False, True])
def test_inside_of_a_shard_map_over_another_axis(causal):
    """As a stage of a pipeline runs it, whose other axes are XLA's."""
    mesh = MeshSpec(pipe=2, data=2, seq=2).mesh()
    arrays, mask, _ = problem(masked=True)

    def stage(number, q, k, v):
        y = ring_attention(q, k, v, mesh=mesh, causal=causal, mask=mask)
        return y * number.astype(y.dtype)[:, None, None, None]

    def loss(arrays):
        pipe = jax.shard_map(
            stage,
            mesh=mesh,
            in_specs=(PartitionSpec("pipe"), *[PartitionSpec()] * 3),
            out_specs=PartitionSpec("pipe"),
            axis_names={"pipe"},
            check_vma=False,
        )
        y = pipe(jnp.arange(1, 3), *arrays)
        return jnp.sum(jnp.square(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(put(mesh, arrays))

    def plain(arrays):
        y = jax_dense(*arrays, mask, causal)
        return 5.0 * jnp.sum(jnp.square(y))

    expected = dense(*arrays, mask, causal)
    assert_close(y, np.concatenate([expected, 2 * expected]))
    for mine, theirs in zip(gradients, jax.grad(plain)(arrays), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-4)


def test_refusals(unchecked):
    arrays, _, _ = problem()
    with pytest.raises(ValueError, match=r"ring_attention: 16 steps do not divide into seq=3 parts; pad the rows"):
        ring_attention(*arrays, mesh=MeshSpec(seq=3).mesh(jax.devices()[:3]), causal=True)
    with pytest.raises(ValueError, match=r"ring_attention: data=8 does not divide a batch of 4 rows; pad the batch"):
        ring_attention(*arrays, mesh=MeshSpec(data=8).mesh(), causal=True)
    q, k, v = arrays
    three = [jnp.repeat(a, 3, axis=2)[:, :, :3] for a in (k, v)]
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3 key and value heads"):
        ring_attention(q, *three, mesh=MeshSpec().mesh(), causal=True)
