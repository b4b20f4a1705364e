"""The queue: every change is whole, of two who change a job one comes too late, and nothing is forgotten."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from runtime_jobs import spec

from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ENDED, Spec
from llmasos_xla.runtime.store import Store


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "jobs.sqlite")
    yield found
    found.close()


def test_a_job_is_kept_as_it_was_submitted(tmp_path, store):
    wanted = spec("true", name="a", devices=(1, 4), sizes=(1, 3), after=(), environment={"X": "ä\n"}, stuck_after=2.5)
    job = store.submit(wanted)
    assert (job.number, job.state, job.size, job.spec) == (1, "queued", 0, wanted)
    again = Store(tmp_path / "jobs.sqlite")
    assert again.job("a") == again.job(1) == again.job("1") == job
    assert [event.what for event in again.events(1)] == ["queued"]
    again.close()


def test_the_last_of_a_name_is_meant(store):
    numbers = [store.submit(spec("true", name="twin")).number for _ in range(2)]
    assert store.job("twin").number == numbers[-1]
    with pytest.raises(ValueError, match="unknown job 'twim'; did you mean 'twin'"):
        store.job("twim")


def test_of_two_who_change_a_job_one_comes_too_late(tmp_path, store):
    job = store.submit(spec("true"))
    other = Store(tmp_path / "jobs.sqlite")
    version = store.version
    assert other.change(job, "starting", token="x", attempt=1, places=(("n", 0), ("n", 1)))
    assert store.version != version
    assert not store.change(job, "cancelled")
    now = store.job(1)
    assert (now.state, now.token, now.attempt, now.size) == ("starting", "x", 1, 2)
    # Nor may somebody who has seen an earlier attempt.
    assert not store.change(dataclasses.replace(now, attempt=0), "done")
    assert [event.what for event in store.events(1)] == ["queued", "starting"]
    other.close()


def test_wishes(store):
    waits, runs = (store.submit(spec("true", name=n)) for n in ("waits", "runs"))
    store.change(runs, "running")
    assert store.ask("waits", "cancel").state == "cancelled"
    asked = store.ask("runs", "cancel")
    assert (asked.state, asked.asked) == ("running", "cancel")
    assert store.ask("waits", "drain").asked is None
    assert [job.number for job in store.jobs(ENDED)] == [waits.number]


def test_a_wish_about_a_job_that_comes_off_its_devices_meanwhile(tmp_path, store, monkeypatch):
    job = store.submit(spec("true"))
    store.change(job, "running")
    other, look, looks = Store(tmp_path / "jobs.sqlite"), Store.job, []

    def slow(self, which):
        found = look(self, which)
        if self is other and not looks:
            looks.append(found)
            # It may have to wait; in this thread it is told so instead.
            with contextlib.suppress(OSError):
                store.change(found, "queued")
        return found

    store._base.execute("pragma busy_timeout = 0")
    monkeypatch.setattr(Store, "job", slow)
    other.ask(job.number, "cancel")
    monkeypatch.undo()
    now = store.job(job.number)
    assert (now.state, now.asked) in (("running", "cancel"), ("cancelled", None))
    other.close()


def test_jobs_that_come_after_others(store):
    with pytest.raises(LookupError, match="no job 7 to come after"):
        store.submit(spec("true", after=(7,)))
    assert store.jobs() == []
    first = store.submit(spec("true"))
    assert store.submit(spec("true", after=(first.number,))).state == "waiting"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"name": "../up"}, "a name is of letters, digits"),
        ({"command": ()}, "there is nothing to run"),
        ({"devices": (3, 2)}, "devices are the least and the most, from 1 to 16384, 3 to 2 came"),
        ({"devices": (2, 4), "sizes": (1, 2)}, "a size of 1 devices is not within 2 to 4"),
        ({"memory": 0}, "memory is at least 1, 0 came"),
        ({"stuck_after": 0.0}, "stuck_after is above 0 seconds"),
        ({"priority": "7"}, "a priority is a whole number within 1000000000 of 0, '7' came"),
        ({"priority": 1.5}, "a priority is a whole number"),
        ({"priority": 10**400}, "a priority is a whole number .*, 10000"),
        ({"grace": float("inf")}, "grace is a number of seconds, up to 1e[+]09, inf came"),
        ({"stuck_after": float("nan")}, "stuck_after is a number of seconds"),
        ({"devices": ("4",)}, "devices are the least and the most, two numbers"),
        ({"devices": (1, 2.0)}, "devices wants whole numbers, 2.0 came"),
        ({"memory": 2**70}, "memory is at most"),
    ],
)
def test_what_is_no_job(unchecked, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Spec(**{"name": "a", "command": ("true",), "folder": "/", **wrong})


def test_numbers_that_no_job_has(unchecked, store):
    store.submit(spec("true"))
    for which in ("2", "9" * 40, "²", "-1", 10**30):
        with pytest.raises(ValueError, match="unknown job"):
            store.job(which)
    with pytest.raises(ValueError, match="a priority is a whole number"):
        store.prioritize(1, 10**40)
    assert store.job("01").spec.priority == 0


def test_environments_are_for_the_user_alone(tmp_path, monkeypatch):
    """In a folder that everybody may read, too."""
    before = os.umask(0o022)
    try:
        home = Home(tmp_path).make()
        store = Store(home.store)
        store.submit(spec("true", environment={"PASSWORD": "x"}))
    finally:
        os.umask(before)
    found = [*tmp_path.glob("jobs.sqlite*"), tmp_path / "jobs"]
    assert len(found) == 4
    assert [path for path in found if path.stat().st_mode & 0o077] == []
    store.close()
    monkeypatch.setenv("LLMASOS_HOME", "")
    monkeypatch.setenv("XDG_STATE_HOME", "/of/mine")
    assert Home().path == pathlib.Path("/of/mine/llmasos")


def test_several_who_come_first_at_a_time(tmp_path):
    """SQLite does not wait for the lock under which a file's log is begun: whoever comes second is told at once."""
    path = tmp_path / "jobs.sqlite"
    first = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    first.execute("create table t (x)")
    first.execute("drop table t")
    first.execute("begin immediate")
    ends = threading.Timer(0.3, lambda: first.execute("commit"))
    ends.start()
    try:
        second = Store(path)
        assert second.submit(spec("true")).number == 1
        second.close()
    finally:
        ends.join()
        first.close()


