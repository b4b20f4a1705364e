"""A model that gives several outputs is served with a name for each."""

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment.served import Served
from llmasos_xla.models import RTDETRConfig

TINY = RTDETRConfig.rtdetr_r18(
    depths=(1, 1), widths=(4, 8), stem=4, maps=2, attended=(1,), classes=3, queries=6, width=8, depth=1, heads=2,
    points=2, hidden=8, encoder_width=8, encoder_heads=2, encoder_hidden=8, input_shape=(16, 24, 3),
)  # fmt: skip


def test_a_detector_is_served():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3)).astype(np.uint8)
    model = lm.Network(TINY)
    found = model.predict(images)
    served = Served.of_model(model, "cells")
    assert [(t.name, t.shape) for t in served.face.outputs] == [("logits", (-1, 6, 3)), ("boxes", (-1, 6, 4))]
    answer = served.infer({"input": images})
    assert sorted(answer) == ["boxes", "logits"]
    for name, values in answer.items():
        np.testing.assert_array_equal(values, getattr(found, name))
    assert list(served.infer({"input": images}, ["boxes"])) == ["boxes"]
    with pytest.raises(ValueError, match="early_boxes"):
        served.infer({"input": images}, ["early_boxes"])
