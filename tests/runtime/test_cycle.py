"""Real fits in the queue: one makes room and learns the same; those that do not fit together take turns."""

import pytest
from runtime_jobs import cycle

import llmasos_xla as lm
from llmasos_xla.runtime.store import Store


@pytest.mark.slow
def test_a_low_job_shrinks_for_an_urgent_one_and_grows_again(home, engine, tmp_path):
    engine()
    cycle(home, tmp_path)


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
