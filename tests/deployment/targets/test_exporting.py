"""The door of all exports: what goes where, what it refuses, and our own bundle."""

import json
import types

import jax
import numpy as np
import pytest
from deployment.targets import samples

import llmasos_xla as lm
from llmasos_xla.deployment.targets import checking
from llmasos_xla.deployment.targets.subject import subject_of
from llmasos_xla.storage.atomic import folder_atomically
from llmasos_xla.storage.bundle import Bundle

pytestmark = pytest.mark.usefixtures("unchecked")


def test_a_bundle_is_checked(tmp_path):
    result = lm.export(samples.cnn(), tmp_path / "digits.lmx")
    assert (result.path, result.target, result.checked_on) == (tmp_path / "digits.lmx", "bundle", jax.default_backend())
    assert 0 <= result.difference < 1e-6
    assert Bundle.open(result.path).content.name == "digits"
    assert [p.name for p in tmp_path.iterdir()] == ["digits.lmx"]


def test_a_bundle_for_other_machines_says_that_it_never_ran(tmp_path):
    assert np.isnan(lm.export(samples.cnn(), tmp_path / "digits.lmx", platforms=("tpu",)).difference)


def test_a_bundle_of_pictures_of_any_size(tmp_path):
    model = samples.thinned()
    bundle = Bundle.open(lm.export(model, tmp_path / "m.lmx").path)
    run = jax.jit(bundle.program())
    for size in ((32, 32), (13, 46)):
        x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
        found = run(dict(bundle.content.arrays), {"input": x})["output"]
        np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_a_bundle_of_relative_positions_for_any_length(tmp_path):
    model = samples.t5()
    bundle = Bundle.open(lm.export(model, tmp_path / "m.lmx").path)
    # Both are longer than the farthest distance that has a bucket of its own.
    for length, steps in ((1, 1), (25, 3), (4, 30)):
        x = {"ids": np.ones((2, length), np.int32), "decoder_input_ids": np.full((2, steps), 5, np.int32)}
        found = jax.jit(bundle.program(x))(dict(bundle.content.arrays), x)["output"]
        np.testing.assert_allclose(found, model.predict(x), rtol=1e-5, atol=1e-5)


