"""ONNX files give our outputs in ONNX Runtime."""

import json
import sys

import numpy as np
import pytest
from deployment.targets import needs, samples

import llmasos_xla as lm
from llmasos_xla.deployment.targets.checking import DifferentOutputError

needs.installed("jax2onnx")
onnx, runtime = needs.modules("onnx", "onnxruntime")
pytestmark = pytest.mark.usefixtures("unchecked")


def asked(path, **inputs):
    return runtime.InferenceSession(path.read_bytes()).run(None, inputs)[0]


@pytest.mark.parametrize("name", samples.EVERY)
def test_parity(tmp_path, capfd, name):
    result = lm.export(samples.EVERY[name](), tmp_path / "m.onnx")
    assert result.difference < 1e-5
    assert result == (tmp_path / "m.onnx", "onnx", result.difference, "float32", "cpu")
    assert capfd.readouterr() == ("", "")


def test_any_number_of_rows(tmp_path):
    path = lm.export(samples.cnn(), tmp_path / "m.onnx").path
    for rows in (1, 5, 33):
        x = samples.pictures(rows)
        np.testing.assert_allclose(asked(path, input=x), samples.cnn().predict(x), atol=1e-6)


def test_any_length_up_to_the_context(tmp_path):
    model = samples.gpt2()
    path = lm.export(model, tmp_path / "m.onnx").path
    for length in (1, 5, 16):
        ids = np.random.default_rng(length).integers(1, 24, (2, length)).astype(np.int32)
        given = asked(path, ids=ids, attention_mask=np.ones_like(ids))
        np.testing.assert_allclose(given, model.predict(ids), atol=1e-5)


def test_pictures_of_any_size(tmp_path):
    model = samples.thinned()
    path = lm.export(model, tmp_path / "m.onnx").path
    for size in ((32, 32), (13, 46)):
        x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
        np.testing.assert_allclose(asked(path, input=x), model.predict(x), rtol=1e-5, atol=1e-5)


def test_relative_positions_for_any_length(tmp_path):
    model = samples.t5()
    path = lm.export(model, tmp_path / "m.onnx").path
    for length, steps in ((1, 1), (25, 3), (4, 30)):
        x = {"ids": np.ones((2, length), np.int32), "decoder_input_ids": np.full((2, steps), 5, np.int32)}
        given = asked(path, attention_mask=np.ones_like(x["ids"]), **x)
        np.testing.assert_allclose(given, model.predict(x), rtol=1e-5, atol=1e-5)


def test_one_size_alone(tmp_path):
    path = lm.export(samples.bert(), tmp_path / "m.onnx", rows=2, length=5).path
    graph = onnx.load(path).graph
    sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert sizes == {"ids": [2, 5], "attention_mask": [2, 5]}


def test_the_file_says_what_it_takes(tmp_path):
    model = onnx.load(lm.export(samples.cnn(), tmp_path / "m.onnx").path)
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["inputs"] == [{"name": "input", "dtype": "uint8", "shape": ["rows", 12, 12, 1]}]
    assert about["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["rows", 10]}]


def test_pure_functions(tmp_path):
    variables = lm.Variables({"w": np.arange(6, dtype=np.float32).reshape(3, 2)}, {})
    x = np.ones((4, 3), np.float32)
    result = lm.export(lambda v, x: {"sum": x @ v.params["w"]}, variables, tmp_path / "f.onnx", example=x)
    np.testing.assert_array_equal(asked(result.path, input=x[:2]), x[:2] @ variables.params["w"])


def test_a_copy_that_differs_is_not_handed_over(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(DifferentOutputError, match="tolerance=0; nothing was written"):
        lm.export(samples.resnet(), path, tolerance=0.0)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(("model", "data"), [("cnn", samples.pictures), ("lstm", samples.sequences)])
def test_eight_bits(tmp_path, model, data):
    model, x = samples.EVERY[model](), data(40)
    result = lm.export(model, tmp_path / "m.onnx", precision="int8", calibration=x)
    content = onnx.load(result.path)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {n.op_type for n in content.graph.node}
    assert any(i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1 for i in content.graph.initializer)
    name = content.graph.input[0].name
    gap = np.abs(asked(result.path, **{name: x[:32]}) - model.predict(x[:32])).max()
    assert 0 < gap < 0.1
    assert result.difference == pytest.approx(gap, rel=0.5)


def test_eight_bits_want_data(tmp_path):
    with pytest.raises(ValueError, match='precision="int8" wants calibration='):
        lm.export(samples.cnn(), tmp_path / "m.onnx", precision="int8")
    with pytest.raises(ValueError, match='calibration goes with precision="int8"'):
        lm.export(samples.cnn(), tmp_path / "m.onnx", calibration=samples.pictures())
    with pytest.raises(ValueError, match="calibration has 3 rows; the export is for rows=8"):
        lm.export(samples.cnn(), tmp_path / "m.onnx", precision="int8", calibration=samples.pictures(3), rows=8)
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        lm.export(samples.cnn(), tmp_path / "m.onnx", precision="int4")
    assert not list(tmp_path.iterdir())


def test_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r'pip install "llmasos_xla\[onnx\]" && pip install --no-deps "jax2onnx'):
        lm.export(samples.cnn(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
