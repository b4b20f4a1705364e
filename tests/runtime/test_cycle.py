"""One job makes room for a more urgent one and gets it back, and has learnt what it would have learnt undisturbed."""

import os
import re
import subprocess
import sys

import pytest
from runtime_jobs import SCRIPT, wait_until

import llmasos_xla as lm
from llmasos_xla.progress import read
from llmasos_xla.runtime.store import Store


@pytest.mark.slow
def test_a_low_job_shrinks_for_an_urgent_one_and_grows_again(home, engine, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    engine()
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


WIDE = """
import numpy as np
import llmasos_xla as lm

x = np.zeros((512, 64), "float32")
model = lm.Sequential([lm.layers.Dense(100_000, activation="relu"), lm.layers.Dense(2)])
model.compile("sgd", "mean_squared_error")
model.fit(x, np.zeros((512, 2), "float32"), epochs=2, batch_size=256, verbose=0)
"""


@pytest.mark.slow
def test_six_jobs_that_do_not_fit_together_all_finish_within_the_memory(home, engine, tmp_path):
    """Each needs some 600 MB by what its compiled step says; 1.6 GB are there. No more of them train at a time."""
    script = tmp_path / "wide.py"
    script.write_text(WIDE)
    engine("--devices", "6", "--memory", str(1_600_000_000))
    jobs = [lm.runtime.submit(script, home=home.path, name=f"wide-{i}") for i in range(6)]
    assert [job.wait(timeout=200) for job in jobs] == ["done"] * 6
    store = Store(home.store)
    needs = [job.need["host"]["1"] for job in store.jobs()]
    assert all(450_000_000 < need < 800_000_000 for need in needs), needs
    # Who was admitted, and who had ended, in order: the bytes of those between are never more than there are.
    held, most = {}, 0
    for event in store.events():
        if event.what == "admitted":
            held[event.job] = event.more["host"]
        elif event.what in ("done", "queued"):
            held.pop(event.job, None)
        most = max(most, sum(held.values()))
    assert max(needs) <= most <= 1_600_000_000
    assert all(job.failures == 0 for job in store.jobs())
    store.close()
