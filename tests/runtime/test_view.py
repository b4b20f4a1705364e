"""The picture of the moment: from a store that the test fills, in words, in a terminal."""

import io
import itertools
import json
import math
import os
import pty
import select
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from runtime_jobs import spec, wait_until

from llmasos_xla import progress
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.top import render, sparkline, top
from llmasos_xla.runtime.view import Curve, Gpu, Machine, picture
from llmasos_xla.runtime.viewer import Viewer

pytest.importorskip("psutil", reason="psutil is not installed")

NOW = 1_800_000_000.0
GPU = Gpu("H100", 0.9, 2.0**34, 2.0**36, math.nan, 61.0)
MACHINE = Machine(0.5, 8, 3.0 * 2**30, 12.0 * 2**30, 42.0, "estimated", (GPU,))


@pytest.fixture
def store(home):
    found = Store(home.store, clock=lambda: NOW - 90)
    yield found
    found.close()


def run(store, job, *devices, **more):
    places = tuple(("local", device) for device in devices)
    return store.change(job, "running", told={}, places=places, attempt=1, token=f"t{job.number}", **more)


def moment(store, **more):
    return picture(store.jobs(), store.events(), now=NOW, engine={"pid": 7, "since": NOW - 60, "devices": 4}, **more)


def drawn(view, width=130, height=None):
    console = Console(record=True, width=width, height=height or 25, file=io.StringIO())
    console.print(render(view, width, height))
    return console.export_text().splitlines()


def test_who_sits_where(store):
    big, urgent, late = (store.submit(spec("true", name=name, devices=(1, 3))) for name in ("big", "urgent", "late"))
    run(store, big, 0, 2)
    run(store, urgent, 1)
    store.change(late, reason="1 device is free, 2 are wanted")
    view = moment(store)
    assert [slot.jobs for slot in view.slots] == [(1,), (2,), (1,), ()]
    waits = view.rows[2]
    assert (waits.name, waits.state, waits.reason) == ("late", "queued", "1 device is free, 2 are wanted")
    assert waits.waited == 90.0
    assert waits.places == ()
    # Once it has ended a job sits nowhere, wherever it was.
    store.change(store.job(1), "done")
    assert [slot.jobs for slot in moment(store).slots] == [(), (2,), (), ()]


def test_what_a_job_needs_and_that_it_has_it(store):
    _, found, _ = (store.submit(spec("true", name=n, memory=m)) for n, m in (("a", 9), ("b", None), ("c", None)))
    run(store, found, 0, need={"host": {"1": 3 * 2**29}})
    store.note(2, "admitted", host=3 * 2**29, device=0)
    view = moment(store)
    assert [row.needed for row in view.rows] == [9, 3 * 2**29, None]
    assert view.events[-1].what == "may begin: 1.50 GiB of memory are its own"


def test_devices_that_share_and_nodes_that_came_later(store):
    for name in ("a", "b"):
        job = store.submit(spec("true", name=name))
        store.change(job, "running", places=(("node-2", 5),))
    view = moment(store)
    assert [(s.node, s.jobs) for s in view.slots] == [*[("local", ())] * 4, ("node-2", (1, 2))]
    assert picture(store.jobs(), now=NOW).slots[0].node == "node-2"


def test_of_slurm_only_the_node_is_known(store):
    for name, nodes in (("a", ("n1", "n1")), ("b", ("n1",)), ("c", ("", ""))):
        job = store.submit(spec("true", name=name, devices=(1, 2)))
        store.change(job, "running", places=tuple((node, i) for i, node in enumerate(nodes)))
    engine = {"launcher": "slurm", "nodes": {"n1": 4, "n2": 1}}
    view = picture(store.jobs(), now=NOW, engine=engine)
    assert [(s.node, s.jobs) for s in view.slots] == [("n1", (1,)), ("n1", (1,)), ("n1", (2,)), ("n1", ()), ("n2", ())]
    assert view.rows[2].places == ()


def test_an_engine_that_has_just_begun(store):
    assert "no engine runs" in drawn(picture([], now=NOW))[0]
    assert "the engine comes up" in drawn(picture([], now=NOW, engine={}))[0]


