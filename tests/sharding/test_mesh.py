"""MeshSpec: sizes that come out, devices in an order that suits the axes, errors that name what does not fit."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from llmasos_xla.sharding import MeshSpec
from llmasos_xla.sharding.mesh import AXES, _arranged, _between, divided


def test_a_name_takes_all_devices():
    assert MeshSpec.of("fsdp").over(8) == MeshSpec(fsdp=8)
    assert MeshSpec(data=-1, tensor=2).over(8) == MeshSpec(data=4, tensor=2)
    assert MeshSpec(data=2).over(8) == MeshSpec(data=2)


def test_a_mesh_has_every_axis_and_all_are_auto():
    mesh = MeshSpec(data=2, tensor=4).mesh()
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"pipe": 1, "data": 2, "fsdp": 1, "expert": 1, "seq": 1, "tensor": 4}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_neighbors_along_the_last_axis_are_neighbors_in_the_machine():
    devices = MeshSpec(data=2, tensor=4).mesh().devices.reshape(2, 4)
    assert [[d.id for d in row] for row in devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("spec", "devices", "text"),
    [
        (MeshSpec(data=-1, tensor=3), 8, "tensor=3 = 3 does not divide"),
        (MeshSpec(data=4, tensor=4), 8, "data=4 x tensor=4 = 16 devices are wanted, 8 are here"),
    ],
)
def test_sizes_that_do_not_come_out(spec, devices, text):
    with pytest.raises(ValueError, match=text):
        spec.over(devices)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="tensor wants a whole number >= 1, or -1 for the rest, got 0"):
        MeshSpec(tensor=0)
    with pytest.raises(ValueError, match="at most one axis may be -1"):
        MeshSpec(data=-1, tensor=-1)
    with pytest.raises(ValueError, match="unknown strategy 'fdsp'; did you mean 'fsdp'"):
        MeshSpec.of("fdsp")
    with pytest.raises(ValueError, match='"auto" is for fit and lm.plan, .* name a strategy or a MeshSpec here'):
        MeshSpec.of("auto")
    with pytest.raises(ValueError, match="microbatches wants a whole number >= 1, got True"):
        MeshSpec(microbatches=True)
    with pytest.raises(ValueError, match="legal_world_sizes: batch_size wants a whole number >= 1, got 0"):
        MeshSpec.of("data").legal_world_sizes(0, 8)


@pytest.mark.usefixtures("unchecked")
def test_rules_are_pairs_of_an_expression_and_a_spec():
    spec = jax.sharding.PartitionSpec(None, "tensor")
    wrongs: list[Any] = [("kernel$", "tensor"), "kernel$", ("kernel$",)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"rules wants \(\(regular expression, PartitionSpec\), ...\), as .*got"):
            MeshSpec(rules=(wrong,))
    with pytest.raises(ValueError, match=r"rules has '\(kernel', which is no regular expression: missing \)"):
        MeshSpec(rules=(("(kernel", spec),))


def test_no_device_of_another_process_is_left_over():
    devices = [types.SimpleNamespace(process_index=i // 2, platform="cpu", id=i) for i in range(4)]
    with pytest.raises(ValueError, match="data=2 = 2 of 4 devices in several processes; all of them have to take part"):
        MeshSpec(data=2).mesh(devices)


def test_a_batch_that_does_not_divide_names_the_sizes_that_would():
    with pytest.raises(ValueError, match=r"100 rows .* 8 parts \(data=2 x fsdp=4\); use batch_size=96 or 104"):
        divided(100, MeshSpec(data=2, fsdp=4))
    with pytest.raises(ValueError, match="use batch_size=8,"):
        divided(3, MeshSpec(expert=8))
    divided(104, MeshSpec(data=2, fsdp=4, tensor=3))


@pytest.mark.parametrize("spec", [MeshSpec.of("data"), MeshSpec(fsdp=-1, tensor=2), MeshSpec(data=3, pipe=-1)])
def test_legal_world_sizes_are_those_that_fit(spec):
    def fits(devices):
        try:
            divided(24, spec.over(devices))
        except ValueError:
            return False
        return spec.over(devices).devices == devices

    assert spec.legal_world_sizes(24, 32) == tuple(n for n in range(1, 33) if fits(n))


def test_slices_lie_along_the_first_axes():
    """Two slices of four chips: what talks most, tensor, stays within a slice."""

    def chip(i):
        within = i % 4
        return types.SimpleNamespace(
            id=i, process_index=i // 4, slice_index=i // 4, platform="tpu", device_kind="TPU v5 lite", core_on_chip=0,
            coords=(within % 2, within // 2, 0),
        )  # fmt: skip

    mesh_devices = MeshSpec(data=4, tensor=2)
    arranged = _arranged([chip(i) for i in range(8)], tuple(mesh_devices.sizes.values())).reshape(4, 2)
    assert np.array_equal([[d.slice_index for d in row] for row in arranged], [[0, 0], [0, 0], [1, 1], [1, 1]])
    with pytest.raises(ValueError, match="8 slices cannot be divided"):
        _between((1, 4, 1, 1, 1, 2), 8)


def test_devices_with_few_threads_are_warned_of(monkeypatch):
    import llmasos_xla as lm

    def divided():
        model = lm.Sequential([lm.layers.Dense(8, input_shape=(4,))])
        model.learner.shard("data")

    divided()
    monkeypatch.setenv("NPROC", "8")
    with pytest.warns(UserWarning, match=r"8 CPU devices in one process have 8 threads .* set NPROC=32"):
        divided()
