"""Messages by formula, and as they stand in compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.placement import Placement, gathered_again
from llmasos_xla.sharding.planning.collectives import KINDS, Collective, Links, axes_of, merged, sent, sent_by_axes
from llmasos_xla.sharding.planning.formula import messages
from llmasos_xla.sharding.planning.program import collectives, sizes_of

P = PartitionSpec
SPEC = MeshSpec(data=2, fsdp=2, tensor=2)


def struct(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def mapped(function, in_specs, out_specs, *shapes):
    """What a function under shard_map over `SPEC` sends."""
    mesh = SPEC.mesh(jax.devices())
    specs = in_specs if isinstance(in_specs, tuple) else (in_specs,)
    arguments = [struct(mesh, shape, *spec) for shape, spec in zip(shapes, specs, strict=True)]
    body = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    return collectives(jax.jit(body).lower(*arguments).compile(), dict(mesh.shape))


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_all_reduce_is_a_scatter_and_a_gather(devices):
    whole = 1000.0
    assert sent("all-reduce", whole, devices) == sent("reduce-scatter", whole, devices) + sent(
        "all-gather", whole, devices
    )


def test_one_device_sends_nothing():
    for kind in KINDS:
        assert sent(kind, 100.0, 1) == 0.0
    with pytest.raises(ValueError, match="sent: unknown collective 'allreduce'; did you mean 'all-reduce'"):
        sent("allreduce", 1.0, 2)


def test_time_goes_with_bytes_and_links():
    slow, fast = Links(1e9, 1e8), Links(2e9, 1e8)
    message = Collective("all-gather", 8_000_000_000, 8)
    assert message.seconds(slow) == pytest.approx(2 * message.seconds(fast), rel=1e-3)
    assert message.seconds(slow) == pytest.approx(7.0, rel=1e-3)
    # Two hosts of four: half of it crosses, over four network links side by side.
    between = Collective("all-gather", 8_000_000_000, 8, groups=2)
    assert between.seconds(slow) == pytest.approx(4_000_000_000 / (4 * 1e8), rel=1e-3)


def test_merging_keeps_bytes():
    one = Collective("permute", 10, 2, ("data",))
    two = Collective("all-reduce", 50, 4, ("fsdp",), times=3)
    together = merged([one, two, one])
    assert sum(c.sent for c in together) == one.sent * 2 + two.sent
    assert len(together) == 2
    assert sent_by_axes(together) == {"fsdp": two.sent, "data": 20.0}


def test_axes_of_groups():
    mesh = dict(SPEC.sizes)
    assert axes_of([0, 1], mesh) == ("tensor",)
    assert axes_of([0, 2], mesh) == ("fsdp",)
    assert axes_of([0, 1, 4, 5], mesh) == ("data", "tensor")
    assert axes_of([3], mesh) == ()


def test_sum_over_axes():
    found = mapped(lambda x: jax.lax.psum(x, ("data", "tensor")), P(("data", "tensor")), P(), (4, 16))
    assert found == [Collective("all-reduce", 64, 4, ("data", "tensor"))]


def test_gather():
    found = mapped(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P(), (64, 32))
    assert found == [Collective("all-gather", 64 * 32 * 4, 2, ("fsdp",))]


def test_scatter():
    found = mapped(lambda x: jax.lax.psum_scatter(x, "data", tiled=True), P(), P("data"), (64, 32))
    assert found == [Collective("reduce-scatter", 64 * 32 * 4, 2, ("data",))]


def test_exchange():
    found = mapped(lambda x: jax.lax.all_to_all(x, "tensor", 1, 0, tiled=True), P("tensor"), P(None, "tensor"), (8, 6))
    assert found == [Collective("all-to-all", 4 * 6 * 4, 2, ("tensor",))]


def test_permutes_in_a_loop_count_as_often_as_it_runs():
    def ring(x):
        def pass_on(y, _):
            return jax.lax.ppermute(y, "data", [(0, 1), (1, 0)]) * 2.0, None

        return jax.lax.scan(pass_on, x, None, length=5)[0]

    assert mapped(ring, P("data"), P("data"), (8, 128)) == [Collective("permute", 4 * 128 * 4, 2, ("data",), times=5)]


def test_nested_loops_multiply():
    def twice(x):
        def inner(y, _):
            return jnp.sin(jax.lax.psum(y, "tensor")), None

        def outer(y, _):
            return jax.lax.scan(inner, y, None, length=3)[0] + 1.0, None

        return jax.lax.scan(outer, x, None, length=4)[0]

    assert mapped(twice, P(), P(), (4, 8)) == [Collective("all-reduce", 128, 2, ("tensor",), times=12)]


def test_a_loop_of_unknown_length_is_a_lower_bound():
    def until(x, n):
        return jax.lax.fori_loop(0, n[0].astype(jnp.int32), lambda _, y: jnp.sin(jax.lax.psum(y, "tensor")), x)

    (found,) = mapped(until, (P(), P()), P(), (4, 8), (1,))
    assert not found.exact
    assert "at least 1 times" in str(found)


def test_of_branches_the_one_that_sends_most_counts():
    def either(x, flag):
        return jax.lax.cond(
            flag[0] > 0,
            lambda y: jax.lax.psum(y, ("data", "fsdp")),
            lambda y: jax.lax.psum(y[:1], "tensor") + y,
            x,
        )

    found = mapped(either, (P(), P()), P(), (4, 8), (1,))
    assert found == [Collective("all-reduce", 128, 4, ("data", "fsdp"))]


def test_groups_of_hosts():
    mesh = SPEC.mesh(jax.devices())
    body = jax.shard_map(
        lambda x: jax.lax.psum(x, "data") + jax.lax.psum(x[:1], "tensor"),
        mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False,
    )  # fmt: skip
    compiled = jax.jit(body).lower(struct(mesh, (4, 8))).compile()
    hosts = [i // 4 for i in range(8)]
    found = {c.axes: c.groups for c in collectives(compiled, dict(mesh.shape), hosts)}
    assert found == {("data",): 2, ("tensor",): 1}


SPELLINGS = {
    "listed": "replica_groups={{0,2},{1,3},{4,6},{5,7}}",
    "counted": "replica_groups=[4,2]<=[2,2,2]T(0,2,1)",
    "of a mesh": "replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'fsdp'}",
    "of a part of an axis": "replica_groups=mesh['a'=4,'tensor'=2] {'a':(2)2}",
    "of a mesh in another order": "replica_groups=mesh['x'=2,'y'=4], device_ids=([2,2,2]T(1,0,2)) {'x'}",
    "of a mesh that is listed": "replica_groups=mesh['x'=2,'y'=4], device_ids=(0,1,4,5,2,3,6,7) {'x'}",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_all_spellings_of_groups(spelling):
    text = f"""
