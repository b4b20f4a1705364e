"""Jobs by way of a real Slurm, which the tests start for themselves; skipped where it is not installed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from runtime_jobs import SCRIPT, pruned_search, wait_until
from slurm_cluster import Cluster, why_not

import llmasos_xla as lm
from llmasos_xla.progress import read
from llmasos_xla.runtime import service
from llmasos_xla.runtime.store import Store

pytestmark = pytest.mark.slow

HOST = socket.gethostname().split(".")[0]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    found = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        found.up()
        yield found
    finally:
        found.down()


@pytest.fixture
def queue(slurm, home, monkeypatch, request):
    """A queue of the real cluster's, nothing of which is left behind."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    options = [f"--sbatch={option}" for option in getattr(request, "param", ())]
    service.up(home, "--slurm", *options, "--slurm-interval", "0.3", "--least-run", "1")
    store = Store(home.store)
    yield store
    for job in store.jobs():
        store.ask(job.number, "cancel")
    wait_until(lambda: all(job.ended for job in store.jobs()))
    store.close()
    service.down(home)


def sub(home, *command, **more):
    return lm.runtime.submit(["sh", "-c", *command], home=home.path, **more)


def test_a_search_prunes_its_trials(home, slurm, queue, tmp_path):
    pruned_search(home, tmp_path)


def test_it_runs_cancels_and_keeps_the_order(home, slurm, queue):
    assert service.running(home)["devices"] == 6
    # One whole cluster's worth, so that the others wait.
    first = sub(home, "trap 'exit 75' TERM; while :; do sleep 0.1; done", name="full", devices=6, layout="processes")
    wait_until(lambda: first.state == "running")
    assert len(first.job.places) == 6
    assert {node for node, _ in first.job.places} == set(slurm.nodes)
    log = home.path / "order"
    low = sub(home, f"echo low >> {log}; sleep 1", name="low", devices=2)
    wait_until(lambda: "in Slurm's queue" in low.job.reason)
    high = sub(home, f"echo high >> {log}; sleep 1", name="high", devices=2, priority=5)
    fills = [sub(home, "sleep 1000", name=f"fills{i}", devices=2, priority=9) for i in range(2)]
    wait_until(lambda: slurm.said("squeue", "-h", "-o", "%y", "-n", "low").strip() == "900")
    first.cancel()
    assert first.wait(timeout=60) == "cancelled"
    assert (high.wait(timeout=60), low.wait(timeout=60)) == ("done", "done")
    assert log.read_text() == "high\nlow\n"
    for job in fills:
        job.cancel()
        assert job.wait(timeout=60) == "cancelled"
    assert low.job.status == 0


