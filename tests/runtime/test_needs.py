"""What jobs need and hold: bytes by number of devices, and who goes where jobs hold more than there is."""

import dataclasses
import os
import subprocess
import sys

import pytest
from runtime_jobs import spec, wait_until

import llmasos_xla as lm
from llmasos_xla.runtime.claims import Claim, Node
from llmasos_xla.runtime.launchers.holding import Holding, held_bytes, read_held
from llmasos_xla.runtime.needs import UNKNOWN_BYTES, bounded, device_bytes, excess, host_bytes, node_bytes, together
from llmasos_xla.runtime.store import Store

MiB = 1 << 20
HOG = """
import os, sys, time
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
"""


@pytest.fixture
def job(home):
    store = Store(home.store)
    found = store.submit(spec("x", devices=(1, 4)))
    store.close()
    places = (("n", 0), ("n", 1))
    return dataclasses.replace(found, state="running", places=places)


def test_what_is_said_asked_for_and_seen(job):
    assert [host_bytes(job, n) for n in (1, 4)] == [UNKNOWN_BYTES] * 2
    # On more devices in proportion, on fewer no less.
    asked = dataclasses.replace(job, need={"host": {"2": 800 * MiB}, "device": {"2": 5}})
    assert [host_bytes(asked, n) // MiB for n in (1, 2, 3)] == [800, 800, 1200]
    assert device_bytes(asked, (1, 4)) == {1: 5, 4: 5}
    assert device_bytes(job, (1, 4)) == {}
    assert host_bytes(asked, 2, 900 * MiB) == 900 * MiB
    assert host_bytes(asked, 2, 1) == 800 * MiB
    said = dataclasses.replace(asked, spec=dataclasses.replace(job.spec, memory=100 * MiB))
    assert host_bytes(said, 2) == 100 * MiB
    before = dataclasses.replace(said, need={"held": {"2": 150 * MiB}})
    assert (host_bytes(before, 2), host_bytes(before, 2, 120 * MiB)) == (150 * MiB, 150 * MiB)


def test_whoever_is_furthest_beyond_its_word_goes(job):
    nodes = (Node("n", (0,) * 4, 1000),)
    other = dataclasses.replace(job, number=2, places=(("n", 2),))
    assert excess([(job, 500, 400), (other, 500, 100)], nodes) is None
    found = excess([(job, 530, 400), (other, 500, 100)], nodes)
    assert found is not None
    assert (found.job.number, found.held, found.counted, found.urgent) == (2, 500, 100, False)
    found = excess([(job, 700, 400), (other, 500, 400)], nodes)
    assert found is not None
    assert (found.job.number, found.urgent) == (1, True)
    # Where nobody holds more than was counted on, it is nobody's fault.
    assert excess([(job, 600, 600), (other, 500, 500)], nodes) is None
    # Another node's jobs have nothing to do with it.
    away = dataclasses.replace(other, places=(("m", 0),))
    assert excess([(job, 600, 400), (away, 500, 100)], (*nodes, Node("m", (0,), 1000))) is None


def test_who_can_share_devices(job):
    nodes = (Node("n", (10, 10, 10), 1000),)
    one = dataclasses.replace(job, need={"device": {"2": 6}})
    other = dataclasses.replace(job, number=2, need={"device": {"2": 4}})
    both = [(one, (("n", 0), ("n", 1))), (other, (("n", 1), ("n", 2)))]
    assert together(both, nodes)
    assert not together([*both, (other, (("n", 1), ("n", 2)))], nodes)
    # Whose bytes nobody knows has its devices alone.
    assert not together([both[0], (job, (("n", 1),))], nodes)
    assert together([both[0], (job, (("n", 2),))], nodes)


def test_who_stays_has_its_devices_whatever_it_holds():
    nodes = (Node("n", (0,) * 4, 1000),)
    claims = [
        Claim(str(i), sizes=(2,), size=2, places=(("n", 2 * i), ("n", 2 * i + 1)), host_bytes={2: 900}, together=True)
        for i in range(2)
    ]
    less = bounded(claims, nodes)
    assert sum(node_bytes(claim.host_bytes[2], claim.places, nodes[0]) for claim in less) <= 1000
    assert min(claim.host_bytes[2] for claim in less) > 400
    assert bounded(claims[:1], nodes) == claims[:1]
    found = lm.runtime.plan([*less, Claim("late")], nodes)
    assert [found.sizes[name] for name in ("0", "1", "late")] == [2, 2, 0]


def test_processes_count_what_they_share_once(tmp_path):
    """A parent of 64 MiB and two forks of it hold 64 MiB, and a fork that writes holds its own."""
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, sys, time\n"
        "held = bytearray(64 << 20)\n"
        "held[::4096] = b'x' * len(held[::4096])\n"
        "if os.fork() and os.fork():\n"
        "    print('ready', flush=True)\n"
        "time.sleep(1000)\n"
    )
    before = held_bytes(os.getpid())
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            assert 64 * MiB < held_bytes(os.getpid()) - before < 110 * MiB
        finally:
            os.killpg(parent.pid, 9)


def test_what_is_held_is_written_down_where_it_changes(tmp_path, monkeypatch):
    told = iter([100 * MiB, 50 * MiB, 50 * MiB])
    monkeypatch.setattr("llmasos_xla.runtime.launchers.holding.held_bytes", lambda pid: next(told))
    monkeypatch.setattr("llmasos_xla.runtime.launchers.holding._EVERY_SECONDS", 0.0)
    monkeypatch.setattr("llmasos_xla.runtime.launchers.holding._SHARE", float("inf"))
    holding = Holding(tmp_path / "t")
    assert read_held(tmp_path / "t") is None
    holding.look()
    assert read_held(tmp_path / "t") == (100 * MiB, 100 * MiB)
    holding.look()
    assert read_held(tmp_path / "t") == (50 * MiB, 100 * MiB)
    (tmp_path / "t.held").unlink()
    holding.look()
    assert read_held(tmp_path / "t") is None


def test_scripts_that_say_nothing_do_not_run_each_other_out_of_memory(home, engine, tmp_path):
    """Two that hold 400 MiB each where there are 600: one is seen to be too much, and waits for the other."""
    script = tmp_path / "hog.py"
    script.write_text(HOG)
    engine("--memory", str(600 * MiB))
    jobs = [lm.runtime.submit(script, 400 * MiB, tmp_path / "go", name=name, home=home.path) for name in ("one", "two")]
    store = Store(home.store)
    wait_until(lambda: any("GiB of memory, 0.25 were counted on" in str(event.more) for event in store.events()))
    (tmp_path / "go").touch()
    assert [job.wait(timeout=60) for job in jobs] == ["done", "done"]
    assert max(job.job.attempt for job in jobs) == 2
    assert max(job.job.failures for job in jobs) == 0
    again = next(job for job in jobs if job.job.attempt == 2)
    # It may be seen, and asked to end, while it still grows: more than was counted on, whatever it would have come to.
    assert UNKNOWN_BYTES < again.job.need["held"]["1"] < 500 * MiB
    store.close()
