"""Rules: every array of every layer has one, what is split divides, users' own come first."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models.test_every_layer import SAMPLES

from llmasos_xla.models.config import Config
from llmasos_xla.models.layers import LAYERS
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.sharding import MeshSpec, Placement
from llmasos_xla.sharding.rules import TENSOR, layout

SPECS = (
    MeshSpec(tensor=2),
    MeshSpec(fsdp=2),
    MeshSpec(fsdp=2, tensor=2),
    MeshSpec(expert=2, data=2),
    MeshSpec(pipe=2, fsdp=4),
)


def arrays_of(layer, shape):
    net = StackSpec((layer,), shape).net()
    variables = jax.eval_shape(net.init, jax.random.key(0))
    return {**variables.params, **variables.state}


def test_every_layer_has_a_sample():
    wanted = {name for name, layer in LAYERS.items() if not issubclass(layer, Config)}
    assert {type(layer).__name__ for layer, _ in SAMPLES} == wanted


@pytest.mark.parametrize(
    ("layer", "shape"), SAMPLES, ids=lambda v: type(v).__name__ if not isinstance(v, tuple) else ""
)
def test_every_array_of_every_layer_has_a_rule_that_divides(layer, shape):
    for spec in SPECS:
        for name, a in arrays_of(layer, shape).items():
            found = layout(name, a.shape, spec)
            for part in (found.stored, found.used):
                sharding = jax.sharding.NamedSharding(Placement(spec, spec.mesh()).mesh, part)
                sharding.shard_shape(a.shape)  # raises where an axis does not divide
            whole = all(entry is None for entry in found.stored)
            split = {axis for axis, size in spec.sizes.items() if size > 1 and axis not in ("data", "seq", "expert")}
            # Nothing is whole on every device without a word, but what its rule says is whole.
            rule = next((r for r in TENSOR if re.search(r.pattern, name)), None)
            assert not whole or found.note or not split or (split == {"tensor"} and rule is not None and not rule.split)


def test_an_unknown_name_is_an_error_not_a_copy():
    with pytest.raises(ValueError, match=r"no rule of tensor names the array 'head/wonder'.*MeshSpec\(\.\.\., rules="):
        layout("head/wonder", (8, 8), MeshSpec(tensor=2))


def test_heads_and_hidden_units_are_divided_not_channels():
    spec = MeshSpec(tensor=2)
    assert layout("decoder/attention/query/kernel", (4, 64, 8, 16), spec, stacked=True).stored == P(
        None, None, "tensor"
    )
    assert layout("decoder/attention/output/kernel", (4, 8, 16, 64), spec, stacked=True).stored == P(None, "tensor")
    assert layout("decoder/mlp/gate/kernel", (4, 64, 128), spec, stacked=True).stored == P(None, None, "tensor")
    assert layout("decoder/mlp/down/kernel", (4, 128, 64), spec, stacked=True).stored == P(None, "tensor")
    assert layout("multi_head_attention/query/bias", (8, 16), spec).stored == P("tensor")


def test_layers_of_a_stack_belong_to_the_pipeline():
    spec = MeshSpec(pipe=4, fsdp=2)
    found = layout("decoder/mlp/gate/kernel", (8, 64, 128), spec, stacked=True)
    assert found.stored == P("pipe", None, "fsdp")
    assert found.used == P("pipe")
    with pytest.raises(ValueError, match="6 layers on axis 0, which do not divide into pipe=4 stages"):
        layout("decoder/mlp/gate/kernel", (6, 64, 128), spec, stacked=True)


def test_experts_lie_on_their_own_devices():
    found = layout("decoder/experts/gate/kernel", (2, 8, 64, 128), MeshSpec(expert=4, tensor=2), stacked=True)
    assert found.stored == found.used == P(None, "expert", None, "tensor")


def test_recurrent_arrays_are_kept_split_and_used_whole():
    found = layout("lstm/recurrent_kernel", (32, 128), MeshSpec(tensor=4))
    assert found.stored == P(None, "tensor")
    assert found.used == P()


def test_what_does_not_divide_is_whole_and_says_so():
    found = layout("dense/kernel", (64, 10), MeshSpec(tensor=4))
    assert found.stored == P()
    assert found.note == "whole over tensor: its axis 1 of 10 does not divide by 4"
    assert layout("dense/bias", (10,), MeshSpec(fsdp=4)).note == "whole over fsdp: 10 values, fewer than 1024"


def test_rules_of_ones_own_come_first():
    spec = MeshSpec(fsdp=2, tensor=2, rules=((r"dense/kernel$", P("tensor", None)),))
    assert layout("dense/kernel", (64, 64), spec).stored == P("tensor", None)
    assert layout("dense_1/kernel", (64, 64), spec).stored == P("fsdp", "tensor")
    with pytest.raises(ValueError, match=r"axis 0 of dense/kernel \(63, 64\) has 63 elements, which tensor=2 does not"):
        layout("dense/kernel", (63, 64), spec)
    with pytest.raises(ValueError, match="names the axis 'model'; a mesh has pipe, data, fsdp, expert, seq, tensor"):
        layout("dense/kernel", (64, 64), MeshSpec(tensor=2, rules=((r"dense", P("model")),)))
    with pytest.raises(ValueError, match=r"the rule's .* for dense/kernel names the axis 'tensor' twice"):
        layout("dense/kernel", (64, 64), MeshSpec(tensor=2, rules=((r"dense", P("tensor", "tensor")),)))


def test_optimizer_state_lies_with_its_array():
    import optax

    placement = Placement(MeshSpec(fsdp=2, tensor=4), MeshSpec(fsdp=2, tensor=4).mesh())
    params = {"dense/kernel": np.zeros((64, 64), "float32"), "dense/bias": np.zeros(64, "float32")}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    found = placement.shardings(state, params)
    assert found[0].mu["dense/kernel"].spec == found[0].nu["dense/kernel"].spec == P("fsdp", "tensor")
    assert found[0].count.spec == P()


def test_the_table_names_every_array_and_why_it_is_whole():
    placement = Placement(MeshSpec(tensor=8), MeshSpec(tensor=8).mesh())
    table = placement.table({"dense/kernel": np.zeros((64, 10)), "conv2d/kernel": np.zeros((3, 3, 8, 16))})
    assert table.splitlines()[0].split("  ")[0] == "dense/kernel"
    assert "does not divide by 8" in table.splitlines()[0]
    assert "tensor" in table.splitlines()[1]
