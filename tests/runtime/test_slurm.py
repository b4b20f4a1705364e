"""Jobs by way of Slurm: with commands that play Slurm; test_slurm_real.py has the real one."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from runtime_jobs import spec, wait_until

from llmasos_xla.progress import Progress, write
from llmasos_xla.runtime.claims import Rules
from llmasos_xla.runtime.launchers import batch, keeper
from llmasos_xla.runtime.launchers.protocol import Queueing
from llmasos_xla.runtime.launchers.sbatch import Request
from llmasos_xla.runtime.launchers.slurm import Slurm
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.supervisor import Supervisor


class Played:
    """Scripts that write down what they are asked, and answer with what a test has put there."""

    def __init__(self, folder):
        self.folder, self.jobs = folder, {}
        folder.mkdir()
        nodes = ("n1|0/4/0/4", "all*"), ("n1|0/4/0/4", "other"), ("n3|0/9/0/9", "other"), ("n2|0/2/0/2", "all*")
        says = "".join(f"{node}|(null)|(null)|{partition}|\n" for node, partition in nodes)
        (folder / "sinfo.says").write_text(says)
        for name in ("sbatch", "squeue", "sinfo", "scancel", "scontrol", "sacct"):
            path = folder / name
            path.write_text(
                f'#!/bin/sh\ncd {folder}\necho "$@" >> {name}.asked\n'
                f"[ -e {name}.fails ] && {{ cat {name}.fails >&2; exit 1; }}\n"
                + ("wc -l < sbatch.asked\n" if name == "sbatch" else f"cat {name}.says 2>/dev/null; exit 0\n")
            )
            if name == "scontrol":
                # Whoever asks for a requeue is ended by Slurm.
                path.write_text(
                    path.read_text().replace("cat scon", '[ "$1" = requeue ] && kill -TERM $PPID\ncat scon')
                )
            path.chmod(0o755)
        self.shows()

    def asked(self, name):
        path = self.folder / f"{name}.asked"
        return path.read_text().splitlines() if path.exists() else []

    def shows(self, *jobs):
        """squeue's answer: (number, state, reason, nice, token)."""
        lines = ["|".join(map(str, (*job, ""))) for job in jobs]
        (self.folder / "squeue.says").write_text("\n".join(lines))

    def fails(self, name, text=None):
        path = self.folder / f"{name}.fails"
        path.unlink() if text is None else path.write_text(text)


@pytest.fixture
def played(tmp_path, monkeypatch):
    found = Played(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(found.folder), prepend=os.pathsep)
    return found


@pytest.fixture
def store(home):
    found = Store(home.store)
    yield found
    found.close()


@pytest.fixture
def make(home, store, played):
    return lambda *options, **request: Supervisor(
        home, store, Slurm(home, Request(options=options, **request), interval=0), Rules(least_run=0.0)
    )


def begun(store, home, number, *places, run=0, lost=0):
    """What the job's own process writes down when Slurm begins it."""
    job = store.job(number)
    keeper.write(home.job(number) / f"{job.token}.where", {"run": run, "lost": lost, "places": places})


def ends(store, home, number, status):
    keeper.write(home.job(number) / f"{store.job(number).token}.exit", {"status": status, "at": 0.0})