HloModule m
ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {{
  %x = bf16[8,4]{{1,0}} parameter(0)
  ROOT %sum = bf16[8,4]{{1,0}} all-reduce(%x), channel_id=1, {spelling}, use_global_device_ids=true, to_apply=%add
}}"""
    assert collectives(text, dict(SPEC.sizes)) == [Collective("all-reduce", 64, 2, ("fsdp",))]


STARTS = {
    "gathers of two": (
        "((bf16[4,2]{1,0}, f32[3]{0}), (bf16[8,2]{1,0}, f32[6]{0})) all-gather-start(%x, %y)", "all-gather", 56,
    ),
    "sum that aliases": ("(f32[8]{0}, f32[8]{0}) all-reduce-start(%x)", "all-reduce", 32),
    "sum": ("f32[8]{0} all-reduce-start(%x)", "all-reduce", 32),
    "sums of two": ("(f32[8]{0}, f32[2]{0}) all-reduce-start(%x, %y)", "all-reduce", 40),
    "exchange": ("((f32[8]{0}), f32[8]{0}) all-to-all-start(%x)", "all-to-all", 32),
    "scatter": ("f32[4]{0} reduce-scatter(%x)", "reduce-scatter", 32),
}  # fmt: skip


@pytest.mark.parametrize("line", STARTS.values(), ids=STARTS)
def test_asynchronous_messages_count_once(line):
    call, kind, whole = line
    text = f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %start = {call}, channel_id=1, replica_groups={{{{0,1}},{{2,3}},{{4,5}},{{6,7}}}}, dimensions={{0}}
  ROOT %done = f32[8]{{0}} {kind}-done(%start)
}}"""
    assert collectives(text, dict(SPEC.sizes)) == [Collective(kind, whole, 2, ("tensor",))]


def test_a_message_that_goes_on_in_other_computations_counts_once():
    """As libtpu prints one that runs beside other work: it starts, goes on and ends in three fusions."""
    gather = "%g = f32[64]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}"
    text = f"""
%begin (p: f32[16]) -> f32[64] {{
  %p = f32[16]{{0}} parameter(0)
  {gather}
  ROOT %s = (f32[16]{{0}}, f32[64]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%beside (p: f32[16]) -> f32[64] {{
  %p = f32[16]{{0}} parameter(0)
  ROOT {gather}
}}
%end (p: f32[16]) -> f32[64] {{
  %p = f32[16]{{0}} parameter(0)
  {gather}
  ROOT %d = f32[64]{{0}} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"
}}
ENTRY %main (x: f32[16]) -> f32[64] {{
  %x = f32[16]{{0}} parameter(0)
  %a = f32[64]{{0}} fusion(%x), kind=kLoop, calls=%begin
  %b = f32[64]{{0}} fusion(%x), kind=kLoop, calls=%beside
  ROOT %c = f32[64]{{0}} fusion(%x), kind=kLoop, calls=%end
}}"""
    (found,) = collectives(text, {"fsdp": 4})
    assert (found.kind, found.whole, found.times) == ("all-gather", 256, 1)


