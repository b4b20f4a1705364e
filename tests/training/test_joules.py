"""What a fit says of its energy."""

import re
import sys
import types
from typing import NamedTuple

import fake_nvml
import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.energy import Energy, Meter
from llmasos_xla.training.history import History
from llmasos_xla.training.joules import Joules
from llmasos_xla.training.report import Quiet, listening

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def fit(**options):
    model = lm.Sequential([lm.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    return model.fit(X, Y, batch_size=4, **options)


@pytest.fixture
def used(monkeypatch):
    """Sets what the meter reads."""

    def read(*energy):
        monkeypatch.setattr(Meter, "read", lambda self: Energy(*energy))

    return read


@pytest.mark.parametrize(("quality", "mark"), [("measured", ""), ("estimated", r" \(estimated\)")])
def test_the_last_line_tells_it(used, capsys, quality, mark):
    used(3.0, quality, "a counter")
    history = fit(epochs=3)
    *_, before, last = capsys.readouterr().out.splitlines()
    assert "J/sample" not in before
    assert re.search(rf"Epoch 3/3 .*accuracy \d\.\d{{4}}  0\.05 J/sample{mark}$", last)
    assert history.samples == 60
    assert history.joules_per_sample == 3.0 / 60
    assert f"3 J {quality} (a counter)" in str(history)


def test_nothing_is_told_where_nothing_is_known(used, capsys):
    used(float("nan"), "absent", "no counter")
    history = fit()
    assert "J/sample" not in capsys.readouterr().out
    assert history.joules_per_sample is None
    assert "energy unknown (no counter)" in str(history)


def test_a_fit_that_a_callback_stops(used, capsys):
    used(3.0, "measured", "a counter")
    fit(epochs=9, callbacks=[lambda event: "stop" if event.kind == "epoch" and event.epoch == 1 else None])
    assert capsys.readouterr().out.splitlines()[-1] == "stopped by a callback after epoch 2  0.075 J/sample"


def test_a_fit_that_fails_has_it_in_its_history(used):
    used(3.0, "measured", "a counter")

    def broken(event):
        if event.kind == "epoch":
            raise OSError("disk full")

    model = lm.Sequential([lm.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(OSError, match="disk full"):
        model.fit(X, Y, batch_size=4, verbose=0, epochs=2, callbacks=broken)
    assert model.learner.unfinished.history.joules_per_sample == 3.0 / 20


def test_here_it_is_known():
    """By a counter, or by CPU time."""
    history = fit(epochs=2, verbose=0)
    assert history.energy.quality in ("measured", "estimated")
    assert history.joules_per_sample >= 0


def test_a_long_epoch_is_kept_up_with(monkeypatch):
    """A counter that comes round is read within the epoch, too."""
    kept = []
    monkeypatch.setattr("llmasos_xla.training.loop._SECONDS_BETWEEN_REPORTS", 0.0)
    monkeypatch.setattr(Meter, "keep_up", lambda self: kept.append(1))
    fit(verbose=0, steps_per_dispatch=1)
    assert len(kept) == 4


class Device(NamedTuple):
    platform: str
    local_hardware_id: int


def arrays(platform, *numbers):
    """A state that lies on devices which are not here."""
    return {"a": types.SimpleNamespace(devices=lambda: {Device(platform, number) for number in numbers})}


def test_a_fit_on_gpus_counts_its_own(monkeypatch):
    gpus = [{"millijoules": 0}, {"millijoules": 0}, {"millijoules": 0}]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.library(gpus))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    joules, history = Joules(arrays("gpu", 2, 1)), History()
    for number, gpu in enumerate(gpus):
        gpu["millijoules"] = 10 ** (6 + number)
    assert "J/sample" in joules.told(history, 10)
    assert history.energy.joules == pytest.approx(110_000, abs=100)
    assert "NVML's counter of gpu1 + NVML's counter of gpu2" in history.energy.source
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Joules(arrays("gpu", 0)).told(history, 10) == ""


def test_devices_that_nobody_measures():
    history = History()
    assert Joules(arrays("tpu", 0)).told(history, 10) == ""
    assert str(history.energy) == "energy unknown (nobody tells what devices of tpu use)"


def test_several_processes_are_not_summed(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    history = History()
    joules = Joules({"a": jnp.ones(3)})
    assert joules.told(history, 10) == ""
    assert str(history.energy) == "energy unknown (of several processes each knows its own machine alone)"


def test_who_listens_hears_every_fit(capsys):
    heard = []

    class Listener(Quiet):
        def begin(self, first_epoch, last_epoch, steps):
            heard.append(("begin", first_epoch, last_epoch, steps))

        def epoch_end(self, epoch, seconds, samples_per_second, logs, energy=""):
            heard.append(("epoch_end", epoch, logs["loss"]))

        def end(self):
            heard.append("end")

    with listening(Listener()):
        history = fit(epochs=2, verbose=0)
        fit(verbose=1)
    assert "Epoch 1/1" in capsys.readouterr().out
    fit(verbose=0)
    losses = history.history["loss"]
    assert heard[:4] == [("begin", 0, 2, 5), ("epoch_end", 0, losses[0]), ("epoch_end", 1, losses[1]), "end"]
    assert heard[4:] == [("begin", 0, 1, 5), heard[5], "end"]
