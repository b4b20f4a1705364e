"""Jobs for tests of the queue, and who runs of them."""

import contextlib
import os
import re
import subprocess
import sys
import time

import llmasos_xla as lm
from llmasos_xla.progress import read
from llmasos_xla.runtime.jobs import Spec
from llmasos_xla.runtime.store import Store

SCRIPT = """
import sys, time
import numpy as np
import jax
import llmasos_xla as lm

folder, epochs = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
x = rng.normal(size=(960, 16)).astype("float32")
y = (x[:, :4].sum(1) > 0).astype("int32")
model = lm.Sequential([lm.layers.Dense(32, activation="relu"), lm.layers.Dense(2, activation="softmax")])
model.compile(lm.Optimizer("sgd", 0.05), "sparse_categorical_crossentropy")
print("devices", len(jax.devices()), flush=True)
history = model.fit(
    x, y, epochs=epochs, batch_size=120, checkpoint=folder, resume=True,
    shard="data" if len(jax.devices()) > 1 else None, callbacks=lambda event: time.sleep(0.1),
)
print(f"loss {history.history['loss'][-1]:.9f} of {len(history.history['loss'])} epochs")
"""
"""A fit that saves itself: a folder for that, and a number of epochs."""


def marked(token):
    """Processes of an attempt."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if f"LLMASOS_ATTEMPT={token}".encode() in file.read().split(b"\0"):
                found.append(int(name))
    return found


def spec(*command, **more):
    """A job that runs a shell's command."""
    return Spec(**{"name": "job", "command": ("sh", "-c", *command), "folder": "/", "user": "u", **more})


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def cycle(home, tmp_path):
    """A low job on three devices makes room for an urgent one that wants two, of four, and grows again.

    It goes on from the very step, and has learnt what it would have learnt undisturbed.
    """
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    low = lm.runtime.submit(
        script, tmp_path / "low", 120, name="low", devices=(1, 3), sizes=(1, 3), home=home.path
    )  # fmt: skip
    store = Store(home.store)

    def step():
        seen = read(home.job(1) / f"{store.job(1).token}")
        return seen[0].step if seen else 0

    # No flag: the fit tells that it saves itself.
    wait_until(lambda: step() > 40)
    urgent = lm.runtime.submit(script, tmp_path / "urgent", 20, name="urgent", priority=10, devices=2, home=home.path)
    assert urgent.wait(timeout=100) == "done"
    assert low.wait(timeout=100) == "done"
    what = [(event.what, event.more.get("devices")) for event in store.events(1)]
    assert [devices for kind, devices in what if kind == "starting"] == [3, 1, 3]
    assert [event.more["status"] for event in store.events(1) if "status" in event.more] == [75, 75, 0]
    log = low.logs()
    # From the very step: where one ended the next goes on.
    assert len(re.findall("told to end", log)) == len(re.findall("going on with the interrupted fit", log)) == 2
    store.close()
    alone = subprocess.run(
        [sys.executable, script, tmp_path / "alone", "120"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3", "NPROC": "12"},
    ).stdout
    losses = [float(re.search(r"loss (\S+) of 120 epochs", text)[1]) for text in (log, alone)]
    assert abs(losses[0] - losses[1]) < 1e-5


def pruned_search(home, folder):
    """Two trials, one after the other; one reports what is too much, and is cancelled while it runs. It is returned."""
    import optuna

    ended = folder / "ended"

    def objective(x):
        lm.runtime.report(0, 0.0)
        lm.runtime.report(3, x)
        if x:
            time.sleep(1000)
        with open(ended, "a") as file:
            file.write("x\n")
        return x

    study = lm.runtime.tune(
        objective,
        {"x": lm.runtime.uniform(0.0, 1.0)},
        trials=2,
        at_once=1,
        name="early",
        sampler=optuna.samplers.GridSampler({"x": [0.0, 1.0]}, seed=0),
        pruner=optuna.pruners.ThresholdPruner(upper=0.5),
        home=home.path,
    )
    good, bad = sorted(study.trials, key=lambda trial: trial.params["x"])
    assert (good.state, good.value, good.reports) == ("complete", 0.0, {0: 0.0, 3: 0.0})
    assert (bad.state, bad.value, bad.reports) == ("pruned", 1.0, {0: 0.0, 3: 1.0})
    assert bad.why == "pruned after step 3, 1"
    found = {job.number: job for job in lm.runtime.queue(home.path)}
    assert (found[good.job].state, found[bad.job].state) == ("done", "cancelled")
    assert ended.read_text() == "x\n"
    assert not any(marked(job.job.token) for job in found.values())
    return bad
