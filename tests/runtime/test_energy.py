"""The joules of a block, by counters, by CPU time, by zeus."""

import sys
import time
import types

import fake_nvml
import pytest

import llmasos_xla as lm
from llmasos_xla.runtime.energy import ByZeus


@pytest.fixture
def zeus(monkeypatch):
    """A zeus whose windows are what a test writes."""
    windows = types.SimpleNamespace(
        open=0, gpu_indices=[0], cpu_indices=[0], soc_is_present=False, gpu={}, cpu=None, dram=None, chip=None
    )

    class Monitor:
        gpu_indices = property(lambda self: windows.gpu_indices)
        cpu_indices = property(lambda self: windows.cpu_indices)
        soc_is_present = property(lambda self: windows.soc_is_present)

        def begin_window(self, key, sync_execution):
            assert not sync_execution
            windows.open += 1

        def end_window(self, key, sync_execution):
            windows.open -= 1
            return types.SimpleNamespace(
                gpu_energy=windows.gpu, cpu_energy=windows.cpu, dram_energy=windows.dram, soc_energy=windows.chip
            )

    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", types.SimpleNamespace(ZeusMonitor=Monitor))
    return windows


def test_a_block_that_works_uses_more_than_one_that_waits():
    with lm.runtime.measure() as waiting:
        time.sleep(0.3)
    with lm.runtime.measure() as working:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        within = working.energy
    if working.energy.quality == "estimated":
        assert working.energy.joules > 3 * waiting.energy.joules
        assert working.energy.joules >= 0.3 * 3.5 * 0.99
    assert within.joules <= working.energy.joules
    after = working.energy
    time.sleep(0.1)
    assert working.energy == after


def test_a_block_on_gpus(monkeypatch):
    gpu = {"millijoules": 0}
    module = fake_nvml.library([gpu])
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with lm.runtime.measure() as used:
        gpu["millijoules"] = 7000
    assert used.energy.joules >= 7
    assert "NVML's counter of gpu0" in used.energy.source
    assert module.opened == 0


def test_zeus(zeus):
    """Windows follow each other without a gap, and their parts are summed."""
    counter = ByZeus()
    zeus.gpu, zeus.cpu, zeus.dram = {0: 1.0, 1: 2.0}, {0: 4.0}, {0: 0.5}
    assert counter.read() == (7.5, "measured", "zeus, of gpu0, gpu1, cpu0, dram0")
    zeus.cpu = zeus.dram = None
    assert counter.read().joules == 10.5
    assert zeus.open == 1


def test_a_chip_by_zeus(zeus):
    """Millijoules; a chip's whole stands for its parts, and parts that lie in others are left out."""
    counter = ByZeus()
    zeus.chip = types.SimpleNamespace(cpu_total_mj=1000, gpu_mj=2000, ane_mj=None, dram_mj=500, efficiency_cores_mj=[9])
    assert counter.read() == (3.5, "measured", "zeus, of chip")
    zeus.chip = types.SimpleNamespace(cpu_energy_mj=100.0, gpu_energy_mj=100.0, total_energy_mj=500.0)
    assert counter.read().joules == 4.0


def test_zeus_without_counters_is_told(zeus):
    zeus.gpu_indices = zeus.cpu_indices = []
    with lm.runtime.measure(source="zeus") as used:
        pass
    assert str(used.energy) == "energy unknown (zeus finds no counter of energy on this machine)"


def test_zeus_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(ImportError, match=r"needs zeus .*: pip install --no-deps zeus, and what it wants but amdsmi"):
        lm.runtime.measure(source="zeus").__enter__()


@pytest.mark.filterwarnings("default")
def test_the_real_zeus():
    pytest.importorskip("zeus", reason="zeus is not installed")
    with lm.runtime.measure(source="zeus") as used:
        pass
    assert used.energy.quality in ("measured", "absent")


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match="measure: unknown source 'rapl'; Known: auto, zeus"):
        lm.runtime.measure(source="rapl")
    with lm.runtime.measure() as used:
        pass
    assert used.energy.quality in ("measured", "estimated")
    assert lm.runtime.measure().energy.source == "nothing was measured yet"
