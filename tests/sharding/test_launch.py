"""`llmasos launch`: ranks are started, shown, and ended together; the script needs no change."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from sharding.ranks import ROOT, TOTAL, alive, environment, launch

from llmasos_xla import cli
from llmasos_xla.sharding.processes.cores import shares
from llmasos_xla.sharding.threads import PER_DEVICE

CLI = [sys.executable, "-m", "llmasos_xla.cli"]


def script(folder, text, name="train.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("processes", "cpus", "threads", "expected"),
    [
        (1, 4, 1, [{0, 1, 2, 3}]),
        (2, 4, 1, [{0, 1}, {2, 3}]),
        (2, 8, 2, [{0, 1, 4, 5}, {2, 3, 6, 7}]),
        (3, 4, 1, [{0}, {1}, {2, 3}]),
        (3, 2, 1, [{0}, {1}, {0}]),
        (2, 2, 2, [{0, 1}, {0, 1}]),
    ],
)
def test_cores_are_divided_whole(processes, cpus, threads, expected):
    found = shares(processes, range(cpus), lambda cpu: (cpu % (cpus // threads),))
    assert found == expected
    assert set().union(*found) == set(range(cpus))


def test_two_ranks_of_two_devices_and_a_script_that_knows_nothing(tmp_path):
    """Its arguments, name, folder and output are as if it were run by itself."""
    (tmp_path / "beside.py").write_text("value = 7\n")
    text = TOTAL + (
        "import os, sys, beside\n"
        "print(__name__, sys.argv[1:], beside.value, total(), jax.process_index(), jax.local_device_count())\n"
        "print('threads', len(os.listdir('/proc/self/task')), 'cpus', sorted(os.sched_getaffinity(0)))\n"
        "print('to stderr', file=sys.stderr)\n"
    )
    logs = tmp_path / "logs"
    out = launch(
        [script(tmp_path, text), "--lr", "3", "-n", "9"], "-n", "2", "--devices-per-process", "2", "--logs", str(logs)
    )
    assert out.code == 0, out.text
    cpus = []
    for rank in (0, 1):
        assert f"__main__ ['--lr', '3', '-n', '9'] 7 4 {rank} 2" in out.of(rank)
        assert "to stderr" in out.of(rank)
        assert "to stderr" in (logs / f"rank-{rank}.log").read_text()
        cpus.append(set(map(int, re.search(r"cpus \[(.*)\]", out.of(rank))[1].split(","))))
    assert cpus == shares(2)


def test_xlas_pool_follows_the_cores_of_the_rank_and_can_wait(tmp_path):
    text = (
        "import jax, jax.numpy as jnp, os\n"
        "jnp.ones((600, 600)).dot(jnp.ones((600, 600))).block_until_ready()\n"
        "names = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]\n"
        "print('pool', sum('XLAEigen' in name for name in names))\n"
    )
    out = launch([script(tmp_path, text)], "-n", "2")
    pools = [int(re.search(r"pool (\d+)", out.of(rank))[1]) for rank in (0, 1)]
    assert pools == [max(len(cpus), PER_DEVICE) for cpus in shares(2)]


def test_a_module(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("import sys, llmasos_xla as lm\nprint(__name__, sys.argv[1:], lm.world().size)\n")
    command = [*CLI, "launch", "-n", "2", "-m", "mine.train", "--lr", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] __main__ ['--lr', '3'] 2" for rank in (0, 1)]


@pytest.mark.parametrize(("codes", "expected"), [((75, 0), 75), ((75, 6), 6), ((-9, 75), 137)])
def test_exit_code(tmp_path, codes, expected):
    text = (
        "import os, sys, time\n"
        f"code = {codes}[int(os.environ['RANK'])]\n"
        "print('last words')\n"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n"
    )
    out = launch([script(tmp_path, text)], "-n", "2")
    assert out.code == expected
    if expected != 75:
        how = "killed by SIGKILL" if expected == 137 else f"exit code {expected}"
        failed = codes.index(-9 if expected == 137 else expected)
        assert f"llmasos launch: rank {failed} failed first: {how}. Its last lines:\n    last words\n" in out.text


def started(tmp_path, text, *options):
    """A launcher whose two ranks are in the midst of the script."""
    command = [*CLI, "launch", "-n", "2", *options, script(tmp_path, text)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    seen, pids = "", []
    while len(pids) < 2:
        line = process.stdout.readline()
        assert line, seen
        seen += line
        pids = re.findall(r"pid (\d+)", seen)
    return process, list(map(int, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank_once(tmp_path, number):
    text = (
        "import os, signal, sys, time\n"
        "came = []\n"
        f"signal.signal({int(number)}, lambda *_: came.append(1))\n"
        "print('pid', os.getpid())\n"
        "while not came: time.sleep(0.02)\n"
        "time.sleep(0.5)\n"
        "print('came', len(came))\n"
        "sys.exit(75)\n"
    )
    process, _ = started(tmp_path, text)
    # As a terminal does it: to the whole group.
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert sorted(re.findall(r"^\[(\d)\] came (\d)$", rest, re.MULTILINE)) == [("0", "1"), ("1", "1")]


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    text = (
        "import os, signal, sys, time\n"
        "import llmasos_xla.sharding.processes.watch as watch\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "watch.Watch._verdict = lambda self, message: None\n"
        "print('pid', os.getpid())\n"
        "time.sleep(0.5)\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\n"
        "time.sleep(100)\n"
    )
    begun = time.monotonic()
    process, pids = started(tmp_path, text, "--grace", "1")
    rest, _ = process.communicate(timeout=30)
    assert time.monotonic() - begun < 25
    assert process.returncode == 137
    assert "rank 1 failed first: killed by SIGKILL" in rest
    assert not any(alive(pid) for pid in pids)


def test_a_launcher_that_is_killed_leaves_no_ranks(tmp_path):
    text = "import os, time\nprint('pid', os.getpid())\ntime.sleep(100)\n"
    process, pids = started(tmp_path, "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\n" + text)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_without_n_it_is_the_rank_that_it_was_started_as(tmp_path):
    text = TOTAL + "import llmasos_xla as lm\nprint(lm.world().rank, lm.world().source, total())\n"
    path = script(tmp_path, text)
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    processes = [
        subprocess.Popen(
            [*CLI, "launch", path],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(**slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in (0, 1)
    ]
    texts = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [f"{rank} slurm 2" in text for rank, text in enumerate(texts)] == [True, True]


def test_without_n_and_without_a_cluster_it_is_one_process(tmp_path):
    text = "import llmasos_xla as lm\nprint(lm.world().size, lm.world().source)\nraise KeyError('label')\n"
    command = [*CLI, "launch", script(tmp_path, text)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout) == (1, "1 none\n"), done.stderr
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("KeyError: 'label'\n")
    assert "runpy" not in done.stderr


def test_what_the_preflight_finds_is_told_without_a_traceback(tmp_path):
    alone = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "absent.invalid", "LLMASOS_START_SECONDS": "0.5"}
    out = launch([script(tmp_path, "")], more=alone)
    assert out.code == 1
    assert re.search(r"^llmasos: rank 1 \(host .*\): the coordinator's name 'absent.invalid' cannot be", out.text)
    assert "Traceback" not in out.text


def test_refusals(capsys, monkeypatch):
    assert cli.main(["launch", "-n", "2", "absent.py"]) == 2
    assert "llmasos launch: no script 'absent.py' in " in capsys.readouterr().err
    assert cli.main(["launch", "-n", "0", __file__]) == 2
    assert "llmasos launch: -n wants a whole number >= 1, got 0" in capsys.readouterr().err
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["launch", "-n", "2", __file__]) == 2
    assert "already is rank 1 of 2" in capsys.readouterr().err.replace("is already", "already is")


def test_the_installed_command_is_declared():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"llmasos": "llmasos_xla.cli:main"}


def test_a_call_for_all_that_not_all_make_ends(tmp_path):
    text = (
        "import time\n"
        "import llmasos_xla as lm\n"
        "from llmasos_xla.sharding.agreement import meet\n"
        "world = lm.initialize()\n"
        "meet('save', 60)\n"
        "print('met')\n"
        "meet('save', 2) if world.rank == 0 else time.sleep(60)\n"
    )
    out = launch([script(tmp_path, text)], "-n", "2")
    assert out.code == 1
    assert out.of(1).count("met") == out.of(0).count("met\n") == 1
    assert "RuntimeError: save: not all of the 2 processes have come within 2 s" in out.of(0)
