"""Bytes of compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.planning.memory import Memory, device_bytes, exhausted, host_bytes, memory_of


def struct(*shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def test_bytes_of_a_tree_are_those_of_one_device():
    mesh = MeshSpec(fsdp=4, tensor=2).mesh(jax.devices())
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = {"a": struct(64, 32, sharding=split), "b": struct(64, 32, sharding=whole), "n": struct(dtype=jnp.int32)}
    assert device_bytes(tree) == 64 * 32 * 4 // 8 + 64 * 32 * 4 + 4
    assert device_bytes(jax.eval_shape(lambda: jax.random.key(0))) == 8


def test_donated_arguments_count_once():
    weights = struct(256, 256)

    def step(w):
        return w * 0.5

    kept = memory_of(jax.jit(step).lower(weights).compile())
    donated = memory_of(jax.jit(step, donate_argnums=0).lower(weights).compile())
    assert (kept.aliased, donated.aliased) == (0, 256 * 256 * 4)
    assert kept.peak - donated.peak == 256 * 256 * 4


def test_parts_and_the_rest_make_the_peak():
    weights, x = struct(512, 512), struct(64, 512)
    compiled = jax.jit(lambda w, x: jnp.sin(x @ w) @ w.T).lower(weights, x).compile()
    found = memory_of(compiled, weights=weights, batch=x)
    assert found.parts == {"weights": 512 * 512 * 4, "batch": 64 * 512 * 4}
    assert found.arguments == sum(found.parts.values())
    assert found.activations == found.outputs + found.temporary - found.aliased
    assert found.peak == found.activations + found.arguments


def test_memory_of_a_sharded_program_is_one_devices():
    mesh = MeshSpec(data=8).mesh(jax.devices())
    rows = struct(512, 256, sharding=NamedSharding(mesh, PartitionSpec("data")))
    found = memory_of(jax.jit(jnp.sin).lower(rows).compile(), batch=rows)
    assert found.arguments == found.parts["batch"] == 512 * 256 * 4 // 8


def test_a_compiler_that_says_nothing_is_an_error():
    class Silent:
        def memory_analysis(self):
            return None

    with pytest.raises(NotImplementedError, match="this platform's compiler says nothing about memory"):
        memory_of(Silent())


def test_the_host_holds_the_batch_and_packs_products(monkeypatch):
    text = """
%fused (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[100,40]) -> f32[40,40] {
  %x = f32[100,40]{1,0} parameter(0)
  %f = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%fused
  ROOT %d = f32[40,40]{1,0} dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}"""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    packed = 3 * 100 * (40 + 40) * 4
    kept = 3 * (16 << 20)
    assert host_bytes(text, struct(10), temporary=1 << 30) == 40 + packed + kept
    assert host_bytes(text, struct(10), temporary=1 << 30, devices=8) == 40 + packed + kept // 8
    assert host_bytes(text, struct(10), temporary=1000) == 40 + packed + 1000


def test_what_the_compiler_says_when_it_refuses():
    used = RuntimeError("RESOURCE_EXHAUSTED: ... Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G.")
    assert exhausted(used) == int(20.5 * 2**30)
    assert exhausted(RuntimeError("RESOURCE_EXHAUSTED: no more")) == 0
    assert exhausted(RuntimeError("INVALID_ARGUMENT")) is None


def test_peak_counts_all():
    assert Memory(10, 4, 3, 5, code=2, beside=1).peak == 19
