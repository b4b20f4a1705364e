"""The queue as it is used, from Python and from a shell, with an engine of its own; and the engine killed."""

import concurrent.futures
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from runtime_jobs import marked, wait_until

import llmasos_xla as lm
from llmasos_xla.runtime import call, client, service
from llmasos_xla.runtime.jobs import ON_DEVICES
from llmasos_xla.runtime.launchers import keeper
from llmasos_xla.runtime.store import Store


def shell(home, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "llmasos_xla", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "LLMASOS_HOME": str(home.path), "JAX_PLATFORMS": "cpu"},
    )
    return done.returncode, done.stdout, done.stderr


def test_a_function_is_run_and_its_result_comes_back(home, engine):
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    engine()
    factor = 3
    job = lm.runtime.submit(lambda x, y: (factor * x + y, lm.runtime.here().name), 4, 5, name="sum", home=home.path)
    assert job.result(timeout=60) == (17, "sum")
    assert job.state == "done"

    def fails():
        raise KeyError("nothing there")

    bad = lm.runtime.submit(fails, home=home.path, retries=0)
    with pytest.raises(
        lm.runtime.JobError, match=r"job 2 \(fails\) failed: it ended with status 1: KeyError: 'nothing"
    ):
        bad.result(timeout=60)
    assert lm.runtime.here() is None
    assert [each.number for each in lm.runtime.queue(home.path)] == [1, 2]


def test_what_is_called_is_kept_no_longer_than_it_is_wanted(home, engine, monkeypatch):
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    with pytest.raises(ValueError, match="a name is of letters"):
        lm.runtime.submit(len, b"x", name="no name", home=home.path, start=False)
    assert [*(home.path / "calls").iterdir()] == []
    # Of a container that runs as a number.
    monkeypatch.setattr(client.getpass, "getuser", lambda: {}["no such user"])
    job = lm.runtime.submit(len, b"x" * 100_000, name="long", home=home.path, start=False)
    assert job.job.spec.user == str(os.getuid())
    (file,) = (home.path / "calls").iterdir()
    engine()
    assert job.result(timeout=60) == 100_000
    assert not file.exists()
    # A run whose keeper was killed when it was through, and whose status nobody knows, is not one that has failed.
    monkeypatch.setenv("LLMASOS_PROGRESS", str(job.records / "token"))
    call.main(str(file))
    (job.records / "result").unlink()
    with pytest.raises(FileNotFoundError):
        call.main(str(file))


def test_what_a_job_leaves_behind_is_its_own(home, engine, tmp_path):
    """Whatever it is called: the queue has files of such names itself."""
    engine()
    script = tmp_path / "leaves.py"
    script.write_text(
        "import os, pathlib\n"
        "folder = pathlib.Path(os.environ['LLMASOS_JOB_FOLDER'])\n"
        "for name in ('log', 'lock', 'result', 'keeper.log'):\n"
        "    (folder / name).write_text('mine')\n"
        "print('said')\n"
    )
    job = lm.runtime.submit(script, home=home.path)
    assert job.result(timeout=60) is None
    assert job.logs() == "said\n"
    assert sorted(path.name for path in job.folder.iterdir()) == ["keeper.log", "lock", "log", "result"]


def test_names_are_made_of_what_is_there(home, tmp_path, monkeypatch):
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")

    def _größe():
        return 0

    monkeypatch.chdir(tmp_path)
    for name in ("größe.py", f"{'a' * 150}.py"):
        (tmp_path / name).touch()
    found = [
        lm.runtime.submit(what, home=home.path, start=False).name for what in (_größe, *sorted(tmp_path.glob("*.py")))
    ]
    assert found == ["gr__e", "a" * 100, "gr__e"]
    (tmp_path / "run.sh").touch()
    with pytest.raises(PermissionError, match=r"'\./run\.sh' may not be run; chmod"):
        lm.runtime.submit(["./run.sh"], home=home.path)


def test_a_job_submits_jobs_of_its_own(home, engine):
    """They are not the ranks that it is, and have not its devices; a job can be handed to another."""
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    engine()

    def inner():
        return os.environ.get("RANK"), os.environ.get("JAX_NUM_CPU_DEVICES"), lm.runtime.here().layout

    def outer(before):
        alone = lm.runtime.submit(inner)
        return before.result(), alone.result(timeout=60), alone

    ready = lm.runtime.submit(inner, home=home.path)
    assert ready.wait(timeout=60) == "done"
    job = lm.runtime.submit(outer, ready, devices=2, layout="processes", home=home.path)
    *found, alone = job.result(timeout=100)
    assert found == [(None, "1", "devices")] * 2
    assert alone.state == "done"