def test_neither_commands_nor_environments_are_told(store):
    job = store.submit(spec("curl -H 'key: s3cret'", environment={"TOKEN": "s3cret"}, folder="/home/s3cret"))
    run(store, job, 0, handle=json.dumps({"pid": 1}))
    assert "s3cret" not in json.dumps(moment(store).to_dict())


def test_what_is_told_as_json(store):
    job = store.submit(spec("true"))
    run(store, job, 0)
    told = {0: progress.Progress(9, 1, math.nan, True, NOW), 1: progress.Progress(7, 1, 2.0, True, NOW)}
    view = moment(store, progress={1: told}, machine=MACHINE)
    found = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    assert found["machine"]["gpus"][0]["watts"] is None
    # A rank that is behind holds the others up; a loss that is lost is told.
    assert (found["rows"][0]["step"], found["rows"][0]["loss"]) == (7, "nan")
    assert [event["what"] for event in found["events"]] == ["is queued", "runs"]


@given(st.lists(st.integers(1, 400), max_size=300), st.integers(2, 20))
def test_a_curve_is_of_bounded_length_and_ends_with_the_newest(steps, most):
    curve = Curve(most)
    for step in steps:
        curve.add(step, float(step))
        points = curve.points
        assert points[-1] == (step, float(step))
        assert list(points) == sorted(set(points))
        assert len(points) <= most + 1


def test_a_curve_spans_the_whole_life():
    curve = Curve(20)
    for step in range(1, 10_001):
        curve.add(step, 1 / step)
    steps = [step for step, _ in curve.points]
    assert (steps[0], steps[-1]) == (1, 10_000)
    assert len(steps) >= 10
    # Evenly, but for the newest.
    assert len({b - a for a, b in itertools.pairwise(steps[:-1])}) == 1


