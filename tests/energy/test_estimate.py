"""Joules by CPU time, and whose time that is."""

import subprocess
import sys
import time

import pytest

from llmasos_xla.energy import Energy, Meter
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


def test_descendants_count_while_they_live_and_after(tmp_path):
    """Two generations: what they used is there once, before and after they are waited for."""
    tree = Tree()
    child = (
        f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}])\nprint(flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{child}\ninput()"], stdin=-1, stdout=-1)
    assert process.stdout.readline() is not None
    living = tree.read()
    assert living.processes == 2
    assert living.seconds >= 0.28
    assert living.memory > tree.read(snapshot()).memory / 2
    process.communicate(b"\n")
    ended = tree.read()
    assert ended.processes == 1
    assert living.seconds <= ended.seconds < living.seconds + 0.3


def test_both_ways_to_find_descendants_agree():
    processes = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) for _ in range(3)]
    tree = Tree()
    assert tree.read().processes == tree.read(snapshot()).processes == 4
    for process in processes:
        process.communicate(b"\n")
    assert tree.read().processes == tree.read(snapshot()).processes == 1


def test_a_process_that_is_gone_is_told_and_not_raised():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    tree = Tree(process.pid)
    process.communicate(b"\n")
    assert tree.read().processes == tree.read(snapshot()).processes == tree.read().memory == 0
    with pytest.raises(UnavailableError, match=f"there is no process {process.pid}"):
        Tree(process.pid)
    assert Meter(pid=process.pid).parts()["cpu"].quality in ("absent", "measured")


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
