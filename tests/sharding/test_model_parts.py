"""Attention, decoder and mixture of experts give one device's numbers on meshes of every kind."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from repetitions import thorough_but

from llmasos_xla.compiling import compile
from llmasos_xla.core import Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.stack import Stack
from llmasos_xla.sharding import MeshSpec
from llmasos_xla.sharding.placement import Placement, using

WIDTH, TIME, ROWS = 32, 16, 8

LAYERS = {
    "attention": (L.MultiHeadAttention(4, 8, value_dim=5),),
    "decoder": (L.Decoder(2, 4, kv_heads=2, hidden_dim=48, dropout=0.3), L.RMSNormalization()),
    "kept": (L.Decoder(3, 4, kv_heads=1, hidden_dim=48, rematerialize="dots"),),
    "again": (L.Decoder(3, 4, kv_heads=1, hidden_dim=48, rematerialize="block"),),
    "mixture": (L.MixtureOfExperts(4, 24, capacity_factor=0.8),),
    "experts": (L.Decoder(2, 4, hidden_dim=24, experts=4, capacity_factor=0.8, rematerialize="block"),),
}
# Each part on the meshes that matter to it.
CASES = [
    *(("attention", spec) for spec in (MeshSpec(seq=4), MeshSpec(data=2, seq=2, tensor=2))),
    *(("decoder", spec) for spec in (MeshSpec(tensor=4), MeshSpec(fsdp=4), MeshSpec(data=2, seq=2, tensor=2))),
    ("kept", MeshSpec(fsdp=2, seq=4)),
    *(("mixture", spec) for spec in (MeshSpec(expert=4), MeshSpec(data=2, expert=2, tensor=2), MeshSpec(seq=4))),
    *(("experts", spec) for spec in (MeshSpec(expert=4), MeshSpec(fsdp=2, expert=2, seq=2))),
]
QUICK = [(name, spec) for name, spec in CASES if sum(size > 1 for size in spec.sizes.values()) > 1]


@functools.cache
def made(name):
    net, key = pure(lambda rngs: Stack(LAYERS[name], (None, WIDTH), rngs=rngs)), jax.random.key(0)
    return net, compile(net.init, key, what="initial weights", once=True)(key)


def batch():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(ROWS, TIME, WIDTH)), jnp.float32)
    mask = jnp.asarray(np.arange(TIME)[None] < rng.integers(1, TIME + 1, (ROWS, 1)))
    return x, mask


def value_and_gradients(net, variables, x, mask):
    def loss(params, x):
        y, state = net.apply(Variables(params, variables.state), x, train=True, key=jax.random.key(1), mask=mask)
        return jnp.mean(jnp.square(y * mask[..., None].astype(y.dtype))), state

    (value, state), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables.params, x)
    return value, gradients, state


def lowered(name, placement):
    """The program for a placement, whose arrays lie as the rules say."""
    net, variables = made(name)
    shardings = placement.shardings(variables, {**variables.params, **variables.state})
    rows = [placement.rows(a.shape) for a in batch()]
    with using(placement):
        function = functools.partial(value_and_gradients, net)
        arrays = jax.device_put(variables, shardings), *map(jax.device_put, batch(), rows)
        return jax.jit(function).lower(*arrays), arrays


@functools.cache
def on_one_device(name):
    net, variables = made(name)
    return jax.device_get(jax.jit(functools.partial(value_and_gradients, net))(variables, *batch()))


def placed(spec, name):
    stacked = ("decoder/",) if any(isinstance(layer, L.Decoder) for layer in LAYERS[name]) else ()
    return Placement(spec, spec.mesh(jax.devices()[: spec.devices]), stacked)


@pytest.mark.parametrize(("name", "spec"), thorough_but(QUICK, CASES), ids=str)
def test_loss_gradients_and_state_are_those_of_one_device(name, spec):
    program, arrays = lowered(name, placed(spec, name))
    got, wanted = jax.device_get(program.compile()(*arrays)), on_one_device(name)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    for key, gradient in wanted[1][0].items():
        np.testing.assert_allclose(got[1][0][key], gradient, rtol=1e-4, atol=1e-5, err_msg=key)
    np.testing.assert_allclose(got[1][1], wanted[1][1], rtol=1e-4, atol=1e-5)
    assert wanted[2].keys() == got[2].keys()
    for key, state in wanted[2].items():
        np.testing.assert_array_equal(got[2][key], state, err_msg=key)


def operations(text, kind):
    return re.findall(rf"= (\([^)]*\)|\S+) {kind}(?:-start)?\(", text)


def test_tokens_travel_to_experts_whose_weights_stay():
    program, _ = lowered("mixture", placed(MeshSpec(expert=4), "mixture"))
    text = program.compile().as_text()
    assert operations(text, "all-to-all")
    assert not operations(text, "all-gather")


def test_a_scan_puts_one_blocks_weights_together_at_a_time():
    program, _ = lowered("decoder", placed(MeshSpec(fsdp=4), "decoder"))
    gathered = operations(program.compile().as_text(), "all-gather")
    assert [shape for shape in gathered if "[32,48]" in shape or "[1,32,48]" in shape]
    assert not [shape for shape in gathered if shape.startswith("f32[2,")]


@pytest.mark.parametrize(("name", "rounds"), [("kept", 1), ("again", 2)])
def test_a_ring_goes_around_again_only_where_all_is_computed_again(name, rounds):
    program, _ = lowered(name, placed(MeshSpec(seq=4), name))
    sent = [shape for shape in operations(program.compile().as_text(), "collective-permute") if "f32" in shape]
    # Keys and values forward, with their gradients backward, and the gradients alone home.
    assert len(sent) == 2 * rounds + 4 + 2


def test_attention_weights_cannot_be_dropped_around_a_ring():
    layer = L.MultiHeadAttention(4, 8, dropout=0.1)
    net = pure(lambda rngs: layer.build((TIME, WIDTH), rngs))
    spec = MeshSpec(seq=4)
    variables = jax.eval_shape(net.init, jax.random.key(0))
    run = functools.partial(net.apply, key=jax.random.key(1))
    with using(Placement(spec, spec.mesh(jax.devices()[:4]))):
        jax.eval_shape(functools.partial(run, train=False), variables, batch()[0])
        with pytest.raises(
            ValueError, match=r"MultiHeadAttention: with time over seq=4 devices.* set dropout=0.0 and put"
        ):
            jax.eval_shape(functools.partial(run, train=True), variables, batch()[0])


@pytest.mark.parametrize("name", ["decoder", "experts"])
def test_a_stage_of_a_pipeline_runs_its_part_of_the_stack(name):
    """The stack's blocks in parts over "pipe", the other axes XLA's, as a pipeline strategy runs them."""
    spec = MeshSpec(pipe=2, data=2, expert=2) if name == "experts" else MeshSpec(pipe=2, data=2, seq=2)
    placement = placed(spec, name)
    decoder = LAYERS[name][0]
    half = pure(lambda rngs: L.Decoder(**{**vars(decoder), "depth": 1}).build((TIME, WIDTH), rngs))
    whole = pure(lambda rngs: decoder.build((TIME, WIDTH), rngs))
    x, mask = batch()
    variables = compile(whole.init, jax.random.key(0), what="initial weights", once=True)(jax.random.key(0))
    # What each stage makes of the same input is what its block makes.
    expected = jnp.concatenate(
        [jax.jit(half.apply)(jax.tree.map(lambda a, i=i: a[i : i + 1], variables), x, mask=mask)[0] for i in range(2)]
    )
    stages = jax.shard_map(
        lambda v, x, mask: half.apply(v, x, mask=mask)[0],
        mesh=placement.mesh,
        in_specs=(PartitionSpec("pipe"), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec("pipe"),
        axis_names={"pipe"},
        check_vma=False,
    )
    with using(placement):
        put = [jax.device_put(a, NamedSharding(placement.mesh, PartitionSpec("data"))) for a in (x, mask)]
        y = jax.jit(stages)(variables, *put)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
