"""Cutting a list of layers: balanced, with the whole model's arrays, computing what it computes."""

import dataclasses
import itertools

import numpy as np
import pytest
from sharding.pipelines import KEY, Tower, batch_of, spec_of, variables_of
from tolerances import assert_close

from llmasos_xla.core import Variables
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.layers._base import layer_names
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.models.stack import split_head
from llmasos_xla.models.stages import partition, split
from llmasos_xla.sharding.pipeline.flat import Rows, name_of


def best(costs, handed, parts):
    """The largest cost and what is handed on, of the best of all partitions."""
    found = []
    for inner in itertools.combinations(range(1, len(costs)), parts - 1):
        ends = [*inner, len(costs)]
        found.append((largest(costs, ends), sum(handed[end - 1] for end in inner)))
    return min(found)


def largest(costs, ends):
    return max(sum(costs[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True))


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_no_partition_is_better(parts, rng):
    for _ in range(20):
        count = int(rng.integers(parts, 10))
        costs, handed = rng.integers(0, 20, count).tolist(), rng.integers(0, 9, count - 1).tolist()
        ends = partition(costs, handed, parts)
        assert len(ends) == parts
        assert (largest(costs, ends), sum(handed[end - 1] for end in ends[:-1])) == best(costs, handed, parts)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "count"), [("mlp", 4), ("cnn", 3), ("cnn", 7), ("lstm", 2), ("lstm", 4), ("tower", 4), ("uneven", 4)]
)
def test_stages_one_after_the_other_are_the_model(name, count):
    """Names, shapes, values, masks and new state are the whole model's."""
    spec = spec_of(name)
    variables, batch = variables_of(spec), batch_of(spec, 4)
    stages = split(spec, count)
    assert [stage.number for stage in stages] == list(range(count))
    carry, state, seen = batch["x"], {}, {}
    for stage in stages:
        share = {n: a.shape[0] // count for n, a in variables.params.items() if n in stage.stacked}
        rows = [Rows(n, stage.number * size, (stage.number + 1) * size) for n, size in share.items()]
        taken = Variables({}, {})
        for part in (*stage.owned, *rows):
            arrays, where = (
                (taken.params, variables.params)
                if name_of(part) in variables.params
                else (taken.state, variables.state)
            )
            whole = where[name_of(part)]
            seen.setdefault(name_of(part), []).append(part)
            arrays[name_of(part)] = whole if isinstance(part, str) else whole[part.start : part.stop]
        carry, new = stage(taken.params, taken.state, carry, None)
        state |= new
    assert seen.keys() == variables.params.keys() | variables.state.keys()
    y, expected = spec.net().apply(variables, batch["x"], train=True)
    assert_close(carry[0], y, scale=5)
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(state[key], value, message=key)


def test_a_stage_draws_what_it_draws_in_the_whole_model():
    spec = spec_of("dropout")
    variables, x = variables_of(spec), batch_of(spec, 8)["x"]
    stages = split(spec, 4, costs=[1, 1, 1, 1, 1, 1, 1])
    drawing = [sum(isinstance(layer, L.Dropout) for layer in stage.layers) for stage in stages]
    assert [stage.draws for stage in stages] == [sum(drawing[:number]) for number in range(4)]
    assert max(stage.draws for stage in stages) > 1
    carry = x
    for stage in stages:
        params = {name_of(part): variables.params[name_of(part)] for part in stage.owned}
        carry, _ = stage(params, {}, carry, (KEY, stage.draws))
    y, _ = spec.net().apply(variables, x, train=True, key=KEY)
    np.testing.assert_array_equal(carry[0], y)


def test_arrays_keep_their_names():
    layers = (L.Dense(4), L.Dense(4, name="mine"), L.Dense(4), L.Dense(2, activation="softmax"))
    stages = split(StackSpec(layers, (4,)), 4)
    assert [stage.owned for stage in stages] == [
        tuple(f"{name}/{array}" for array in ("bias", "kernel")) for name in ("dense", "mine", "dense_1", "dense_2")
    ]
    # The softmax belongs to the loss.
    assert stages[-1].layers == (dataclasses.replace(split_head(layers)[0][-1], name="dense_2"),)
    assert layer_names(split_head(layers)[0]) == ("dense", "mine", "dense_1", "dense_2")


def test_stages_of_equal_layers_are_of_one_kind():
    stages = split(spec_of("blocks of eight"), 4)
    assert len({stage.kind for stage in stages}) == 1
    assert len({stage.owned for stage in stages}) == 4
    assert len({stage.kind for stage in split(spec_of("mlp"), 4)}) == 4


def test_a_deep_layer_is_cut_evenly_where_it_can_be():
    stages = split(spec_of("tower"), 4)
    assert [[(layer.name, getattr(layer, "depth", None)) for layer in stage.layers] for stage in stages] == [
        [("embedding", None), ("tower", 2)],
        [("tower", 2)],
        [("tower", 2)],
        [("tower", 2), ("flatten", None), ("dense", None)],
    ]
    assert {stage.stacked for stage in stages} == {("tower/bias", "tower/kernel")}
    assert stages[1].owned == ()


def test_a_deep_layer_is_cut_by_costs_where_it_cannot_be():
    """Six rows of cost 2 between costs 1 and 4: the best four stages."""
    spec = StackSpec((L.Embedding(12, 8), Tower(6), L.Flatten(), L.Dense(3)), (5,))
    stages = split(spec, 4, costs=[1, 12, 0, 4])
    assert all(stage.stacked == () for stage in stages)
    rows = [part for stage in stages for part in stage.owned if isinstance(part, Rows) and part.name == "tower/kernel"]
    assert [row.start for row in rows] == [0, *(row.stop for row in rows[:-1])]
    assert rows[-1].stop == 6
    costs = [1, 2, 2, 2, 2, 2, 2, 0, 4]
    depths = [sum(getattr(layer, "depth", 1) for layer in stage.layers) for stage in stages]
    assert largest(costs, np.cumsum(depths).tolist()) == best(costs, [0] * 8, 4)[0]


def test_refusals():
    spec = spec_of("mlp")
    text = r"the model has 4 layers \(dense, dense_1, dense_2, dense_3\), too few for 5 stages .* pipe=4 or less"
    with pytest.raises(ValueError, match=text):
        split(spec, 5)
    with pytest.raises(ValueError, match=r"got 2 costs for 4 layers \(dense, dense_1, dense_2, dense_3\); one a layer"):
        split(spec, 2, costs=[1.0, 2.0])
