"""OpenVINO's form gives our outputs on its CPU device."""

import json

import numpy as np
import pytest
from deployment.targets import needs, samples

import llmasos_xla as lm

needs.installed("jax2onnx", "onnxruntime", "nncf")
(openvino,) = needs.modules("openvino")
pytestmark = pytest.mark.usefixtures("unchecked")


def asked(path, **inputs):
    model = openvino.Core().compile_model(path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model(inputs)[0]


@pytest.mark.parametrize("name", samples.EVERY)
def test_parity(tmp_path, capfd, name):
    result = lm.export(samples.EVERY[name](), tmp_path / "m", target="openvino")
    assert result.difference < 1e-5
    assert result == (tmp_path / "m", "openvino", result.difference, "float32", "cpu")
    assert {p.name for p in result.path.iterdir()} == {"model.xml", "model.bin", "export.json"}
    assert capfd.readouterr() == ("", "")


def test_any_number_of_rows(tmp_path):
    path = lm.export(samples.lstm(), tmp_path / "m", target="openvino").path
    for rows in (1, 5, 33):
        x = samples.sequences(rows)
        np.testing.assert_allclose(asked(path, input=x), samples.lstm().predict(x), atol=1e-6)


def test_half_the_bytes(tmp_path):
    sizes = {}
    for precision in ("float32", "float16"):
        result = lm.export(samples.cnn(), tmp_path / precision, target="openvino", precision=precision)
        sizes[precision] = (result.path / "model.bin").stat().st_size
        assert result.difference < (1e-6 if precision == "float32" else 1e-3)
    assert sizes["float16"] < 0.6 * sizes["float32"]


@pytest.mark.parametrize(("name", "data"), [("cnn", samples.pictures), ("gpt2", samples.words)])
def test_eight_bits(tmp_path, name, data):
    model, x = samples.EVERY[name](), data(40)
    result = lm.export(model, tmp_path / "m", target="openvino", precision="int8", calibration=x)
    read = openvino.Core().read_model(result.path / "model.xml")
    assert "FakeQuantize" in {op.get_type_name() for op in read.get_ops()}
    assert "i8" in {op.get_element_type().get_type_name() for op in read.get_ops() if op.get_type_name() == "Constant"}
    assert 0 < result.difference < 0.1
    about = json.loads((result.path / "export.json").read_text())
    assert (about["precision"], about["difference"]) == ("int8", result.difference)


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="unknown precision 'int4'; did you mean 'int8'"):
        lm.export(samples.cnn(), tmp_path / "m", target="openvino", precision="int4")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no earlier export; choose another folder"):
        lm.export(samples.cnn(), tmp_path / "mine", target="openvino")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