def test_many_jobs_are_looked_at(home):
    for _ in range(50):
        lm.runtime.submit(["true"], home=home.path, start=False)
    before = len(os.listdir("/proc/self/fd"))
    assert [job.state for job in lm.runtime.queue(home.path)] == ["queued"] * 50
    assert len(os.listdir("/proc/self/fd")) <= before


def test_from_a_shell(home, engine, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import os, sys\nprint('on', os.environ['LLMASOS_DEVICES'], *sys.argv[1:])\n")
    assert shell(home, "down") == (0, "no engine runs\n", "")
    status, out, err = shell(home, "up", "--devices", 4, "--memory", "8Gi", "--least-run", 0)
    assert (status, err) == (0, "")
    assert out.startswith("the engine is up: 4 devices, 8.0 GiB, pid ")
    assert shell(home, "up")[1].startswith("the engine runs already: 4 devices")
    assert shell(home, "submit", "--devices", "2-3", script, "--lr", "0.1") == (0, "job 1 train\n", "")
    assert shell(home, "logs", "train", "-f") == (0, "on 3 --lr 0.1\n", "")
    assert shell(home, "submit", "--name", "long", "sleep", 1000) == (0, "job 2 long\n", "")
    assert shell(home, "submit", "--name", "next", "--after", "long", "--", "sh", "-c", "echo never")[0] == 0
    status, out, err = shell(home, "queue")
    *lines, page = out.splitlines()
    assert re.fullmatch(r"the engine's page: http://127\.0\.0\.1:\d+/", page)
    rows = [line.split() for line in lines]
    assert rows[0][:4] == ["number", "name", "state", "priority"]
    assert [row[1:3] for row in rows[1:]] == [["train", "done"], ["long", "running"], ["next", "waiting"]]
    found = json.loads(shell(home, "queue", "--json", "--all")[1])
    assert [(job["name"], job["devices"], job["status"]) for job in found][:2] == [
        ("train", [], 0),
        ("long", [["local", 0]], None),
    ]
    assert shell(home, "priority", "next", "7") == (0, "job 3 next has priority 7, 0 before\n", "")
    assert client.Submitted(3, home).job.spec.priority == 7
    assert shell(home, "priority", "train", "1") == (1, "job 1 train has ended: done\n", "")
    assert shell(home, "cancel", "long") == (0, "job 2 long is told to end\n", "")
    wait_until(lambda: client.Submitted(3, home).state == "cancelled")
    status, out, _ = shell(home, "cancel", "long")
    assert (status, out) == (1, "job 2 long has ended: cancelled\n")
    assert shell(home, "down") == (0, "the engine is down\n", "")
    assert "no engine runs" in shell(home, "queue")[1]


def test_whoever_reads_may_have_seen_enough(home):
    job = lm.runtime.submit(["true"], home=home.path, start=False)
    (home.job(job.number)).mkdir()
    (home.job(job.number) / "log").write_text("line\n" * 100_000)
    command = [sys.executable, "-m", "llmasos_xla", "logs", "1", "-f", "--home", str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        assert logs.stderr is not None
        assert logs.stdout.readline() == "line\n"
        logs.stdout.close()
        assert logs.stderr.read() == ""
        assert logs.wait(60) == 141


def test_ended_jobs_can_be_forgotten(home, engine):
    engine("--no-page")
    big = "head -c 3000000 /dev/zero > $LLMASOS_JOB_FOLDER/left"
    jobs = [lm.runtime.submit(["sh", "-c", big], name=name, home=home.path) for name in ("old", "kept", "first")]
    called = lm.runtime.submit(abs, -2, home=home.path)
    assert [job.wait(timeout=60) for job in (*jobs, called)] == ["done"] * 4
    service.down(home)
    later = lm.runtime.submit(["true"], after=[jobs[2]], home=home.path, start=False)
    assert shell(home, "forget")[0] == 2
    assert shell(home, "forget", "old", called.number)[1] == "2 jobs are forgotten, 3.0 MB\n"
    assert not jobs[0].records.exists()
    assert not list((home.path / "calls").iterdir())
    with pytest.raises(ValueError, match="unknown job '1'"):
        jobs[0].state  # noqa: B018
    status, out, _ = shell(home, "forget", "first", later.number)
    assert (status, out) == (
        1,
        "job 3 (first) stays: another job is to follow it\njob 5 (true) stays: it is waiting; cancel it first\n"
        "0 jobs are forgotten, 0.0 MB\n",
    )
    assert shell(home, "forget", "--older", 1)[1] == "0 jobs are forgotten, 0.0 MB\n"
    later.cancel()
    assert shell(home, "forget", "--older", 0)[1] == "3 jobs are forgotten, 6.0 MB\n"
    assert lm.runtime.queue(home.path) == []
    store = Store(home.store)
    assert store.events() == []
    store.close()


def test_who_waits_without_an_engine_is_told(home, monkeypatch, capsys):
    monkeypatch.setattr(client, "_PATIENCE_SECONDS", 0.0)
    job = lm.runtime.submit(["true"], home=home.path, start=False)
    with pytest.raises(TimeoutError):
        job.wait(timeout=0.5)
    assert capsys.readouterr().err == "wait: no engine runs job 1; `llmasos up` starts one\n"


@pytest.mark.parametrize(
    ("given", "command", "found"),
    [
        (["{}", "--priority", "7", "--lr", "0.1"], ["--lr", "0.1"], (7, (1, 1), "train")),
        (["--devices", "1-4", "{}", "7", "--name=x", "-v"], ["7", "-v"], (0, (1, 4), "x")),
        (["{}", "--devices=2", "--", "--name", "x", "--"], ["--name", "x", "--"], (0, (2, 2), "train")),
        (["--", "{}", "--name", "x"], ["--name", "x"], (0, (1, 1), "train")),
        (["{}", "--help"], ["--help"], (0, (1, 1), "train")),
    ],
)
def test_options_stand_before_or_behind_a_script(home, tmp_path, monkeypatch, given, command, found):
    from llmasos_xla import cli

    (tmp_path / "train.py").touch()
    monkeypatch.setattr("llmasos_xla.runtime.service.up", lambda *_: {})
    assert cli.main(["submit", "--home", str(home.path), *(each.format(tmp_path / "train.py") for each in given)]) == 0
    spec = client.Submitted(1, home).job.spec
    assert list(spec.command[2:]) == command
    assert (spec.priority, spec.devices, spec.name) == found


def test_what_stands_behind_another_command_is_its_own(home, monkeypatch):
    from llmasos_xla import cli

    monkeypatch.setattr("llmasos_xla.runtime.service.up", lambda *_: {})
    assert cli.main(["submit", "--home", str(home.path), "grep", "--name", "a.py"]) == 0
    assert client.Submitted(1, home).job.spec.command == ("grep", "--name", "a.py")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["submit", "none.py"], "submit: there is no script 'none.py'"),
        (["submit", "no-such-command"], "submit: there is no command 'no-such-command'; a script's name ends in .py"),
        (["submit", "--after", "7", "true"], "submit: jobs: unknown job '7'"),
        (
            ["submit", "--devices", "3", "--sizes", "2", "--", "true"],
            "submit: a size of 2 devices is not within 3 to 3",
        ),
        (["up", "--ray", "auto", "--devices", "4"], "up: --devices and --memory are of this machine; with --ray"),
        (["up", "--ray", "auto", "--slurm"], "up: one of --local, --slurm and --ray"),
        (
            ["up", "--ray", "auto", "--share"],
            "up: --share is about GPUs of this machine; Slurm and Ray share their own",
        ),
        (["up", "--cores", "2"], "up: --cores, --gpus and --sbatch are about Slurm; say --slurm, too"),
        (["cancel", "nobody"], "cancel: jobs: unknown job 'nobody'"),
        (["logs", "1"], "logs: jobs: unknown job '1'"),
    ],
)
def test_what_cannot_be_done_is_told(home, arguments, reason):
    status, out, err = shell(home, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"llmasos {reason}")
    assert err.count("\n") == 1


