"""Attempts as processes of this machine: whatever is killed, nothing of them is left, and how they ended is known."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import pytest
from runtime_jobs import marked, spec, wait_until

from llmasos_xla.runtime.claims import Node
from llmasos_xla.runtime.launchers import keeper
from llmasos_xla.runtime.launchers.local import Local, command_of
from llmasos_xla.runtime.launchers.protocol import LOST, Attempt


@pytest.fixture
def launcher(home):
    # An engine's lock that somebody holds: this process.
    import fcntl

    lock = open(home.lock, "w")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield Local(home, Node("local", (0,) * 4, 1 << 30))
    lock.close()


@pytest.fixture
def attempt(home):
    started = []

    def make(*command, number=1, devices=(0,), **more):
        found = Attempt(
            number, secrets.token_hex(8), spec(*command, **more), tuple(("local", d) for d in devices),
            home.job(number),
        )  # fmt: skip
        started.append(found)
        return found

    yield make
    for each in started:
        for pid in marked(each.token):
            os.kill(pid, signal.SIGKILL)


def ended(launcher, attempt, handle):
    return wait_until(lambda: [s] if (s := launcher.poll(attempt, handle)) is not None else None)[0]


def log(attempt):
    return (attempt.folder / "log").read_text()


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", 137)])
def test_how_it_ended(launcher, attempt, command, status):
    one = attempt(command)
    handle = launcher.start(one)
    assert ended(launcher, one, handle) == status
    # And again, for whoever did not live to write it down; without the handle, too.
    assert launcher.poll(one, handle) == launcher.poll(one, None) == status


def test_what_it_is_told(launcher, attempt):
    one = attempt("echo $LLMASOS_DEVICES {devices} $JAX_NUM_CPU_DEVICES $ME; pwd; cat", devices=(1, 2), folder="/tmp")
    one = one._replace(
        spec=spec(*one.spec.command[2:], folder="/tmp", environment={"ME": "ä", "PATH": os.environ["PATH"]})
    )
    assert ended(launcher, one, launcher.start(one)) == 0
    assert log(one) == "2 2 2 ä\n/tmp\n"


@pytest.mark.parametrize(("seen", "given"), [(None, "1,3"), ("5, 7,GPU-ab,4", "7,4")])
def test_gpus_are_called_as_the_engine_sees_them(home, attempt, monkeypatch, seen, given):
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    launcher = Local(home, Node("local", (80 << 30,) * 4, 1 << 30))
    one = attempt("echo $CUDA_VISIBLE_DEVICES:$JAX_NUM_CPU_DEVICES", devices=(3, 1))
    assert ended(launcher, one, launcher.start(one)) == 0
    assert log(one) == f"{given}:\n"


@pytest.mark.parametrize(
    ("sharing", "bytes_", "told"), [(False, 20 << 30, ":"), (True, None, "false:"), (True, 20 << 30, "false:0.2500")]
)
def test_a_job_that_shares_a_gpu_takes_its_part(home, attempt, monkeypatch, sharing, bytes_, told):
    for name in ("PREALLOCATE", "MEM_FRACTION"):
        monkeypatch.delenv(f"XLA_PYTHON_CLIENT_{name}", raising=False)
    launcher = Local(home, Node("local", (80 << 30,), 1 << 30), sharing=sharing)
    one = attempt("echo $XLA_PYTHON_CLIENT_PREALLOCATE:$XLA_PYTHON_CLIENT_MEM_FRACTION")._replace(device_bytes=bytes_)
    assert ended(launcher, one, launcher.start(one)) == 0
    assert log(one) == f"{told}\n"


def test_its_variables_are_its_own(launcher, attempt, monkeypatch):
    """Not the engine's, nor what the fit was told that had submitted it."""
    monkeypatch.setenv("PYTHONPATH", "/of/the/engine")
    one = attempt("echo $PYTHONPATH:$LLMASOS_ASKED:$LLMASOS_JOB_LAYOUT")
    variables = {"PYTHONPATH": "/of/the/job", "LLMASOS_ASKED": "1", "PATH": os.environ["PATH"]}
    one = one._replace(spec=spec(*one.spec.command[2:], memory=1, environment=variables))
    assert ended(launcher, one, launcher.start(one)) == 0
    assert log(one).startswith("/of/the/job:")
    assert log(one).endswith("::devices\n")
    assert "/of/the/engine" not in log(one)


def test_what_cannot_be_run(launcher, attempt):
    one = attempt("")
    one = one._replace(spec=spec("", command=("/no/such/thing", "x")))
    assert ended(launcher, one, launcher.start(one)) == 127
    assert "'/no/such/thing' cannot be run: [Errno 2] No such file" in log(one)


def test_a_gang_of_processes_is_launched():
    from llmasos_xla.runtime.launchers.protocol import Attempt

    def run(*command):
        places = (("local", 0), ("local", 1))
        return command_of(Attempt(1, "t", spec("", command=command, layout="processes"), places, None))

    launch = [sys.executable, "-m", "llmasos_xla", "launch", "-n", "2"]
    assert run(sys.executable, "train.py", "--n={devices}") == [*launch, "train.py", "--n=2"]
    assert run(sys.executable, "-m", "mine") == [*launch, "-m", "mine"]


def test_asked_to_end_it_may_save(launcher, attempt):
    one = attempt("trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done")
    handle = launcher.start(one)
    wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
    assert launcher.poll(one, handle) is None
    launcher.drain(one, handle)
    launcher.drain(one, None)
    assert ended(launcher, one, handle) == 75
    assert log(one) == "ready\nsaved\n"