def test_it_goes_on_from_the_same_step(home, slurm, queue, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    job = lm.runtime.submit(script, tmp_path / "fit", 60, devices=2, home=home.path)

    def step():
        return max((each.step for each in read(job.records / str(job.job.token)).values()), default=0)

    wait_until(lambda: step() > 40)
    # Not the engine's wish but Slurm's, as before a time limit; the job is put back, and no engine need be there.
    number = json.loads(job.job.handle)["slurm"]
    found = service.running(home)
    os.kill(found["pid"], signal.SIGKILL)
    assert slurm.said("scancel", "--batch", "--signal=TERM", number) == ""
    wait_until(lambda: "going on with the interrupted fit" in job.logs())
    service.up(home, "--slurm", "--slurm-interval", "0.3", "--least-run", "1")
    assert service.running(home)["launcher"] == "slurm"
    # Now the engine's.
    wait_until(lambda: step() > 200)
    queue.ask(job.number, "drain")
    assert job.wait(timeout=100) == "done"
    log = job.logs()
    stopped, resumed = (re.findall(pattern, log) for pattern in (r"told to end", r"going on with the interrupted fit"))
    assert len(stopped) == len(resumed) == 2
    assert [event.more["status"] for event in queue.events(job.number) if "status" in event.more] == [75, 0]
    assert (job.job.attempt, job.job.failures) == (2, 0)
    alone = subprocess.run(
        [sys.executable, script, tmp_path / "alone", "60"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", "NPROC": "8"},
    ).stdout
    losses = [float(re.search(r"loss (\S+) of 60 epochs", text)[1]) for text in (log, alone)]
    assert abs(losses[0] - losses[1]) < 1e-5


def test_it_moves_from_a_node_that_fails(home, slurm, queue):
    ran = home.path / "ran"
    job = sub(
        home, f"trap '' TERM; echo $$ $SLURMD_NODENAME >> {ran}; while [ ! -e {home.path}/go ]; do sleep 0.1; done"
    )
    wait_until(lambda: job.state == "running" and ran.exists())
    pid, node = ran.read_text().split()
    slurm.node_dies(node)
    # Its slurmd is gone, its processes are not: they have to be before the job begins elsewhere.
    wait_until(lambda: len(ran.read_text().splitlines()) == 2, seconds=120)
    assert not os.path.exists(f"/proc/{pid}")
    assert ran.read_text().splitlines()[1].split()[1] != node
    wait_until(lambda: job.state == "running" and job.job.failures == 1)
    assert [event.what for event in queue.events(job.number)].count("requeued") == 1
    (home.path / "go").touch()
    assert job.wait(timeout=60) == "done"
    assert len(ran.read_text().splitlines()) == 2
    slurm.node_up(node)
    wait_until(slurm.idle)


def test_it_grows_into_what_becomes_idle(home, slurm, queue):
    full = [sub(home, "sleep 1000", name=f"full{i}", devices=2) for i in range(2)]
    one = sub(home, "sleep 1000", name="one")
    wait_until(lambda: all(job.state == "running" for job in (*full, one)))
    wait_until(lambda: slurm.said("sinfo", "-h", "-p", "all", "-o", "%C").startswith("5/1/"))
    job = sub(
        home,
        "trap 'exit 75' TERM; echo on $LLMASOS_DEVICES; while :; do sleep 0.1; done",
        name="elastic",
        devices=(1, 2),
        preemptible=True,
    )
    wait_until(lambda: "on 1\n" in job.logs())
    one.cancel()
    wait_until(lambda: "on 2\n" in job.logs())
    assert job.job.failures == 0


def test_it_stays_with_slurm_when_the_engine_goes_down(home, slurm, queue):
    job = sub(home, f"while [ ! -e {home.path}/go ]; do sleep 0.1; done")
    wait_until(lambda: job.state == "running")
    assert service.down(home)
    assert job.state == "running"
    with pytest.raises(RuntimeError, match="Slurm still runs jobs of this queue, 1 of them; wait, or cancel them"):
        service.up(home)
    (home.path / "go").touch()
    service.up(home, "--slurm", "--slurm-interval", "0.3")
    assert job.wait(timeout=60) == "done"


@pytest.mark.parametrize("queue", [[f"--nodelist={HOST}"]], indirect=True)
def test_ranks_save_the_same_step_when_slurm_wants_their_devices(home, slurm, queue, tmp_path):
    """A more urgent partition takes the node from a fit of two processes, and gives it back."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    job = lm.runtime.submit(script, tmp_path / "fit", 40, devices=2, layout="processes", home=home.path)

    def steps():
        return [each.step for each in read(job.records / str(job.job.token)).values()]

    wait_until(lambda: len(steps()) == 2 and min(steps()) > 40)
    asked = ["--partition=urgent", f"--nodelist={HOST}", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 2"]
    number = slurm.said("sbatch", "--parsable", *asked).strip()
    wait_until(lambda: "going on with the interrupted fit" in job.logs(), seconds=120)
    assert slurm.said("squeue", "-h", "--states=all", "-o", "%T", "-j", number).strip() == "COMPLETED"
    assert job.wait(timeout=100) == "done"
    assert (job.job.attempt, job.job.failures) == (1, 0)
    saved, read_again = (re.findall(rf"{word} step (\d+)", job.logs()) for word in ("saved", "read"))
    assert read_again == saved[:1]
    assert len(re.findall(r"loss \S+ of 40 epochs", job.logs())) == 2


@pytest.mark.parametrize("queue", [["--time=1"]], indirect=True)
def test_a_time_limit_costs_nothing_but_time(home, slurm, queue, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    job = lm.runtime.submit(script, tmp_path / "fit", 200, devices=1, grace=20, home=home.path)
    wait_until(lambda: "going on with the interrupted fit" in job.logs(), seconds=150)
    assert job.job.failures == 0
    job.cancel()
    assert job.wait(timeout=60) == "cancelled"