def test_an_engine_comes_up_as_it_did_last_time(home, engine):
    shell(home, "up", "--devices", 3, "--no-page")
    status, out, _ = shell(home, "up", "--devices", 2)
    assert status == 1
    assert "it keeps to what it was started with, --devices 3 --no-page; `llmasos down` comes first\n" in out
    assert shell(home, "up")[0] == 0
    shell(home, "down")
    assert "is up (as last time: --devices 3 --no-page): 3 devices" in shell(home, "up")[1]
    shell(home, "down")
    # One that cannot be is no last time.
    assert "a machine has at least one device, --devices 0 came" in shell(home, "up", "--devices", 0)[2]
    assert lm.runtime.submit(["true"], home=home.path).wait(timeout=60) == "done"
    assert service.running(home)["devices"] == 3
    shell(home, "down")
    assert "is up (as last time" not in shell(home, "up", "--local", "--no-page")[1]


def test_going_down_jobs_wait_for_the_next_engine(home, engine):
    engine()
    job = lm.runtime.submit(["sh", "-c", "trap 'exit 75' TERM; echo x; while :; do sleep 0.05; done"], home=home.path)
    wait_until(lambda: job.logs() == "x\n")
    service.down(home)
    assert job.state == "queued"
    engine()
    wait_until(lambda: job.logs() == "x\nx\n")
    job.cancel()
    assert job.wait(timeout=60) == "cancelled"


