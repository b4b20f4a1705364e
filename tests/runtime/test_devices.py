"""GPUs as NVML tells of them, and the bytes that JAX holds."""

import gc
import math
import subprocess
import sys
import types

import fake_nvml
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llmasos_xla.runtime import Monitor, Node
from llmasos_xla.runtime.engine import this_machine

pytest.importorskip("psutil", reason="psutil is not installed")


@pytest.fixture
def gpus(monkeypatch):
    """A module and its GPUs, of which the second tells less."""
    whole = {
        "name": "NVIDIA H100",
        "millijoules": 0,
        "milliwatts": 350_000,
        "use": types.SimpleNamespace(gpu=75),
        "memory": types.SimpleNamespace(used=10**9, total=80 * 10**9),
        "celsius": 60,
    }
    found = [whole, {"name": b"Old", "milliwatts": 50_000}]
    module = fake_nvml.library(found)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module, found


def test_a_machine_with_gpus_has_them_as_devices(gpus, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    # Of the second nobody knows how large it is: it is none that has no memory.
    assert this_machine(memory=1 << 30) == Node("local", (80 * 10**9, 1 << 50), 1 << 30)
    assert this_machine(1).devices == (80 * 10**9,)
    with pytest.raises(ValueError, match="up: this machine has 2 GPUs, --devices 3 came; with JAX_PLATFORMS=cpu"):
        this_machine(3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert this_machine(3).devices == (0, 0, 0)


def test_a_machine_whose_gpus_nobody_can_ask(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("llmasos_xla.runtime.gpus.gpu_count", lambda: 2)
    assert this_machine().devices == (1 << 50,) * 2


def test_gpus(gpus):
    module, (whole, _) = gpus
    monitor = Monitor()
    whole["millijoules"] = 42_000
    row = monitor.sample()
    assert monitor.gpus == ["NVIDIA H100", "Old"]
    figures = {"use": 0.75, "memory": 1e9, "memory_total": 8e10, "watts": 350.0, "celsius": 60.0}
    assert {name: row[f"gpu0_{name}"] for name in figures} == figures
    assert row["gpu1_watts"] == 50.0
    assert math.isnan(row["gpu1_use"])
    assert row["joules"] >= 42
    assert monitor.about()["gpu1_memory"] == "Memory of the GPU that is in use (gpu1), bytes"
    assert "gpu" not in monitor.why_not
    text = monitor.exposition().decode()
    assert 'llmasos_gpu_watts{gpu="0",name="NVIDIA H100"} 350.0' in text
    assert 'llmasos_gpu_use_ratio{gpu="0",name="NVIDIA H100"} 0.75' in text
    assert 'llmasos_gpu_use_ratio{gpu="1"' not in text
    monitor.stop()
    assert module.opened == 0


def test_a_gpu_that_falls_off_the_bus_leaves_the_rest(gpus):
    _, found = gpus
    with Monitor(interval=60.0) as monitor:
        for gpu in found:
            gpu.clear()
        row = monitor.sample()
    assert math.isnan(row["gpu0_watts"])
    assert math.isnan(row["joules"])
    assert row["memory"] > 0
    assert "NVML no longer tells the energy of gpu0" in monitor.why_not["energy"]


def test_without_gpus_it_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.library([], driver=False))
    with Monitor(interval=60.0) as monitor:
        assert monitor.gpus == []
        assert monitor.why_not["gpu"] == "no NVIDIA driver: NVML Shared Library Not Found"
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.library([]))
    with Monitor(interval=60.0) as monitor:
        assert monitor.why_not["gpu"] == "NVIDIA's driver shows this process no GPU"


def test_jax_is_neither_imported_nor_started():
    code = (
        "import sys\n"
        "from llmasos_xla.runtime import Monitor, measure\n"
        "with Monitor() as monitor, measure():\n"
        "    monitor.sample()\n"
        "    monitor.exposition()\n"
        "assert 'jax' not in sys.modules, 'imported'\n"
        "import jax\n"
        "with Monitor() as monitor:\n"
        "    row = monitor.sample()\n"
        "assert not jax._src.xla_bridge.backends_are_initialized(), 'started'\n"
        "print(row['jax_live'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("nan\n", "")


def test_what_jax_holds(monkeypatch):
    monkeypatch.setattr("llmasos_xla.runtime.jax_memory._PATIENCE", 0.0)
    monitor = Monitor()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    array = jnp.zeros((1000, 1000))
    gc.collect()
    # What other tests left is not to go between two counts.
    gc.disable()
    try:
        # Whole on each of two devices, then once, by halves.
        held = [jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes))) for axes in ((), ("data",))]
        jax.block_until_ready(held)
        holding = monitor.sample()
        held.clear()
        after = monitor.sample()
    finally:
        gc.enable()
    monitor.stop()
    assert holding["jax_live"] - after["jax_live"] == 3 * array.nbytes
    assert after["jax_peak"] == holding["jax_peak"] >= holding["jax_live"]


def test_many_arrays_are_counted_less_often(monkeypatch):
    monitor = Monitor()
    jax.block_until_ready(jnp.zeros(3))
    monkeypatch.setattr("llmasos_xla.runtime.jax_memory._PATIENCE", 1e9)
    monitor._jax._next = 0.0
    counts = []
    monkeypatch.setattr(jax, "live_arrays", lambda: counts.append(1) or [])
    rows = [monitor.sample() for _ in range(3)]
    monitor.stop()
    assert len(counts) == 1
    assert {row["jax_live"] for row in rows} == {0.0}


def test_devices_that_count_themselves(monkeypatch):
    stats = {"bytes_in_use": 10, "peak_bytes_in_use": 30}
    monitor = Monitor()
    jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: stats)] * 2)
    row = monitor.sample()
    monitor.stop()
    assert (row["jax_live"], row["jax_peak"]) == (20, 60)
