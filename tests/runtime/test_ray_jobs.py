"""The queue on a Ray cluster: the same laws as on one machine, and a node that is lost.

Ray has an environment of its own (`make ray`); elsewhere these tests are skipped.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from runtime_jobs import cycle, marked, pruned_search, wait_until

import llmasos_xla as lm
from llmasos_xla.runtime import service
from llmasos_xla.runtime.store import Store

pytest.importorskip(
    "ray", reason="Ray is not installed here; `make ray` runs these tests in an environment that has it"
)
pytestmark = pytest.mark.slow

ROOT = str(pathlib.Path(__file__).parents[2])
LEFT = """
import json, os, ray
ray.init(os.environ["RAY_ADDRESS"], namespace="llmasos", logging_level="ERROR", log_to_driver=False)
groups = [g["name"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
free, all_of_them = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
print("left", json.dumps([ray.util.list_named_actors(), groups, all_of_them - free, list(ray.cluster_resources())]))
"""


class Node:
    """`ray start`, one node of a cluster on this machine; `mark` is in the environment of all its processes."""

    def __init__(self, *options, hidden=None):
        self.mark = f"LLMASOS_TEST_NODE={secrets.token_hex(8)}"
        name, value = self.mark.split("=")
        command = [str(pathlib.Path(sys.executable).parent / "ray")]
        if hidden is not None:
            # As a machine that has another file system there.
            command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden), *command]
        self.process = subprocess.Popen(
            [*command, "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *options],
            env={**os.environ, name: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def pids(self, program=""):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                process = pathlib.Path("/proc", pid)
                marked_so = self.mark.encode() in (process / "environ").read_bytes().split(b"\0")
                if marked_so and program in (process / "cmdline").read_bytes().split(b"\0")[0].decode():
                    found.append(int(pid))
        return found

    def kill(self, program=""):
        """As if the machine were gone, or the program were: without a word."""
        while pids := self.pids(program):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if not program:
            self.process.wait()


@contextlib.contextmanager
def head(port):
    """A cluster's first node, of four CPUs."""
    # Sockets lie in it, whose names may not be long.
    folder = tempfile.mkdtemp(prefix="llmasos-", dir="/tmp")
    node = Node("--head", f"--port={port}", "--num-cpus=4", "--include-dashboard=false", f"--temp-dir={folder}")
    try:
        wait_until(lambda: left() is not None)
        yield node
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def settings():
    """Of Ray, for the tests and all that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        for name, value in {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(100 << 20),
            "RAY_enable_metrics_collection": "0",
            # How soon a node counts as lost; some 15 seconds else.
            "RAY_health_check_initial_delay_ms": "0",
            "RAY_health_check_period_ms": "300",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            # How soon an engine counts its cluster as lost; a minute else.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        }.items():
            patch.setenv(name, value)
        yield patch


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as door:
        return door.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(settings):
    """A cluster of one node: its address is in RAY_ADDRESS."""
    port = free_port()
    settings.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with head(port):
        yield os.environ["RAY_ADDRESS"]


def left():
    """What there is in Ray: jobs' actors, placement groups, CPUs; and resources. None without a cluster."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=60)
    # Ray prints there, too, what it thinks of its nodes.
    return json.loads(re.search("^left (.*)", done.stdout, re.M)[1]) if done.returncode == 0 else None


@pytest.fixture
def up(home, engine, cluster):
    """Starts an engine on the cluster; when the test is over nothing of its jobs may be left in Ray."""
    yield lambda *options: service.up(home, "--ray", cluster, "--least-run", "0", *options)
    wait_until(lambda: left()[:3] == [[], [], 0])


def token(home, number=1):
    store = Store(home.store)
    try:
        return store.job(number).token
    finally:
        store.close()


def places(home, number):
    store = Store(home.store)
    try:
        return store.job(number).places
    finally:
        store.close()


def test_how_jobs_end(home, up):
    assert up()["devices"] == 4
    jobs = [
        lm.runtime.submit(["sh", "-c", command], name=name, retries=0, devices=2, home=home.path)
        for name, command in [
            ("fine", "echo $LLMASOS_DEVICES $JAX_NUM_CPU_DEVICES; env | grep -c ^RAY_JOB_ID"),
            ("fails", "(setsid sleep 1000 &) ; sleep 1000 & exit 3"),
            ("killed", "kill -9 $$"),
        ]
    ]
    states = [(job.wait(timeout=60), job.job.status) for job in jobs]
    assert states == [("failed", 1), ("failed", 3), ("failed", 137)]
    # Of Ray's own variables the job has none.
    assert jobs[0].logs() == "2 2\n0\n"
    order = next(home.job(2).glob("*.order")).stem
    assert marked(order) == []


def test_a_low_job_shrinks_for_an_urgent_one_and_grows_again(home, up, tmp_path):
    up()
    cycle(home, tmp_path)


def test_a_search_prunes_its_trials(home, up, tmp_path):
    up()
    pruned_search(home, tmp_path)


def test_a_job_that_is_cancelled_may_save(home, up):
    up()
    job = lm.runtime.submit(
        ["sh", "-c", "trap 'echo saved; exit 75' TERM; echo x; while :; do sleep 0.05; done"], home=home.path
    )
    wait_until(lambda: job.logs() == "x\n")
    job.cancel()
    assert job.wait(timeout=60) == "cancelled"
    assert job.logs() == "x\nsaved\n"


def test_the_engine_killed_finds_its_jobs(home, up, tmp_path):
    """One goes on meanwhile, one ends meanwhile: both are through once."""
    found = up()
    go = tmp_path / "go"
    long, short = (
        lm.runtime.submit(["sh", "-c", f"echo begun; {wait}; echo through"], name=name, home=home.path)
        for name, wait in [("long", f"while [ ! -e {go} ]; do sleep 0.05; done"), ("short", "sleep 2")]
    )
    wait_until(lambda: long.logs() == short.logs() == "begun\n")
    os.kill(found["pid"], signal.SIGKILL)
    wait_until(lambda: short.logs() == "begun\nthrough\n")
    assert (short.state, long.state) == ("running", "running")
    up()
    assert short.wait(timeout=60) == "done"
    assert long.state == "running"
    go.touch()
    assert long.wait(timeout=60) == "done"
    assert long.logs() == short.logs() == "begun\nthrough\n"


def test_a_killed_keeper_and_its_actor_leave_nothing(home, up, tmp_path):
    up()
    once = tmp_path / "once"
    job = lm.runtime.submit(
        ["sh", "-c", f"[ -e {once} ] && exit 0; touch {once}; (setsid sleep 1000 &) ; echo x; sleep 1000"],
        home=home.path,
    )
    wait_until(lambda: job.logs() == "x\n")
    attempt = token(home)
    keeper = json.loads((home.job(1) / f"{attempt}.keeper").read_text())["pid"]
    actor = json.loads((home.job(1) / f"{attempt}.order").read_text())["watched"]["pid"]
    for pid in (keeper, actor):
        os.kill(pid, signal.SIGKILL)
    assert job.wait(timeout=60) == "done"
    assert marked(attempt) == []
    assert job.job.failures == 1


@pytest.mark.parametrize("program", ["raylet", ""])
def test_a_job_of_a_lost_node_goes_on_elsewhere(home, up, cluster, tmp_path, program):
    """Of the node its raylet is killed, or all at once; the job is a fit, and goes on from what it has saved."""
    up()
    all_here = lm.runtime.submit(["sleep", "1000"], name="all", devices=4, home=home.path)
    wait_until(lambda: all_here.state == "running")
    second = Node(f"--address={cluster}", "--num-cpus=2")
    try:
        go = tmp_path / "go"
        command = f"echo begun; while [ ! -e {go} ]; do sleep 0.05; done; (setsid sleep 1000 &) ; echo through"
        job = lm.runtime.submit(["sh", "-c", command], name="moved", devices=2, home=home.path)
        wait_until(lambda: job.logs() == "begun\n")
        first, before = token(home, 2), {name for name, _ in places(home, 2)}
        assert before.isdisjoint({name for name, _ in places(home, 1)})
        all_here.cancel()
        all_here.wait(timeout=60)
        second.kill(program)
        wait_until(lambda: job.logs() == "begun\nbegun\n")
        assert marked(first) == []
        assert before.isdisjoint({name for name, _ in places(home, 2)})
        go.touch()
        assert job.wait(timeout=60) == "done"
        assert job.logs() == "begun\nbegun\nthrough\n"
    finally:
        second.kill()


def test_gpus_are_those_that_ray_gives(home, up, cluster):
    second = Node(f"--address={cluster}", "--num-cpus=1", "--num-gpus=3")
    try:
        wait_until(lambda: "GPU" in left()[3])
        # Where there are GPUs nobody gets a processor's slots.
        assert up()["devices"] == 3
        jobs = [
            lm.runtime.submit(["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 2"], devices=n, home=home.path)
            for n in (2, 1)
        ]
        assert [job.wait(timeout=60) for job in jobs] == ["done", "done"]
        given = [job.logs().strip().split(",") for job in jobs]
        assert [len(each) for each in given] == [2, 1]
        assert sorted(given[0] + given[1]) == ["0", "1", "2"]
    finally:
        second.kill()
        wait_until(lambda: "GPU" not in left()[3])


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="another file system wants root")
def test_a_node_that_does_not_share_the_folder_is_not_used(home, up, cluster):
    up()
    second = Node(f"--address={cluster}", "--num-cpus=8", hidden=home.path)
    try:
        wait_until(lambda: "it does not see the lock of" in home.log.read_text())
        job = lm.runtime.submit(["true"], name="wide", devices=5, home=home.path)
        wait_until(lambda: "it wants 5 devices, and there are 4" in job.job.reason)
        job.cancel()
    finally:
        second.kill()


def test_submit_starts_the_engine_as_it_was_started_last(home, up, cluster):
    service.remember(home, ["--ray", cluster])
    job = lm.runtime.submit(["sh", "-c", "exit 0"], home=home.path)
    assert job.wait(timeout=60) == "done"
    assert places(home, 1)[0][0] != "local"


def test_what_never_fits_one_node_is_told(home, up, cluster):
    up()
    second = Node(f"--address={cluster}", "--num-cpus=2")
    try:
        job = lm.runtime.submit(["true"], name="wide", devices=5, home=home.path)
        wait_until(lambda: "on one node, and none has more than 4" in job.job.reason)
        job.cancel()
    finally:
        second.kill()


def test_without_a_cluster(home):
    with pytest.raises(RuntimeError, match=r"there is no Ray cluster at '127.0.0.1:1' \(.*refused\); start one with"):
        service.up(home, "--ray", "127.0.0.1:1")
    assert service.running(home) is None


def test_jobs_of_a_lost_cluster_go_on_with_the_next(home, engine, settings, monkeypatch):
    """All of Ray is killed; the engine ends by itself, and another one takes the jobs to a new cluster."""
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    go = home.path / "go"
    with head(port) as first:
        service.up(home, "--ray", f"127.0.0.1:{port}")
        command = f"echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo through"
        job = lm.runtime.submit(["sh", "-c", command], home=home.path)
        wait_until(lambda: job.logs() == "begun\n")
        first.kill()
        wait_until(lambda: service.running(home) is None)
    with head(port):
        service.up(home, "--ray", f"127.0.0.1:{port}")
        wait_until(lambda: job.logs() == "begun\nbegun\n")
        go.touch()
        assert job.wait(timeout=60) == "done"
        assert job.logs() == "begun\nbegun\nthrough\n"