def test_of_many_jobs_the_newest_are_named(store):
    for number in range(60):
        store.submit(spec("true", name=f"job-{number}"))
    with pytest.raises(ValueError, match="unknown job 'none'; Known: ") as error:
        store.job("none")
    assert sorted(str(error.value).partition("Known: ")[2].split(", ")) == [f"job-{number}" for number in range(40, 60)]


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "text").write_text(
        "no base of data, and longer than its header would be, which has a hundred bytes" * 9
    )
    for path, read_only in (("text", False), ("none/here", False), ("none", True)):
        with pytest.raises(OSError, match="cannot be opened: "):
            Store(tmp_path / path, read_only=read_only)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_full_disk_takes_nothing_and_leaves_the_store_as_it_was(store):
    store.submit(spec("true"))
    pages = store._base.execute("pragma page_count").fetchone()[0]
    store._base.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(OSError, match="cannot be changed: database or disk is full"):
        store.submit(spec("true " * 10_000))
    assert len(store.jobs()) == 1
    store._base.execute("pragma max_page_count = 100000")
    assert store.submit(spec("true")).number == 2


def _submit_for_ever(path):
    store = Store(path)
    while True:
        job = store.submit(spec("true"))
        store.change(job, "running", reason="r" * 5000)


def test_whoever_is_killed_while_writing_leaves_whole_jobs(tmp_path):
    path = tmp_path / "jobs.sqlite"
    Store(path).close()
    for delay in (0.4, 0.55, 0.7):
        writer = multiprocessing.get_context("spawn").Process(target=_submit_for_ever, args=(path,))
        writer.start()
        before = _count(path)
        while _count(path) < before + 3:
            pass
        writer.join(delay / 20)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    store = Store(path)
    numbers = [job.number for job in store.jobs()]
    assert numbers == list(range(1, len(numbers) + 1))
    for job in store.jobs():
        events = [event.what for event in store.events(job.number)]
        assert events == (["queued", "running"] if job.state == "running" else ["queued"])
    store.close()


def _count(path):
    base = sqlite3.connect(path, timeout=30)
    try:
        return base.execute("select count(*) from jobs").fetchone()[0]
    finally:
        base.close()


def test_another_version_is_refused(tmp_path):
    base = sqlite3.connect(tmp_path / "jobs.sqlite")
    base.execute("pragma user_version = 99")
    base.close()
    with pytest.raises(ValueError, match="of version 99, 1 is read"):
        Store(tmp_path / "jobs.sqlite")


def test_no_store_takes_another_ones_locks(home):
    """To open and close the file beside SQLite would: others then put its log away under whoever still reads it."""
    first = Store(home.store)
    Store(home.store).close()
    code = (
        "import sys\n"
        "from llmasos_xla.runtime.jobs import Spec\n"
        "from llmasos_xla.runtime.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "store.submit(Spec(name='job', command=('true',), folder='/'))\n"
        "print('told', flush=True)\n"
        "sys.stdin.read()\n"
        "store.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(home.store)], input="", text=True, check=True, capture_output=True)
    another = subprocess.Popen(
        [sys.executable, "-c", code, str(home.store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with another:
        assert another.stdout is not None
        assert another.stdout.readline() == "told\n"
        assert [job.number for job in first.jobs()] == [1, 2]
        other = Store(home.store, read_only=True)
        assert len(other.jobs()) == 2
        other.close()
    first.close()
