"""Devices to compile for: those that are here, and those that are not."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.planning.hardware import KNOWN, available_memory, cpu, hardware, usable
from llmasos_xla.sharding.planning.topology import target_config, topology, uncached

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: extra plan"
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None, reason="JAX's CUDA plugin is not installed: extra plan-gpu"
)


@pytest.fixture(autouse=True)
def beside_other_workers(monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def compiled_for(found):
    """A product over a mesh of the devices, compiled; the batch is divided."""
    devices = found.devices
    mesh = MeshSpec(data=-1).mesh(devices)
    x = jax.ShapeDtypeStruct((len(devices) * 16, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    w = jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    with uncached(found):
        return jax.jit(lambda x, w: jnp.mean(x @ w)).lower(x, w).compile()


def test_here_is_what_jax_has():
    here = topology()
    assert here.devices == tuple(jax.devices())
    assert here.here
    assert here.platform == here.compiles_for == "cpu"


def test_cpu_devices_of_the_process_are_used_first():
    assert topology("cpu:4").devices == tuple(jax.devices()[:4])
    assert topology("cpu:4").here


def test_more_cpu_devices_than_the_process_has_leave_its_own_alone():
    before = jax.devices()
    many = topology("cpu:32")
    assert len(many) == 32
    assert not many.here
    assert compiled_for(many).memory_analysis().argument_size_in_bytes == 16 * 256 * 4 + 256 * 128 * 4
    assert jax.devices() == before
    np.testing.assert_array_equal(jnp.ones(3) + 1.0, np.full(3, 2.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h101:8", "topology: unknown device 'h101'; did you mean 'h100'"),
        ("h100", 'topology: wants "cpu:8", "h100:16", "v5p:8x8x4"'),
        ("h100:12", "'h100:12' does not fill its hosts of 8 GPUs"),
        ("h100:4x4", 'h100 is counted, "h100:16"'),
        ("v5p:8x8", 'a slice of v5p has 3 axes, "v5p:4x4x4"'),
        ("cpu:0", "'cpu:0' has no devices"),
    ],
)
def test_names_that_are_not_understood(name, message):
    with pytest.raises(ValueError, match=message):
        topology(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named():
    with pytest.raises(ImportError, match=r'plans for TPUs need libtpu: pip install "llmasos_xla\[plan\]"  \(or comp'):
        topology("v5p:2x2x2")


def test_without_cuda_plugin_the_extra_is_named(monkeypatch):
    def nothing(*_, **__):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", nothing)
    with pytest.raises(ImportError, match=r"llmasos_xla\[plan-gpu\].*JAX_PLATFORMS=cpu"):
        topology("h100:8")


def test_compiled_for_cpu_instead_is_said():
    estimate = topology("h100:16", compile_on="cpu")
    assert (estimate.platform, estimate.compiles_for, len(estimate), estimate.per_group) == ("gpu", "cpu", 16, 8)
    assert "an estimate" in str(estimate)
    with pytest.raises(ValueError, match="compile_on wants \"cpu\" or None, got 'tpu'"):
        topology("h100:16", compile_on="tpu")


@needs_libtpu
@pytest.mark.parametrize(("name", "count", "slices"), [("v5e:2x2", 4, 1), ("v5p:2x2x2", 8, 1), ("v5e:2x2*2", 8, 2)])
def test_tpus_that_are_not_here(name, count, slices):
    found = topology(name)
    assert (found.platform, len(found), found.per_group) == ("tpu", count, count // slices)
    assert compiled_for(found).memory_analysis().argument_size_in_bytes > 0
    assert jax.default_backend() == "cpu"


@needs_libtpu
def test_libtpu_that_another_process_holds(monkeypatch):
    def held(*_, **__):
        raise jax.errors.JaxRuntimeError("ABORTED: Internal error when accessing libtpu multi-process lockfile.")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", held)
    with pytest.raises(RuntimeError, match="another process.*ALLOW_MULTIPLE_LIBTPU_LOAD=1"):
        topology("v5e:2x2")


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know():
    with pytest.raises(ValueError, match="topology: libtpu knows no slice 'v5p:3x3x3'"):
        topology("v5p:3x3x3")


@needs_cuda_plugin
@pytest.mark.parametrize("name", ["h100:16", "a100:8", "b200:8"])
def test_gpus_that_are_not_here(name):
    found = topology(name)
    assert (found.platform, found.per_group, found.gpu) == ("gpu", 8, KNOWN[name.split(":")[0]].kind)
    assert compiled_for(found).memory_analysis().argument_size_in_bytes == 16 * 256 * 4 + 256 * 128 * 4
    assert jax.default_backend() == "cpu"


def test_hardware_by_name_and_kind():
    for device in KNOWN.values():
        assert hardware(device.name) is hardware(device.kind) is device
        assert device.flops_of("bfloat16") >= device.flops_of("float32") > 1e12
        assert device.network < device.link < device.bandwidth
        assert device.source.startswith("https://")
    with pytest.raises(ValueError, match="hardware: unknown device 'v5'"):
        hardware("v5")


def test_gpu_share_is_read_as_jax_reads_it(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert usable(KNOWN["h100"]) == int(KNOWN["h100"].memory * 0.75)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert usable(KNOWN["h100"]) == int(KNOWN["h100"].memory * 0.9)
    assert usable(KNOWN["v5p"]) == KNOWN["v5p"].memory


def test_cpu_devices_share_memory_and_cores():
    one, four = cpu(1), cpu(4)
    assert four.memory == pytest.approx(one.memory / 4, rel=0.2)
    assert four.flops_of("float32") == one.flops_of("float32") / 4
    assert cpu(1, measure=True).flops_of("float32") > 1e8


MEMINFO = "MemTotal:       1000000 kB\nMemAvailable:    800000 kB\n"


def machine(root, cgroup, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.skipif(sys.platform == "win32", reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, 800000 * 1024),
        ("0::/job\n", {"memory.max": "max\n", "job/memory.max": "max\n"}, 800000 * 1024),
        (
            "0::/job\n",
            {
                "job/memory.max": "5000000",
                "job/memory.current": "3000000",
                "job/memory.stat": "inactive_file 1000000\n",
            },
            3000000,
        ),
        ("0::/a/b\n", {"a/memory.max": "70000", "a/memory.current": "20000", "a/b/memory.max": "60000"}, 50000),
        (
            "4:cpu,memory:/job\n1:cpu:/\n",
            {"memory/job/memory.limit_in_bytes": "9000", "memory/job/memory.usage_in_bytes": "4000"},
            5000,
        ),
        # In a container the path is the host's; its own group is mounted at the top.
        ("0::/kubepods/pod1\n", {"memory.max": "4000", "memory.current": "1000"}, 3000),
        ("0::/job\n", {"job/memory.max": "4000", "job/memory.current": "5000"}, 0),
    ],
)
def test_memory_within_the_limits_of_control_groups(tmp_path, cgroup, files, expected):
    assert available_memory(machine(tmp_path, cgroup, files)) == expected


def test_target_configs():
    for name in ("a100", "h100", "h200", "b200"):
        assert f'device_description_str: "{KNOWN[name].kind}"' in target_config(name)
    with pytest.raises(ValueError, match="target_config: unknown GPU 'mi300'"):
        target_config("mi300")


def test_programs_for_elsewhere_are_not_cached():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    with uncached(topology("h100:8", compile_on="cpu")):
        assert jax.config.values[name] == float("inf")
    with uncached(topology()):
        assert jax.config.values[name] == before
    assert jax.config.values[name] == before
