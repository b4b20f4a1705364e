"""What a fit tells the queue that runs it."""

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.progress import VARIABLE, Reports, read


@pytest.fixture
def beginning(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "fit"))
    return tmp_path / "fit"


def test_the_last_step_is_told_however_short_the_fit(beginning, rng):
    x = rng.normal(size=(60, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    model = lm.Sequential([lm.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(x, y, epochs=3, batch_size=10, validation_data=(x, y), verbose=0)
    (told,) = read(beginning).values()
    assert (told.step, told.epoch, told.saves) == (18, 2, False)
    np.testing.assert_allclose(told.loss, history.history["loss"][-1], rtol=1e-6)
    losses = [report.values["val_loss"] for report in Reports(beginning.parent).new()]
    np.testing.assert_allclose(losses, history.history["val_loss"], rtol=1e-6)
