"""IREE's modules give our outputs."""

import json

import pytest
from deployment.targets import needs, samples

import llmasos_xla as lm

_, runtime = needs.modules("iree.compiler", "iree.runtime")
pytestmark = pytest.mark.usefixtures("unchecked")

LENGTHS = {"bert": {"length": 6}, "gpt2": {"length": 7}}


@pytest.mark.parametrize("name", samples.EVERY)
def test_parity(tmp_path, name):
    result = lm.export(samples.EVERY[name](), tmp_path / "m", target="iree", rows=2, **LENGTHS.get(name, {}))
    assert result.difference < 1e-5
    assert (result.target, result.checked_on) == ("iree", "llvm-cpu")
    assert {p.name for p in result.path.iterdir()} == {"module.vmfb", "module.mlir", "export.json"}
    assert "/tests/" not in (result.path / "module.mlir").read_text()


def test_one_row_unless_another_is_said(tmp_path):
    result = lm.export(samples.cnn(), tmp_path / "m", target="iree", backend="vmvx")
    about = json.loads((result.path / "export.json").read_text())
    assert about["inputs"][0]["shape"] == [1, 12, 12, 1]
    assert about["outputs"] == [{"name": "output", "dtype": "float32", "shape": [1, 10]}]


def test_what_cannot_run_here_is_checked_on_the_cpu(tmp_path):
    if "metal" in runtime.query_available_drivers():
        pytest.skip("it can run here")
    result = lm.export(samples.cnn(), tmp_path / "m", target="iree", backend="metal-spirv")
    assert (result.checked_on, result.difference < 1e-5) == ("llvm-cpu", True)
    assert json.loads((result.path / "export.json").read_text())["checked_on"] == "llvm-cpu"


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="unknown backend 'vulkan'; did you mean 'vulkan-spirv'"):
        lm.export(samples.cnn(), tmp_path / "m", target="iree", backend="vulkan")
    with pytest.raises(ValueError, match="iree compiles for fixed sizes: pass rows=, and length="):
        lm.export(samples.gpt2(), tmp_path / "m", target="iree")
    with pytest.raises(ValueError, match="iree cannot compile this model for rocm: .*--iree-rocm-target"):
        lm.export(samples.cnn(), tmp_path / "m", target="iree", backend="rocm")
    assert not list(tmp_path.iterdir())
