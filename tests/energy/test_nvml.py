"""GPUs by NVML, as far as a module that answers like it can show."""

import pathlib
import re
import sys

import fake_nvml
import pytest

import llmasos_xla
from llmasos_xla.energy import Meter
from llmasos_xla.energy.figures import UnavailableError
from llmasos_xla.energy.nvml import GpuCounter, Nvml


@pytest.fixture
def nvml(monkeypatch):
    """Puts GPUs into the machine."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*gpus, driver=True):
        module = fake_nvml.library(gpus, driver)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_counter_of_a_gpu(nvml):
    gpu = {"millijoules": 5000}
    nvml(gpu)
    counter = GpuCounter(Nvml(), 0)
    gpu["millijoules"] = 12_500
    assert counter.read() == (7.5, "measured", "NVML's counter of gpu0")
    # The driver was loaded anew.
    gpu["millijoules"] = 500
    assert counter.read().joules == 8.0
    del gpu["millijoules"]
    assert counter.read().quality == "absent"


def test_power_over_time_where_there_is_no_counter(nvml):
    """Trapezoids: exact for a power that grows evenly."""
    gpu, clock = {"milliwatts": 0}, Clock()
    nvml(gpu)
    counter = GpuCounter(Nvml(), 0, clock)
    for second in range(1, 11):
        clock.now, gpu["milliwatts"] = float(second), 20_000 * second
        found = counter.read()
        assert found.joules == pytest.approx(20 * second**2 / 2)
        assert found.quality == "measured"
    clock.now += 30
    assert counter.read().quality == "estimated"


def test_a_gpu_that_tells_nothing_is_absent(nvml):
    nvml({})
    assert GpuCounter(Nvml(), 0).read().quality == "absent"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, "abc"),
        ("", ""),
        ("-1", ""),
        ("2,0", "ca"),
        ("1,-1,2", "b"),
        ("0,7,1", "a"),
        ("GPU-bb", "b"),
        ("MIG-2", "c"),
    ],
)
def test_the_gpus_that_this_process_sees(nvml, monkeypatch, names, found):
    """As CUDA reads its variable: up to the first that is none."""
    nvml(*({"uuid": f"GPU-{name}{name}-0", "parts": [f"MIG-{i}"]} for i, name in enumerate("abc")))
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert "".join(handle["uuid"][4] for handle in Nvml().handles) == found


def test_without_a_driver_or_a_package(nvml, monkeypatch):
    nvml(driver=False)
    with pytest.raises(UnavailableError, match="no NVIDIA driver: NVML Shared Library Not Found"):
        Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnavailableError, match=r'pip install "llmasos_xla\[runtime\]"'):
        Nvml()


def test_a_real_library_without_a_driver_says_so():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(UnavailableError, match="no NVIDIA driver"):
            Nvml()
    else:
        pynvml.nvmlShutdown()
        assert Meter(gpus="all").parts().keys() > {"cpu"}


def test_the_real_library_has_what_is_asked_of_it():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    fake = fake_nvml.library([])
    assert [name for name in vars(fake) if name.startswith(("nvml", "NVML")) and not hasattr(pynvml, name)] == []
    package = pathlib.Path(llmasos_xla.__file__).parent
    sources = [package / "energy" / "nvml.py", package / "runtime" / "gpus.py"]
    asked = {name for source in sources for name in re.findall(r"\bnvml[A-Z]\w+|\bNVML_\w+", source.read_text())}
    assert asked <= set(dir(pynvml)) & set(dir(fake))


def test_a_meter_over_processor_and_gpus(nvml, tmp_path):
    gpus = [{"millijoules": 0}, {"millijoules": 0}, {"millijoules": 0}]
    module = nvml(*gpus)
    meter = Meter(gpus=[0, 2], rapl=tmp_path)
    for number, gpu in enumerate(gpus):
        gpu["millijoules"] = 1000 * 10**number
    parts = meter.parts()
    assert {name: part.joules for name, part in parts.items() if name != "cpu"} == {"gpu0": 1.0, "gpu2": 100.0}
    found = meter.read()
    assert found.joules >= 101
    assert found.quality == parts["cpu"].quality
    assert Meter(gpus="all", rapl=tmp_path).parts().keys() == {"cpu", "gpu0", "gpu1", "gpu2"}
    meter.close()
    assert module.opened == 1


def test_a_gpu_that_is_used_and_not_measured_leaves_the_sum_unknown(nvml, tmp_path):
    """Else the joules of the processor would pass for those of the fit."""
    nvml(driver=False)
    found = Meter(gpus=[0], rapl=tmp_path).read()
    assert found.quality == "absent"
    assert str(found) == "energy unknown (no NVIDIA driver: NVML Shared Library Not Found)"
    assert Meter(gpus="all", rapl=tmp_path).read().quality == "estimated"
    nvml({"millijoules": 0})
    assert Meter(gpus=[1], rapl=tmp_path).read().source == "NVML knows no gpu1"
