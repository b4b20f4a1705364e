"""Models of the shelf in their own sizes, with random weights, in ONNX Runtime."""

import numpy as np
import pytest
from deployment.targets import needs

import llmasos_xla as lm

needs.installed("jax2onnx", "onnx", "onnxruntime")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


def pictures(*shape):
    return np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)


WORDS = np.random.default_rng(0).integers(1, 60, (2, 24)).astype(np.int32)


@pytest.mark.parametrize(
    ("name", "x", "options"),
    [
        ("seed_cnn", pictures(28, 28, 1), {}),
        ("lstm_lm", WORDS, {"length": 24}),
        ("resnet18", pictures(224, 224, 3), {}),
        ("bert", WORDS, {}),
        ("gpt2", WORDS, {}),
    ],
)
def test_parity(tmp_path, name, x, options):
    model = getattr(lm.models, name)()
    largest = np.abs(model.predict(x)).max()
    result = lm.export(model, tmp_path / "m.onnx", example=x, **options)
    # With random weights a ResNet's logits are as large as 70: float32 has no five places behind the point then.
    assert result.difference <= 1e-5 * max(1, largest)