def test_sparklines():
    assert sparkline([]) == sparkline([math.nan]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([1.0, math.inf, 8.0]) == "▁█"
    falling = sparkline([1 / (i + 1) for i in range(1000)], 16)
    assert len(falling) == 16
    assert list(falling) == sorted(falling, reverse=True)


def test_a_viewer_sees_what_others_write(home, store):
    viewer = Viewer(home, ended=2)
    assert viewer.look().rows == ()
    jobs = [store.submit(spec("true", name=f"j{n}", priority=n)) for n in range(5)]
    assert [row.name for row in viewer.look().rows] == ["j4", "j3", "j2", "j1", "j0"]
    for job in jobs[:3]:
        store.change(job, "done", status=0)
    run(store, jobs[3], 0, handle=json.dumps({"pid": os.getpid()}))
    home.job(4).mkdir(parents=True)
    for step, loss in ((10, 2.0), (20, 1.0)):
        progress.write(home.job(4) / "t4", 0, progress.Progress(step, 1, loss, True, NOW))
        view = viewer.look()
    # Those that run first, and of those that have ended two.
    assert [row.name for row in view.rows] == ["j3", "j4", "j2", "j1"]
    row = view.rows[0]
    assert (row.step, row.loss, row.losses) == (20, 1.0, ((10, 2.0), (20, 1.0)))
    assert row.memory > 1e6
    assert view.engine is None
    assert 0 < view.machine.memory < view.machine.memory_total
    # Who waits keeps what it had reached.
    store.change(store.job(4), "queued", token=None, handle=None)
    row = next(row for row in viewer.look().rows if row.name == "j3")
    assert (row.step, row.loss, row.memory) == (20, 1.0, None)
    assert len(viewer.past["cpu"]) == len(viewer.past["at"]) == 5
    viewer.close()


def test_who_looks_changes_nothing(home, store):
    only = Store(home.store, read_only=True)
    with pytest.raises(OSError, match="cannot be changed: attempt to write a readonly"):
        only.submit(spec("true"))
    only.close()


def test_a_job_gets_another_priority(store):
    job = store.submit(spec("true", environment={"A": "b"}))
    assert store.prioritize("job", 7)
    now = store.job(1)
    assert now.spec.priority == 7
    assert now.spec.environment == job.spec.environment
    assert moment(store).events[-1].what == "has priority 7 instead of 0"
    store.ask(1, "cancel")
    assert not store.prioritize(1, 9)
    with pytest.raises(ValueError, match="unknown job 'none'"):
        store.prioritize("none", 1)


def test_how_a_job_was_lost_is_told_in_words(store):
    job = store.submit(spec("a"))
    for status, words in ((-1, "its processes are gone, and nobody knows how they ended"), (137, "signal 9 ended it")):
        store.change(store.job(job.number), "queued", told={"status": status})
        assert moment(store).events[-1].what == f"is queued: {words}"


def test_drawn(store):
    job = store.submit(spec("true", name="digits", devices=(1, 4), priority=3))
    run(store, job, 0, 1, 2)
    store.submit(spec("true", name="next"))
    curve = Curve()
    for step in range(1, 30):
        curve.add(step, 3.0 / step)
    view = moment(store, curves={1: curve}, usage={1: (2.5, 3.0 * 2**30)}, machine=MACHINE)
    lines = drawn(view)
    text = "\n".join(lines)
    assert "engine 7, up 1 min   1 running, 1 waiting" in lines[0]
    assert "50% of 8" in lines[1]
    assert "42 W (estimated)" in lines[1]
    assert "61 °C   H100" in lines[2]
    row = next(line.split() for line in lines if "digits" in line)
    assert row[:8] == ["1", "digits", "running", "3", "3", "of", "1-4", "29"]
    assert row[9][0] == "█"
    assert row[9][-1] == "▁"
    assert row[10:13] == ["2.5", "3.0", "GiB"]
    assert "3/4" in text
    assert lines[-1].endswith("2 next is queued")
    # Everything that matters has room in an old terminal.
    narrow = drawn(view, 80)
    assert max(map(len, narrow)) <= 80
    assert "running" in next(line for line in narrow if "digits" in line)


def test_of_a_long_queue_the_foremost_are_seen(home, store):
    for n in range(30):
        store.submit(spec("true", name=f"j{n}", priority=n % 10))
    viewer = Viewer(home, waiting=5)
    view = viewer.look()
    viewer.close()
    assert [row.priority for row in view.rows] == [9, 9, 9, 8, 8]
    assert view.counts == {"queued": 30}
    text = "\n".join(drawn(view))
    assert "0 running, 30 waiting" in text
    assert "and 25 more" in text


def test_a_full_queue_has_room(store):
    for n in range(100):
        store.submit(spec("true", name=f"j{n}"))
    view = picture(
        store.jobs(),
        store.events(last=30),
        now=NOW,
        engine={"pid": 1, "since": NOW, "nodes": {f"n{i:03}": 8 for i in range(512)}},
    )
    lines = drawn(view, 100, 40)
    assert len(lines) <= 40
    assert "and 504 more nodes, 0/4032 devices busy" in "\n".join(lines)
    shown = sum(" queued " in line and "0 s" not in line for line in lines)
    assert f"and {100 - shown} more" in "\n".join(lines)


def test_one_look_where_there_is_no_terminal(home, store):
    store.submit(spec("true", name="waits"))
    done = subprocess.run(
        [sys.executable, "-m", "llmasos_xla", "top", "--home", str(home.path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no engine runs" in done.stdout
    assert "waits" in done.stdout
    with pytest.raises(ValueError, match="every wants seconds above 0, 0 came"):
        top(home, every=0)


def test_q_leaves_and_the_terminal_is_as_it_was(home, store):
    import termios

    store.submit(spec("true", name="waits"))
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmasos_xla", "top", "--every", "0.1", "--home", str(home.path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )
    shown = b""

    def read():
        nonlocal shown
        while select.select([ours], [], [], 0)[0]:
            shown += os.read(ours, 65536)
        return shown

    wait_until(lambda: b"waits" in read())
    store.submit(spec("true", name="comes"))
    wait_until(lambda: b"comes" in read())
    os.write(ours, b"xq")
    wait_until(lambda: (read(), process.poll() is not None)[1])
    assert process.returncode == 0
    read()
    # Back from the other screen, with the cursor.
    assert shown.rstrip().endswith(b"\x1b[?25h") or b"\x1b[?1049l" in shown
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