# Each job writes a line when it begins, and one when it is through; asked to end it saves, and says so.
JOB = """
trap 'echo saved >> {lines}; exit 75' TERM
echo begun >> {lines}
i=0; while [ $i -lt 12 ]; do sleep 0.05; i=$((i+1)); done
echo through >> {lines}
"""


@pytest.mark.thorough
def test_the_engine_killed_again_and_again_loses_nothing(home, engine, tmp_path):
    """Jobs come and run while the engine is killed, 20 times, at random moments: each is through once, none is left."""
    rng = random.Random(0)
    jobs = []
    for _ in range(20):
        found = engine()
        for _ in range(2):
            lines = tmp_path / f"{len(jobs)}.txt"
            command = ["sh", "-c", JOB.format(lines=lines)]
            jobs.append((lm.runtime.submit(command, home=home.path, start=False), lines))
        time.sleep(rng.uniform(0.0, 0.5))
        os.kill(found["pid"], signal.SIGKILL)
        wait_until(lambda: service.running(home) is None)
    engine()
    for job, lines in jobs:
        assert job.wait(timeout=120) == "done"
        said = lines.read_text().split()
        assert said.count("through") == 1, said
        assert said.count("begun") == said.count("saved") + 1, said
    store = Store(home.store)
    assert store.jobs(ON_DEVICES) == []
    tokens = [file.stem for file in home.path.glob("jobs/*/*.order")]
    assert [pid for token in tokens for pid in marked(token)] == []
    store.close()


def test_who_was_killed_and_not_waited_for_is_not_taken_for_the_engine(home):
    """It has left its name in the lock's file, and the next one holds the lock, and has not told its own yet."""
    dead = subprocess.Popen(["sleep", "1000"])
    told = {"pid": dead.pid, "born": keeper.born(dead.pid)}
    with open(home.lock, "w") as lock:
        lock.write(json.dumps(told))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert service.running(home) == told
        dead.kill()
        wait_until(lambda: not keeper.lives(told))
        assert service.running(home) == {}
    dead.wait()


def test_who_comes_too_late_waits_for_the_one_that_comes_up(home):
    """One that takes its time, to connect to a cluster, has the lock already, and has not told of itself yet."""
    with open(home.lock, "w") as lock, concurrent.futures.ThreadPoolExecutor(2) as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = threads.submit(service.up, home)
        with pytest.raises(TimeoutError, match="down: an engine has been coming up for 0.1 s"):
            service.down(home, timeout=0.1)
        wait_until(lambda: "runs already" in (home.log.read_text() if home.log.exists() else ""))
        time.sleep(0.1)
        assert not found.done()
        told = {"pid": os.getpid(), "born": keeper.born(os.getpid())}
        lock.write(json.dumps(told))
        lock.flush()
        assert found.result(timeout=30) == told


def test_a_job_starts_no_engine(home, engine, monkeypatch):
    for name, value in (
        ("JOB", "1"),
        ("JOB_FOLDER", "/"),
        ("DEVICES", "1"),
        ("JOB_NAME", "a"),
        ("JOB_LAYOUT", "devices"),
    ):
        monkeypatch.setenv(f"LLMASOS_{name}", value)
    assert lm.runtime.submit(["true"], home=home.path).state == "queued"
    assert service.running(home) is None


def test_a_killed_worker_is_started_again(home, engine, tmp_path):
    engine()
    lines = tmp_path / "lines"
    command = f"echo begun >> {lines}; if [ $(wc -l < {lines}) -gt 1 ]; then exit 0; fi; sleep 1000"
    job = lm.runtime.submit(["sh", "-c", command], home=home.path)
    wait_until(lambda: lines.exists())
    token = Store(home.store).job(job.number).token
    for pid in marked(token):
        os.kill(pid, signal.SIGKILL)
    assert job.wait(timeout=60) == "done"
    assert lines.read_text() == "begun\nbegun\n"
    assert marked(token) == []
