"""Operations of traced programs against formulas by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from llmasos_xla import kernels
from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.planning.flops import flops, traced_flops

F = jnp.float32


def arrays(*shapes, dtype=F):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def total(function, *arguments):
    return sum(flops(function, *arguments).values())


def test_products():
    assert total(jnp.matmul, *arrays((3, 4), (4, 5))) == 2 * 3 * 4 * 5
    assert total(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), *arrays((7, 3, 4), (7, 4, 5))) == 7 * 2 * 3 * 4 * 5


def test_by_dtype_of_the_operands():
    def both(a, b):
        return a @ b, a.astype(F) @ b.astype(F)

    assert flops(both, *arrays((8, 8), (8, 8), dtype=jnp.bfloat16)) == {"bfloat16": 1024.0, "float32": 1024.0}


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_and_its_gradients(groups):
    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    x, w = arrays((2, 9, 9, 6), (3, 3, 6 // groups, 8))
    forward = 2 * (2 * 4 * 4 * 8) * (3 * 3 * 6 // groups)
    assert total(conv, x, w) == forward
    _, back = jax.eval_shape(lambda x, w: jax.vjp(conv, x, w), x, w)
    assert back is not None
    weights_only = total(lambda x, w, dy: jax.vjp(lambda w: conv(x, w), w)[1](dy), x, w, *arrays((2, 4, 4, 8)))
    assert weights_only == 2 * forward  # forward, and the kernel's gradient: as many


def test_loops_count_as_often_as_they_run():
    def nested(x, w):
        def outer(y, _):
            return jax.lax.scan(lambda z, _: (jnp.tanh(z @ w), None), y, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    assert total(nested, *arrays((4, 8), (8, 8))) == 15 * 2 * 4 * 8 * 8


def test_recomputation_counts():
    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w))

    plain = total(jax.grad(loss), *arrays((8, 8), (4, 8)))
    again = total(
        jax.grad(jax.checkpoint(lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w)))), *arrays((8, 8), (4, 8))
    )
    one = 2 * 4 * 8 * 8
    assert plain == 2 * one
    # Forward, again, and the gradients of two kernels and of the value between them.
    assert again == (2 + 2 + 3) * one


def test_of_branches_the_larger_counts():
    def either(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert total(either, jax.ShapeDtypeStruct((), bool), *arrays((8, 8))) == 2 * 2 * 8**3


def test_bodies_of_shard_map_run_on_each_device():
    mesh = MeshSpec(data=4, tensor=2).mesh(jax.devices())
    P = PartitionSpec
    divided = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(P("data"), P(None, "tensor")), out_specs=P("data", "tensor")
    )
    assert total(divided, *arrays((64, 16), (16, 32))) == 2 * 64 * 16 * 32
    # Over some axes by hand, the others left to XLA.
    some = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"})
    assert total(some, *arrays((64, 16), (16, 32))) == 2 * 64 * 16 * 32


def test_rows_of_experts():
    def mixture(x, w, sizes):
        return jax.lax.ragged_dot(x, w, sizes)

    assert total(mixture, *arrays((10, 4), (3, 4, 5)), jax.ShapeDtypeStruct((3,), jnp.int32)) == 2 * 10 * 4 * 5


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_own_kernels_count_the_same_everywhere(platform):
    x, w = arrays((4, 16, 16, 32), (3, 3, 32, 64))
    with kernels.tracing_for(platform):
        traced = jax.jit(lambda x, w: kernels.conv(x, w, 1, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))).trace(
            x, w
        )
    assert sum(traced_flops(traced).values()) == pytest.approx(2 * 4 * 14 * 14 * 64 * 9 * 32, rel=1e-6)


def test_decoder_is_6nd_and_attention():
    """Operations of a step: 6 for each weight and token, and 12 batch time^2 width a layer for attention's products."""
    layers, batch, time, width, heads, vocab = 3, 2, 32, 64, 4, 128

    def block(x, w):
        q, k, v = (x @ w[n] for n in ("q", "k", "v"))
        q, k, v = (a.reshape(batch, time, heads, width // heads) for a in (q, k, v))
        scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        x = x + jnp.einsum("bhts,bshd->bthd", scores, v).reshape(batch, time, width) @ w["o"]
        return x + jax.nn.gelu(x @ w["up"]) @ w["down"], None

    def loss(weights, tokens):
        x = weights["embed"][tokens]
        x, _ = jax.lax.scan(block, x, weights["blocks"])
        logits = x @ weights["head"]
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    def stack(*shape):
        return jax.ShapeDtypeStruct((layers, *shape), F)

    weights = {
        "embed": jax.ShapeDtypeStruct((vocab, width), F),
        "head": jax.ShapeDtypeStruct((width, vocab), F),
        "blocks": {n: stack(width, width) for n in "qkvo"} | {"up": stack(width, 256), "down": stack(256, width)},
    }
    products = sum(a.size for a in jax.tree.leaves(weights)) - vocab * width  # the table is looked up in
    attention = layers * batch * time * time * width
    assert total(jax.grad(loss), weights, jax.ShapeDtypeStruct((batch, time), jnp.int32)) == pytest.approx(
        6 * products * batch * time + 12 * attention, rel=1e-6
    )


def test_a_strided_grouped_convolution_with_borders():
    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    assert total(conv, *arrays((2, 9, 9, 4), (3, 3, 2, 8))) == 2 * (2 * 5 * 5 * 8) * (3 * 3 * 2)


def test_every_result_of_a_pass_counts():
    (a,) = arrays((6, 6))
    assert sum(flops(lambda a: jax.lax.top_k(a, 2), a, passes=True).values()) == 2 * 6 * 2
    assert sum(flops(lambda a: jax.lax.sort((a, a)), a, passes=True).values()) == 2 * 36


def test_passes_over_arrays_count_where_they_are_asked_for():
    def layer(a, b):
        return jnp.tanh(a @ b).reshape(-1).astype(jnp.bfloat16)

    given = arrays((6, 6), (6, 6))
    assert total(layer, *given) == 2 * 6**3
    assert sum(flops(layer, *given, passes=True).values()) == 2 * 6**3 + 6**2

    def loop(a):
        return jax.lax.scan(lambda a, _: (a @ a + a, None), a, None, length=5)[0]

    assert sum(flops(loop, given[0], passes=True).values()) == 5 * (2 * 6**3 + 6**2)

    def either(a):
        return jax.lax.cond(True, lambda a: a @ a, lambda a: a + a, a)

    assert sum(flops(either, given[0], passes=True).values()) == 2 * 6**3