def options(home, store, number):
    text = (home.job(number) / f"{store.job(number).token}.sbatch").read_text()
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def test_from_slurms_queue_to_the_end(home, store, played, make):
    store.submit(spec("x", devices=(2, 2), memory=3 * 2**20, grace=20, name="a"))
    supervisor = make("--partition=long", cores=2)
    assert isinstance(Slurm(home, interval=0), Queueing)
    assert {node.name: len(node.devices) for node in Slurm(home, interval=0).capacity()} == {"n1": 4, "n2": 2}
    supervisor.tick()
    job = store.job(1)
    asked = options(home, store, 1)
    assert {"--job-name=a", f"--comment={job.token}", "--ntasks=1", "--cpus-per-task=4", "--nodes=1"} <= set(asked)
    assert {"--requeue", "--signal=B:TERM@30", "--open-mode=append", "--mem-per-cpu=1M", "--nice=0"} <= set(asked)
    assert asked[-1] == "--partition=long"
    assert (job.state, json.loads(job.handle)) == ("starting", {"slurm": "1"})
    played.shows((1, "PENDING", "Resources", 0, job.token))
    supervisor.tick()
    assert (store.job(1).state, store.job(1).reason) == ("starting", "in Slurm's queue: Resources")
    played.shows((1, "RUNNING", "None", 0, job.token))
    begun(store, home, 1, ("n1", 0), ("n1", 1))
    supervisor.tick()
    job = store.job(1)
    assert (job.state, job.places, job.reason) == ("running", (("n1", 0), ("n1", 1)), "")
    # The keeper has said how it ended, and Slurm not yet that nothing of it runs.
    ends(store, home, 1, 0)
    supervisor.tick()
    assert store.job(1).state == "running"
    played.shows((1, "COMPLETED", "None", 0, job.token))
    supervisor.tick()
    assert store.job(1).state == "done"
    assert len(played.asked("sbatch")) == 1


def test_ranks_are_tasks(home, store, played, make):
    store.submit(spec("x", devices=(3, 3), layout="processes", memory=6 * 2**20))
    make(cores=2, gpus=True).tick()
    assert {"--ntasks=3", "--cpus-per-task=2", "--gpus-per-task=1", "--mem-per-cpu=1M"} <= set(options(home, store, 1))
    order = json.loads((home.job(1) / f"{store.job(1).token}.order").read_text())
    assert order["command"][3:6] == ["llmasos_xla.runtime.launchers.ranks", "srun", "--ntasks=3"]


def test_priority_is_an_order_among_those_that_wait(home, store, played, make):
    for priority in (0, 5):
        store.submit(spec("x", priority=priority))
    supervisor = make()
    supervisor.tick()
    tokens = [job.token for job in store.jobs()]
    played.shows(*((i + 1, "PENDING", "Priority", 0, token) for i, token in enumerate(tokens)))
    supervisor.tick()
    supervisor.tick()
    assert set(played.asked("scontrol")) == {"update JobId=1 Nice=500"}
    # Who comes now is put in its place at once; who is alone again is not worse off than others' jobs.
    store.submit(spec("x", priority=2))
    supervisor.tick()
    assert "--nice=300" in options(home, store, 3)
    played.shows((1, "PENDING", "Priority", 500, tokens[0]))
    begun(store, home, 2, ("n1", 0))
    for number, token in ((2, tokens[1]), (3, store.job(3).token)):
        played.shows((1, "PENDING", "Priority", 500, tokens[0]), (number, "COMPLETED", "None", 0, token))
        ends(store, home, number, 0)
        supervisor.tick()
    supervisor.tick()
    assert played.asked("scontrol")[-1] == "update JobId=1 Nice=0"


def test_saved_means_again_with_what_is_idle_then(home, store, played, make):
    (played.folder / "sinfo.says").write_text("n1|3/1/0/4|(null)|(null)|all*|\nn2|2/0/0/2|(null)|(null)|all*|\n")
    store.submit(spec("x", devices=(1, 3), sizes=(1, 3)))
    supervisor = make()
    supervisor.tick()
    first = store.job(1)
    assert first.size == 1
    played.shows((1, "RUNNING", "None", 0, first.token))
    begun(store, home, 1, ("n1", 0))
    supervisor.tick()
    # Two more become idle: not before the job says that it saves itself is it told to.
    (played.folder / "sinfo.says").write_text("n1|2/2/0/4|(null)|(null)|all*|\n")
    supervisor.tick()
    assert store.job(1).state == "running"
    write(home.job(1) / str(first.token), 0, Progress(5, 0, None, True, 0.0))
    supervisor.tick()
    assert (store.job(1).state, store.job(1).reason) == ("draining", "grows from 1 to 3")
    assert played.asked("scancel")[-1] == "--quiet --batch --signal=TERM 1"
    assert (home.job(1) / f"{first.token}.drain").exists()
    ends(store, home, 1, 75)
    played.shows((1, "FAILED", "NonZeroExitCode", 0, first.token))
    (played.folder / "sinfo.says").write_text("n1|1/3/0/4|(null)|(null)|all*|\n")
    supervisor.tick()
    job = store.job(1)
    assert (job.state, job.size, job.failures) == ("starting", 3, 0)
    assert job.token != first.token
    # Others were faster: it asks for less.
    played.shows((2, "PENDING", "Resources", 0, job.token))
    (played.folder / "sinfo.says").write_text("n1|4/0/0/4|(null)|(null)|all*|\n")
    supervisor.tick()
    supervisor.tick()
    assert store.job(1).state == "draining"
    played.shows((2, "CANCELLED", "None", 0, job.token))
    supervisor.tick()
    assert (store.job(1).state, store.job(1).size, store.job(1).failures) == ("starting", 1, 0)