def test_pure_functions_become_a_bundle(tmp_path):
    variables = lm.Variables({"w": np.arange(6, dtype=np.float32).reshape(3, 2)}, {})
    x = np.ones((4, 3), np.float32)
    result = lm.export(lambda variables, x: x @ variables.params["w"], variables, tmp_path / "f.lmx", example=x)
    assert result.difference == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["m.onxx"], {}, ValueError, r"'m.onxx' ends in none of .lmx \(bundle\), .onnx \(onnx\), .tflite"),
        (["m"], {"target": "openvno"}, ValueError, "unknown target 'openvno'; did you mean 'openvino'"),
        (["m.lmx"], {"target": "onnx"}, ValueError, "is a file that ends in .onnx; 'm.lmx' came"),
        (
            ["m.onnx"],
            {"presision": "int8"},
            TypeError,
            "target 'onnx' has no option 'presision'; it has calibration, ex",
        ),
        (["m.lmx"], {"rows": 3}, TypeError, "target 'bundle' has no option 'rows'; it has example, key, lengths"),
        (["m.onnx"], {"rows": 0}, ValueError, "rows wants a whole number from 1, or None for any; got 0"),
        (["nowhere/m.onnx"], {}, FileNotFoundError, "there is no folder"),
        ([], {}, TypeError, "a model goes with its path"),
        ([3], {}, TypeError, "a path is wanted, got int"),
    ],
)
def test_refuses(tmp_path, monkeypatch, arguments, options, error, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        lm.export(samples.cnn(), *arguments, **options)
    assert not list(tmp_path.iterdir())


def test_refuses_what_is_no_model(tmp_path):
    with pytest.raises(TypeError, match="wants a Sequential, Model, Network, Net or function, got int"):
        lm.export(3, tmp_path / "m.onnx")
    with pytest.raises(TypeError, match="pure functions go with their variables and a path"):
        lm.export(lambda v, x: x, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="pure functions want example="):
        lm.export(lambda v, x: x, lm.Variables({}, {}), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="export: the model has never seen data"):
        lm.export(lm.Sequential([lm.layers.Dense(2)]), tmp_path / "m.onnx")


def test_checks_are_of_different_sizes():
    free = subject_of(samples.bert())
    assert [r["ids"].shape for r, _ in free.checks] == [(4, 6), (1, 5)]
    assert free.names == ("ids", "attention_mask")
    fixed = subject_of(samples.cnn(), example=samples.pictures(7), rows=3)
    assert [r["input"].shape[0] for r, _ in fixed.checks[:3]] == [3, 3, 3]
    assert fixed.inputs[0].shape == (3, 12, 12, 1)


def test_example_says_which_inputs(tmp_path):
    ids = np.array([[1, 2, 3]], np.int32)
    assert subject_of(samples.bert(), example={"ids": ids}).names == ("ids",)
    with pytest.raises(ValueError, match=r"the example's 'ids' has the shape \('rows', 3\), the export is for"):
        subject_of(samples.bert(), example={"ids": ids}, length=4)


def test_the_copy_is_in_float32_whatever_the_model_trains_in():
    model = samples.cnn.__wrapped__()
    model.compile(loss="sparse_categorical_crossentropy", precision="bfloat16")
    text = str(subject_of(model, rows=1).traced().program)
    assert "bf16" not in text


def test_answers_that_are_no_numbers_are_refused():
    model = samples.cnn.__wrapped__()
    model.variables = jax.tree.map(lambda a: a * np.float32(np.nan), model.variables)
    with pytest.raises(ValueError, match="our own output 'output' has values that are no numbers"):
        subject_of(model)


def compared(answers, tolerance=0.1):
    subject = types.SimpleNamespace(checks=[({"x": np.zeros(1)}, {"y": np.array([1.0, -4.0, np.inf])})])
    return checking.compare(subject, lambda request: {"y": np.array(answers)}, "it", tolerance)


def test_the_largest_difference_counts():
    assert compared([1.2, -4.1, np.inf]) == pytest.approx(0.2)
    with pytest.raises(checking.DifferentOutputError, match=r"differs from ours by up to 0.5, more than the 0.4 of "):
        compared([1.0, -4.5, np.inf])
    with pytest.raises(checking.DifferentOutputError, match="is not finite where ours is"):
        compared([1.0, np.nan, np.inf])
    with pytest.raises(checking.DifferentOutputError, match="has the shape"):
        compared([1.0, -4.0])


def test_a_copy_that_cannot_run_is_refused():
    subject = types.SimpleNamespace(checks=[({"x": np.zeros(1)}, {})], way_out=lambda: " (pass rows=)")

    def run(request):
        raise RuntimeError("no such operator")

    with pytest.raises(ValueError, match=r"export: it: the copy cannot run: no such operator \(pass rows=\)"):
        checking.compare(subject, run, "it", 0.1)


def test_a_folder_that_is_refused_leaves_the_old_one(tmp_path):
    path = tmp_path / "copy"
    subject = subject_of(samples.cnn(), rows=1)

    def fill(folder):
        (folder / "a").write_text("new")
        return 0.25

    def fail(folder):
        (folder / "a").write_text("wrong")
        raise ValueError("no")

    assert checking.as_folder(path, subject, {"target": "it"}, fill) == 0.25
    with pytest.raises(ValueError, match="no"):
        checking.as_folder(path, subject, {"target": "it"}, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]
    assert (path / "a").read_text() == "new"
    manifest = json.loads((path / "export.json").read_text())
    assert (manifest["difference"], manifest["inputs"][0]["shape"]) == (0.25, [1, 12, 12, 1])
    (path / "export.json").unlink()
    with pytest.raises(FileExistsError, match="is there and is no earlier export"):
        checking.as_folder(path, subject, {"target": "it"}, fill)


def test_a_folder_takes_the_place_of_another(tmp_path):
    for text in ("one", "two"):
        folder_atomically(tmp_path / "f", lambda folder, text=text: (folder / text).write_text(text) and None)
        assert [p.name for p in (tmp_path / "f").iterdir()] == [text]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1, True, "0.1"])
def test_a_tolerance_that_every_copy_would_pass_is_none(tolerance):
    with pytest.raises(ValueError, match="export: tolerance is a number from 0"):
        checking.tolerance_of("float32", tolerance)
