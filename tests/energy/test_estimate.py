"""Joules by CPU time, and whose time that is."""

import subprocess
import sys
import time

import pytest

from llmasos_xla.energy import Energy, Meter, processes
from llmasos_xla.energy.estimate import ByCpuTime, watts_per_thread
from llmasos_xla.energy.figures import UnavailableError, absent, total
from llmasos_xla.energy.processes import Tree, machine_seconds, snapshot

BURN = "import time\nend = time.process_time() + {0}\nwhile time.process_time() < end: pass\n"


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_joules_are_cpu_seconds_times_watts():
    seconds = 3.0
    counter = ByCpuTime(lambda: seconds, "somebody")
    seconds += 10
    assert counter.read() == (35.0, "estimated", counter.read().source)
    assert "CPU time of somebody x 3.5 W a thread: Cloud Carbon Footprint's mean" in counter.read().source


def test_a_power_that_is_told(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setenv("LLMASOS_CPU_TDP", "320")
    assert watts_per_thread() == (5.0, "LLMASOS_CPU_TDP=320 over 64 threads")
    for wrong in ("", "many", "0", "-3", "inf", "nan"):
        monkeypatch.setenv("LLMASOS_CPU_TDP", wrong)
        with pytest.raises(ValueError, match=f"LLMASOS_CPU_TDP wants the watts .* a number > 0, got '{wrong}'"):
            watts_per_thread()


def test_a_meter_counts_what_this_process_works(tmp_path):
    meter = Meter(rapl=tmp_path)
    burn(0.3)
    used = meter.read().joules
    assert used >= 0.3 * 3.5 * 0.99
    time.sleep(0.2)
    assert meter.read().joules - used < 0.2 * 3.5


@pytest.fixture(params=["proc", "old kernel", "psutil"])
def way(request, monkeypatch):
    """How processes are found: by /proc, by all of /proc where it tells no children, by psutil."""
    if request.param == "old kernel":
        real = open

        def without_children(path, *arguments):
            if str(path).endswith("/children"):
                raise FileNotFoundError(path)
            return real(path, *arguments)

        monkeypatch.setattr(processes, "open", without_children, raising=False)
    elif request.param == "psutil":
        pytest.importorskip("psutil", reason="psutil is not installed")
        monkeypatch.setattr(processes, "_HAS_PROC", False)
    return request.param


@pytest.mark.usefixtures("way")
def test_descendants_count_while_they_live_and_after():
    """Two generations: what they used is there once, before and after they are waited for."""
    tree = Tree()
    others = tree.read().processes
    grandchild = f"subprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}])"
    code = f"import subprocess, sys\n{grandchild}\nprint(flush=True)\ninput()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1)
    assert process.stdout.readline() == b"\n"
    living = tree.read()
    assert living.processes == others + 1
    assert living.seconds >= 0.28
    process.communicate(b"\n")
    ended = tree.read()
    assert ended.processes == others
    assert living.seconds <= ended.seconds < living.seconds + 0.3


@pytest.mark.usefixtures("way")
def test_both_searches_find_the_same():
    tree = Tree()
    before = tree.read()
    code = "import threading\nthreading.Thread(target=input).start()"
    children = [subprocess.Popen([sys.executable, "-c", code], stdin=-1) for _ in range(3)]
    found, at_once = tree.read(), tree.read(snapshot())
    assert found.processes == at_once.processes == before.processes + 3
    assert found.memory == pytest.approx(at_once.memory, rel=0.2)
    for child in children:
        child.communicate(b"\n")
    assert tree.read().processes == tree.read(snapshot()).processes == before.processes


@pytest.mark.usefixtures("way")
def test_a_process_that_is_gone_is_told_and_not_raised():
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\ninput()"], stdin=-1, stdout=-1)
    assert process.stdout.readline() == b"\n"
    tree = Tree(process.pid)
    assert tree.read().processes == 1
    process.stdin.write(b"\n")
    process.stdin.close()
    deadline = time.monotonic() + 30
    # Nobody has waited for it: it is there and has ended.
    while tree.read().processes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tree.read().processes == tree.read(snapshot()).processes == tree.read().memory == 0
    process.stdout.close()
    process.wait()
    assert tree.read()[1:] == tree.read(snapshot())[1:] == (0, 0)
    with pytest.raises(UnavailableError, match=f"there is no process {process.pid}"):
        Tree(process.pid)
    assert Meter(pid=process.pid).parts()["cpu"].quality in ("absent", "measured")


def test_processes_that_come_and_go_while_they_are_counted():
    """A shell that starts others as fast as it can: no reading fails, and their time is not lost."""
    code = "import subprocess\nprint(flush=True)\nwhile True: subprocess.run(['true'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1)
    assert process.stdout.readline() == b"\n"
    tree = Tree(process.pid)
    seconds = [tree.read(snapshot() if i % 2 else None).seconds for i in range(200)]
    process.kill()
    process.wait()
    process.stdout.close()
    assert seconds == sorted(seconds)
    assert tree.read().processes == 0


def test_the_machine_works_at_least_as_much_as_this_process():
    before, own = machine_seconds(), time.process_time()
    burn(0.3)
    assert machine_seconds() - before >= (time.process_time() - own) * 0.8


def test_a_sum_is_as_well_known_as_its_worst_part():
    measured, estimated = Energy(1.0, "measured", "a"), Energy(2.0, "estimated", "b")
    assert total([measured, measured]) == (2.0, "measured", "a + a")
    assert total([measured, estimated])[:2] == (3.0, "estimated")
    assert total([measured, absent("no counter")])[1:] == ("absent", "no counter")
    assert total([]).quality == "absent"
