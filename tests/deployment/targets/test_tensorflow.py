"""SavedModels and LiteRT files give our outputs in TensorFlow."""

import json

import numpy as np
import pytest
from deployment.targets import needs, samples

import llmasos_xla as lm

needs.installed("tensorflow")
pytestmark = pytest.mark.usefixtures("unchecked")

# BERT reads the first step of each row, which LiteRT cannot find in rows of any number.
FIXED = {"bert": {"rows": 2, "length": 6}, "gpt2": {"length": 7}}


@pytest.mark.parametrize("name", samples.EVERY)
def test_saved_model(tmp_path, name):
    result = lm.export(samples.EVERY[name](), tmp_path / "m", target="savedmodel")
    assert result.difference < 1e-5
    assert json.loads((result.path / "export.json").read_text())["target"] == "savedmodel"


@pytest.mark.parametrize("name", samples.EVERY)
def test_litert(tmp_path, name):
    result = lm.export(samples.EVERY[name](), tmp_path / "m.tflite", **FIXED.get(name, {}))
    assert result.difference < 1e-5
    assert result.path.read_bytes()[4:8] == b"TFL3"


def test_served_by_names(tmp_path):
    import tensorflow as tf

    path = lm.export(samples.cnn(), tmp_path / "m", target="savedmodel").path
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    for rows in (1, 5):
        x = samples.pictures(rows)
        np.testing.assert_allclose(served(input=tf.constant(x))["output"], samples.cnn().predict(x), atol=1e-6)


def test_what_litert_cannot_take(tmp_path):
    with pytest.raises(ValueError, match="LiteRT cannot take this model: .*with fixed sizes it may: rows="):
        lm.export(samples.bert(), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