def test_messages_in_called_computations_and_loops_without_a_noted_count():
    text = """
%wrapped (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[4]{0} reduce-scatter(%p), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %g = f32[8]{0} get-tuple-element(%c), index=1
  %a = ((f32[8]{0}), f32[4]{0}) async-start(%g), calls=%wrapped
  ROOT %t = (s32[], f32[8]{0}) tuple(%g, %g)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %bound = s32[] constant(7)
  %c.1 = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c.1), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %while = (s32[], f32[8]{0}) while(%x), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%while), index=1
}"""
    assert collectives(text, dict(SPEC.sizes)) == [Collective("reduce-scatter", 32, 2, ("tensor",), times=7)]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="it has no ENTRY computation"):
        collectives("nothing")


def test_sizes_of_types():
    assert sizes_of("(f32[2,3]{1,0:T(8,128)}, /*index=1*/(pred[4], f8e4m3fn[8]), u32[], c64[2])") == [24, 4, 8, 4, 16]


@pytest.mark.parametrize("spec", [MeshSpec(fsdp=8), MeshSpec(data=8)], ids=str)
def test_formula_of_data_and_fsdp_agrees_with_the_program(spec):
    """A product in FSDP: gathered in each pass, its gradient summed (whole, on CPU); with data, only that."""
    placement = Placement(spec, spec.mesh(jax.devices()))
    weights = {"dense/kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)}

    def forward(w, x):
        return jnp.sin(jnp.sin(x) @ placement.gathered(w)["dense/kernel"])

    def step(w, x):
        # The gradient of x is asked for too: without it a first layer's kernel is not gathered for the second pass.
        def loss(w, x):
            return jnp.mean(gathered_again(forward)(w, x) ** 2)

        of_w, of_x = jax.grad(loss, argnums=(0, 1))(w, x)
        return jax.tree.map(lambda a, b: a - 0.1 * b, w, of_w), of_x

    shardings = placement.shardings(weights, weights)
    given = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), weights, shardings)
    by_rows = placement.rows((64, 256))
    rows = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=by_rows)
    compiled = jax.jit(step, out_shardings=(shardings, by_rows)).lower(given, rows).compile()
    found = collectives(compiled, dict(placement.mesh.shape))
    assert found == merged(messages(weights, placement, units=64))


def test_formula_of_a_pair_of_products_agrees_with_the_program():
    """Up by its outputs, down by its inputs: activations are summed once forward and once backward (Megatron)."""
    spec = MeshSpec(tensor=8)
    placement = Placement(spec, spec.mesh(jax.devices()))
    weights = {
        "block/up/kernel": jax.ShapeDtypeStruct((128, 512), jnp.float32),
        "block/down/kernel": jax.ShapeDtypeStruct((512, 128), jnp.float32),
    }

    def loss(w, x):
        return jnp.mean((jnp.sin(x @ w["block/up/kernel"]) @ w["block/down/kernel"]) ** 2)

    def step(w, x):
        return jax.grad(loss, argnums=(0, 1))(w, x)

    shardings = placement.shardings(weights, weights)
    given = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), weights, shardings)
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=placement.replicated)
    compiled = jax.jit(step, out_shardings=(shardings, placement.replicated)).lower(given, x).compile()
    found = sum(c.sent for c in collectives(compiled, dict(placement.mesh.shape)) if c.axes == ("tensor",))
    assert found == pytest.approx(sum(c.sent for c in messages(weights, placement, units=64)), rel=0.01)


def test_formula_counts_each_layer_of_a_stack():
    spec = MeshSpec(tensor=4, fsdp=2)
    placement = Placement(spec, spec.mesh(jax.devices()), stacked=("decoder/",))
    weights = {"decoder/down/kernel": jax.ShapeDtypeStruct((6, 512, 128), jnp.float32)}
    found = {(c.kind, c.axes): c for c in messages(weights, placement, units=64)}
    assert found["all-reduce", ("tensor",)] == Collective("all-reduce", 32 * 128 * 4, 4, ("tensor",), times=12)
    # On CPU the gradient is summed whole.
    assert found["all-reduce", ("fsdp",)].whole == 6 * 512 * 128 * 4 // 4
