"""A timeline beside a fit."""

import math
import sys
import threading
import types

import fake_nvml
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

import llmasos_xla as lm
from llmasos_xla.training.report import _LISTENERS

pytest.importorskip("psutil", reason="psutil is not installed")

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def fit(**options):
    model = lm.Sequential([lm.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model.fit(X, Y, batch_size=4, verbose=0, **options)


def losses(w):
    """Those in the samples, each once, in their order."""
    return list(dict.fromkeys(w.samples["loss"][~np.isnan(w.samples["loss"])].tolist()))


@pytest.fixture(scope="module")
def watched():
    """A fit of which every epoch is a sample, and what it returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmasos_xla.runtime.watching._SECONDS_BETWEEN_EPOCHS", 0.0)
        with lm.runtime.watch(interval=60.0) as w:
            history = fit(epochs=4)
    return w, history


def test_losses_arrive_without_a_callback(watched):
    w, history = watched
    table = w.samples
    assert losses(w) == history.history["loss"]
    known = ~np.isnan(table["loss"])
    assert table["step"][known].tolist() == [16, 32, 48, 64, 64]
    assert table["epoch"][known].tolist() == [1, 2, 3, 4, 4]
    assert (table["step_seconds"][known] > 0).all()
    # The first sample came before the fit, the last one behind it.
    assert math.isnan(table["loss"][0])
    assert math.isnan(table["loss"][-1])
    assert w.fits == 1


def test_columns_lie_beside_each_other_in_time(watched):
    w, _ = watched
    table = w.samples
    assert len({len(column) for column in table.values()}) == 1
    assert table["seconds"][0] == 0
    assert (np.diff(table["seconds"]) >= 0).all()
    assert table["process_memory"][-1] > 10**7
    assert np.nanmax(table["jax_live"]) > 0
    assert (np.diff(table["joules"]) >= 0).all()
    assert w.energy.joules == table["joules"][-1]


def test_a_summary_says_what_there_is_and_what_there_is_not(watched):
    w, history = watched
    lines = w.summary().splitlines()
    assert lines[0].endswith("s, 7 samples, 1 fit")
    assert f"energy   {w.energy}" in lines
    first, *_, last = history.history["loss"]
    assert any(line.startswith(f"loss     {first:.4f} -> {last:.4f}, ") for line in lines)
    assert [line for line in lines if line.startswith("not told")] == [
        f"not told: {what} ({why})" for what, why in w.monitor.why_not.items()
    ]


def test_a_frame_and_a_file_hold_the_samples(watched, tmp_path):
    w, _ = watched
    w.save(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), pd.DataFrame(w.samples))
    about = pyarrow.parquet.read_schema(tmp_path / "x.parquet").metadata
    assert about[b"energy"].decode() == str(w.energy)
    assert about[b"loss"] == b"Loss of the epoch so far"
    frame = w.frame()
    np.testing.assert_array_equal(frame["loss"], w.samples["loss"])
    assert abs(frame.index[0].timestamp() - w.samples["time"][0]) < 1e-3


def test_a_plot_shows_the_samples(watched):
    w, history = watched
    axes = {axis.get_ylabel(): axis for axis in w.plot().axes}
    assert {"loss", "CPUs", "MiB", "W"} <= axes.keys()
    (line,) = axes["loss"].get_lines()
    assert list(dict.fromkeys(line.get_ydata())) == history.history["loss"]
    assert axes["loss"].get_title() == str(w.energy)


def test_a_plot_with_gpus(monkeypatch):
    gpu = {"name": "H100", "millijoules": 0, "milliwatts": 5000, "use": types.SimpleNamespace(gpu=50)}
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.library([gpu]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with lm.runtime.watch(interval=60.0) as w:
        pass
    (axis,) = [axis for axis in w.plot().axes if axis.get_ylabel() == "GPU, %"]
    (line,) = axis.get_lines()
    assert set(line.get_ydata()) == {50.0}
    assert "gpu0     50% busy" in w.summary()
    assert "5 W on average: H100" in w.summary()
    assert "CPU      not known of so short a time" in w.summary()


def test_what_was_never_entered_has_nothing():
    w = lm.runtime.watch()
    assert w.summary() == "nothing was watched yet"
    assert len(w.samples["seconds"]) == 0
    assert w.plot() is not None
    w.monitor.stop()


def test_nobody_listens_behind_the_block():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), lm.runtime.watch(interval=60.0) as w:
        raise ZeroDivisionError
    assert not _LISTENERS
    assert threading.active_count() == before
    fit()
    assert w.fits == 0


def test_a_fit_within_a_fit():
    """A callback's own fit is told while it lasts, then the outer one again."""
    inner = []

    def nested(event):
        if event.kind == "epoch" and event.epoch == 0:
            inner.append(fit())

    with lm.runtime.watch(interval=60.0) as w:
        outer = fit(callbacks=nested, epochs=2)
    assert w.fits == 2
    assert losses(w)[-1] == outer.history["loss"][-1]
    assert inner[0].history["loss"][0] in losses(w)


def test_watches_may_lie_in_each_other():
    with lm.runtime.watch(interval=60.0) as outer:
        fit()
        with lm.runtime.watch(interval=60.0) as inner:
            history = fit()
    assert (outer.fits, inner.fits) == (2, 1)
    assert losses(inner)[-1] == losses(outer)[-1] == history.history["loss"][-1]


def test_a_fit_that_fails_leaves_what_was_seen():
    def broken(event):
        if event.kind == "epoch" and event.epoch == 1:
            raise OSError("disk full")

    with lm.runtime.watch(interval=60.0) as w, pytest.raises(OSError, match="disk full"):
        fit(epochs=5, callbacks=broken)
    assert np.nanmax(w.samples["step"]) == 32
    assert "\nloss " in w.summary()


def test_a_fit_in_another_thread_is_heard():
    with lm.runtime.watch(interval=60.0) as w:
        thread = threading.Thread(target=fit)
        thread.start()
        thread.join()
    assert w.fits == 1
    assert np.nanmax(w.samples["step"]) == 16


def test_missing_packages(watched, monkeypatch):
    w, _ = watched
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Watch.frame needs pandas: pip install pandas  \(or samples, a dict"):
        w.frame()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'Watch.plot needs matplotlib: pip install "llmasos_xla\[plot\]"'):
        w.plot()