@pytest.mark.parametrize(
    ("ends", "status"), [("exit 75", 75), ("exit 1", 143), ("", 143)], ids=["saved", "failed", "too late"]
)
def test_what_a_shell_has_started_may_save_when_the_shell_is_gone(launcher, attempt, ends, status):
    """A shell dies of SIGTERM at once, and hands it on to nobody."""
    inner = f"trap 'sleep 0.3; echo through; {ends}' TERM; echo ready; while :; do sleep 0.05; done"
    one = attempt(f'sh -c "{inner}"; echo never', grace=60.0 if ends else 1.0)
    handle = launcher.start(one)
    wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
    launcher.drain(one, handle)
    assert ended(launcher, one, handle) == status
    assert log(one) == "ready\nthrough\n"
    assert marked(one.token) == []


def test_who_does_not_end_is_ended_after_its_grace(launcher, attempt):
    one = attempt("trap '' TERM; echo ready; while :; do sleep 0.05; done", grace=0.3)
    handle = launcher.start(one)
    wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
    launcher.drain(one, handle)
    began = time.monotonic()
    assert ended(launcher, one, handle) == 137
    assert time.monotonic() - began > 0.25


def test_what_it_leaves_behind_is_ended_with_it(launcher, attempt):
    # In the background, in a session of its own, and with its parent gone.
    one = attempt("(setsid sleep 1000 &) ; sleep 1000 & echo ready; exit 3")
    assert ended(launcher, one, launcher.start(one)) == 3
    assert marked(one.token) == []


def test_a_killed_keeper_leaves_nothing(launcher, attempt):
    one = attempt("(setsid sleep 1000 &) ; echo ready; sleep 1000")
    handle = launcher.start(one)
    wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
    assert len(marked(one.token)) >= 2
    os.kill(json.loads(handle)["pid"], signal.SIGKILL)
    assert ended(launcher, one, handle) == LOST
    assert marked(one.token) == []


def test_killed_at_once(launcher, attempt):
    one = attempt("(setsid sleep 1000 &) ; echo ready; sleep 1000")
    handle = launcher.start(one)
    wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
    launcher.kill(one, handle)
    assert ended(launcher, one, handle) == LOST
    assert marked(one.token) == []


def test_who_was_given_up_does_not_begin(launcher, attempt, home):
    """A keeper that comes late, started by an engine that was killed, finds that nobody waits for it any more."""
    one = attempt("echo ran >> ran; sleep 1000", folder=str(home.path))
    one.folder.mkdir(parents=True)
    assert launcher.poll(one, None) == LOST
    handle = launcher.start(one)
    pid = json.loads(handle)["pid"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == keeper.NOT_WANTED
    assert not (home.path / "ran").exists()
    assert launcher.poll(one, handle) == LOST


def test_one_attempt_of_a_job_at_a_time(launcher, attempt, home):
    first, second = (attempt("echo x >> ran; sleep 1000", folder=str(home.path)) for _ in range(2))
    handle = launcher.start(first)
    wait_until(lambda: (home.path / "ran").exists())
    late = launcher.start(second)
    assert os.waitstatus_to_exitcode(os.waitpid(json.loads(late)["pid"], 0)[1]) == keeper.NOT_WANTED
    # As long as the first one lives nobody may say of the second that it is gone.
    assert launcher.poll(second, late) is None
    launcher.kill(first, handle)
    assert ended(launcher, first, handle) == LOST
    assert ended(launcher, second, late) == LOST
    assert (home.path / "ran").read_text() == "x\n"


def test_without_an_engine_it_saves_and_ends(home, attempt):
    alone = Local(home, Node("local", (0,), 1 << 30), alone=0.5)
    one = attempt("trap 'exit 75' TERM; while :; do sleep 0.05; done")
    assert ended(alone, one, alone.start(one)) == 75


def test_what_another_launcher_started_is_waited_for(launcher, attempt):
    one = attempt("trap 'exit 75' TERM; echo ready; while :; do sleep 0.05; done")
    launcher.start(one)
    wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
    handle = json.dumps({"node": "of a cluster"})
    assert launcher.poll(one, handle) is None
    launcher.drain(one, handle)
    assert ended(launcher, one, handle) == 75


@pytest.mark.parametrize("begins", [True, False], ids=["there", "gone"])
def test_a_keeper_ends_with_what_it_is_told_to_watch(launcher, attempt, begins):
    one = attempt("(setsid sleep 1000 &) ; echo ready; sleep 1000")
    watched = subprocess.Popen(["sleep", "1000"])
    try:
        one.folder.mkdir(parents=True)
        order = {
            "watched": {"pid": watched.pid, "born": keeper.born(watched.pid) if begins else "1"},
            "engine": "/none", "alone": 60.0, "grace": 60.0, "command": one.spec.command, "folder": "/",
            "environment": dict(os.environ), "cpus": [],
        }  # fmt: skip
        keeper.write(one.folder / f"{one.token}.order", order)
        module = "llmasos_xla.runtime.launchers.keeper"
        kept = subprocess.Popen([sys.executable, "-P", "-m", module, one.folder, one.token])
        if begins:
            wait_until(lambda: one.folder.joinpath("log").exists() and "ready" in log(one))
            assert len(marked(one.token)) >= 2
            watched.kill()
        assert kept.wait(60) == 1
        # Dead is enough: that nobody has waited for it does not make it live.
        assert marked(one.token) == []
        assert launcher.poll(one, None) == LOST
    finally:
        watched.kill()
        watched.wait()


def test_another_process_with_its_number_is_not_taken_for_the_keeper(launcher, attempt):
    one = attempt("exit 0")
    other = subprocess.Popen(["sleep", "1000"])
    try:
        handle = json.dumps({"pid": other.pid, "born": "1"})
        launcher.drain(one, handle)
        launcher.kill(one, handle)
        assert launcher.poll(one, handle) == LOST
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