def test_cancelling_takes_out_what_waits_and_tells_what_runs(home, store, played, make):
    store.submit(spec("x"))
    supervisor = make()
    supervisor.tick()
    store.ask(1, "cancel")
    played.shows((1, "PENDING", "Priority", 0, store.job(1).token))
    supervisor.tick()
    assert "--quiet --state=PENDING 1" in played.asked("scancel")
    assert store.job(1).state == "draining"
    played.shows((1, "CANCELLED", "None", 0, store.job(1).token))
    supervisor.tick()
    assert store.job(1).state == "cancelled"


def test_cancelled_by_somebody_else_is_not_begun_anew(home, store, played, make):
    store.submit(spec("x"))
    supervisor = make()
    supervisor.tick()
    played.shows((1, "CANCELLED", "None", 0, store.job(1).token))
    supervisor.tick()
    assert (store.job(1).state, store.job(1).reason) == ("cancelled", "it was cancelled where it ran, not here")


@pytest.mark.parametrize("retries", [1, 0])
def test_a_machine_that_fails_is_counted(home, store, played, make, retries):
    store.submit(spec("x", retries=retries))
    supervisor = make()
    supervisor.tick()
    token = store.job(1).token
    played.shows((1, "RUNNING", "None", 0, token))
    begun(store, home, 1, ("n1", 0))
    supervisor.tick()
    played.shows((1, "PENDING", "BeginTime", 0, token))
    supervisor.tick()
    assert (store.job(1).state, store.job(1).reason) == ("starting", "in Slurm's queue: BeginTime")
    played.shows((1, "RUNNING", "None", 0, token))
    begun(store, home, 1, ("n2", 0), run=1, lost=1)
    for _ in range(3):
        supervisor.tick()
    job = store.job(1)
    assert (job.state, job.failures, job.token, job.places) == ("running", 1, token, (("n2", 0),))
    assert [event.what for event in store.events(1)].count("requeued") == 1
    assert len(played.asked("sbatch")) == 1
    if retries == 0:
        assert played.asked("scancel")[-1] == "--quiet 1"
        played.shows((1, "CANCELLED", "None", 0, token))
        supervisor.tick()
        assert (store.job(1).state, store.job(1).reason) == ("failed", "its machine failed, 2 times")


def test_slurm_that_does_not_answer_changes_nothing(home, store, played, make):
    store.submit(spec("x"))
    supervisor = make()
    supervisor.tick()
    begun(store, home, 1, ("n1", 0))
    played.fails("squeue", "slurm_load_jobs error: Unable to contact slurm controller\n")
    supervisor.tick()
    assert store.job(1).state in ("starting", "running")
    played.fails("squeue")
    played.fails("sinfo", "sinfo: error: no\nsinfo: fatal: Could not establish a configuration source\n")
    with pytest.raises(RuntimeError, match="up: Slurm does not answer: sinfo: fatal: Could not establish a conf"):
        make()


def test_what_sbatch_refuses_fails_in_its_words(home, store, played, make):
    store.submit(spec("x", retries=0))
    played.fails("sbatch", "sbatch: error: Batch job submission failed: Invalid account\n")
    make().tick()
    job = store.job(1)
    assert job.state == "failed"
    assert "Batch job submission failed: Invalid account" in job.reason
    with pytest.raises(ValueError, match="an option of sbatch begins with -, 'long' came"):
        Request(options=("long",))


def test_forgotten_jobs_are_known_by_what_they_wrote_or_by_accounts(home, store, played, make, monkeypatch):
    for _ in range(3):
        store.submit(spec("x", retries=0))
    supervisor = make()
    supervisor.tick()
    ends(store, home, 1, 0)
    (played.folder / "sacct.says").write_text("TIMEOUT\n")
    played.shows((2, "RUNNING", "None", 0, store.job(2).token))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    supervisor.tick()
    assert [store.job(n).state for n in (1, 2, 3)] == ["done", "starting", "failed"]
    assert "Slurm says of the job: TIMEOUT" in store.job(3).reason


def test_an_attempt_nobody_wrote_down_is_found_or_never_begins(home, store, played, make):
    store.submit(spec("x"))
    store.submit(spec("y"))
    for number in (1, 2):
        folder = home.job(number)
        folder.mkdir(parents=True)
        told = {"attempt": 1, "token": f"token{number}", "places": [("", 0)]}
        assert store.change(store.job(number), "starting", **told)
    played.shows((7, "RUNNING", "None", 0, "token1"))
    begun(store, home, 1, ("n1", 0))
    make().tick()
    assert (store.job(1).state, store.job(1).token) == ("running", "token1")
    # The other is begun with another token, and the first, should it come yet, finds that it is over.
    assert store.job(2).token not in (None, "token2")
    assert json.loads((home.job(2) / "token2.exit").read_text())["status"] == -1


def order(folder, token, *command, grace=5.0):
    about = {
        "engine": None, "alone": 0.0, "grace": grace, "command": ["sh", "-c", *command], "folder": "/",
        "environment": {"LLMASOS_DEVICES": "2", "PATH": os.environ["PATH"]}, "cpus": [],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    keeper.write(folder / f"{token}.order", about)


def run(folder, token, restart=0, nodes="n1", tasks="1"):
    """The script's process, as Slurm would start it."""
    slurm = {
        "SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": nodes, "SLURM_TASKS_PER_NODE": tasks,
        **({"SLURM_RESTART_COUNT": str(restart)} if restart else {}),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "llmasos_xla.runtime.launchers.batch", str(folder), token],
        env={**os.environ, **slurm},
    )


def test_saved_without_being_asked_to_is_put_back_into_slurms_queue(played, tmp_path):
    folder = tmp_path / "job"
    order(folder, "t", 'echo "$SLURM_RESTART_COUNT of $SLURM_JOB_ID" >> ran; exit 75'.replace("ran", f"{folder}/ran"))
    assert run(folder, "t", nodes="n[1-2]", tasks="2,1").wait(60) == -signal.SIGTERM
    assert batch.where(folder, "t") == {"run": 0, "lost": 0, "places": [["n1", 0], ["n1", 1], ["n2", 0]]}
    assert played.asked("scontrol") == ["requeue 9"]
    # The engine asked for it: it is the engine that starts it again.
    (folder / "t.drain").touch()
    assert run(folder, "t", restart=1).wait(60) == 75
    assert batch.where(folder, "t") == {"run": 1, "lost": 0, "places": [["n1", 0], ["n1", 1]]}
    assert played.asked("scontrol") == ["requeue 9"]
    assert (folder / "ran").read_text() == " of 9\n1 of 9\n"
    (folder / "t.over").touch()
    assert run(folder, "t", restart=2).wait(60) == keeper.NOT_WANTED
    assert (folder / "ran").read_text() == " of 9\n1 of 9\n"


def test_a_run_on_a_node_out_of_reach_ends_before_the_next_begins(played, tmp_path):
    folder = tmp_path / "job"
    ran = folder / "ran"
    order(folder, "t", f"trap '' TERM; echo begin $$ >> {ran}; [ -n \"$SLURM_RESTART_COUNT\" ] || sleep 1000")
    first = run(folder, "t")
    wait_until(ran.exists)
    assert run(folder, "t", restart=1).wait(60) == 0
    assert first.wait(60) == keeper.NOT_WANTED
    assert len(ran.read_text().splitlines()) == 2
    pid = int(ran.read_text().split()[1])
    assert not os.path.exists(f"/proc/{pid}")
    assert batch.where(folder, "t")["lost"] == 1
    assert json.loads((folder / "t.exit").read_text())["status"] == 0
