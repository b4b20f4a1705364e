"""One rank's failure ends the others, with its name and reason, within the heartbeat."""

import re

import pytest
from sharding.ranks import HEARTBEAT, TOTAL, alive, launch

LOST = "its connection closed without a word: killed"
SILENT = f"no sign of life for {HEARTBEAT:g} s: stopped"

# What rank 1, or the one that is named, does in the middle of its work; the others are in a collective that needs it.
FAULTS = {
    "raises": "raise ValueError('row 7 is bad')",
    "raises in a thread": """
import threading
thread = threading.Thread(target=lambda: open("/absent/file"), name="reader")
thread.start()
time.sleep(60)""",
    "exits": "sys.exit(3)",
    "exits with a text": "sys.exit('no data today')",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "is killed and leaves a child": """
if os.fork() == 0: print('child', os.getpid(), flush=True) or time.sleep(60)
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)""",
    "is stopped": "print('at', time.time(), flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)",
    "raises what a dead neighbor causes": "raise RuntimeError('Gloo all-reduce failed: Connection closed by peer')",
}


def script(folder, fault, rank):
    path = folder / "train.py"
    path.write_text(
        "import os, signal, sys, time\nimport llmasos_xla as lm\n"
        + TOTAL
        + "print('sum', total(), 'pid', os.getpid(), flush=True)\n"
        + f"if lm.world().rank == {rank}:\n"
        + "".join(f"    {line}\n" for line in FAULTS[fault].strip().splitlines())
        + "while True: total()\n"
    )
    return str(path)


def run(tmp_path, fault, rank, ranks=2):
    out = launch([script(tmp_path, fault, rank)], "-n", str(ranks), "--logs", str(tmp_path))
    pids = dict(re.findall(rf"^\[(\d)\] sum {ranks} pid (\d+)$", out.text, re.MULTILINE))
    assert str(rank) in pids, out.text
    return out, pids[str(rank)]


def named(out, rank, pid, reason):
    """What a rank printed names the culprit, and nothing else as a cause."""
    assert re.search(rf"llmasos: rank {rank} \(host \S+, pid {pid}\) failed: {re.escape(reason)}", out), out
    assert "ends with exit code 76" in out
    assert "Traceback" not in out
    assert "coordination" not in out
    assert "Check failure" not in out


@pytest.mark.parametrize(
    ("fault", "rank", "reason", "code"),
    [
        ("raises", 1, "ValueError: row 7 is bad", 1),
        ("raises", 0, "ValueError: row 7 is bad", 1),
        ("raises in a thread", 1, "FileNotFoundError: [Errno 2] No such file or directory: '/absent/file' (in thr", 1),
        ("exits", 1, "the script exited with code 3", 3),
        ("exits with a text", 0, "the script exited with code 1", 1),
        ("is killed", 1, LOST, 137),
        ("is killed and leaves a child", 0, LOST, 137),
    ],
)
def test_failure_is_named(tmp_path, fault, rank, reason, code):
    out, pid = run(tmp_path, fault, rank)
    named(out.of(1 - rank), rank, pid, reason)
    assert out.code == code
    assert f"llmasos launch: rank {rank} failed first: " in out.text
    # Its own traceback begins at the script.
    assert ("Traceback" in out.of(rank)) == fault.startswith("raises")
    assert "runpy" not in out.text
    for child in re.findall(r"child (\d+)", out.text):
        assert not alive(int(child))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_given_up_after_the_heartbeat(tmp_path, rank):
    out, pid = run(tmp_path, "is stopped", rank)
    named(out.of(1 - rank), rank, pid, SILENT)
    stopped_at = float(re.search(r"at (\S+)", out.of(rank))[1])
    named_at = (tmp_path / f"rank-{1 - rank}.log").stat().st_mtime
    assert HEARTBEAT / 2 < named_at - stopped_at < HEARTBEAT + 3
    assert f"rank {rank} failed first: the others ended, it did not (it was stopped)" in out.text


def test_among_three_all_others_name_the_one_that_was_killed(tmp_path):
    out, pid = run(tmp_path, "is killed", 2, ranks=3)
    for rank in (0, 1):
        named(out.of(rank), 2, pid, LOST)


def test_an_error_that_a_dead_neighbor_causes_is_told_if_nobody_is_dead(tmp_path):
    out, pid = run(tmp_path, "raises what a dead neighbor causes", 1)
    named(out.of(0), 1, pid, "RuntimeError: Gloo all-reduce failed")
    assert "Traceback" in out.of(1)
    assert out.code == 1


@pytest.mark.parametrize("code", [0, 75])
def test_a_rank_that_ends_in_order_is_no_failure(tmp_path, code):
    path = tmp_path / "train.py"
    path.write_text(
        "import sys, time\nimport llmasos_xla as lm\n"
        + TOTAL
        + f"print('sum', total())\nif lm.world().rank == 1: sys.exit({code})\n"
        + f"time.sleep({HEARTBEAT + 1 if code else 1})\nprint('wrote the report')\n"
    )
    out = launch([str(path)], "-n", "2")
    assert out.code == code
    assert "wrote the report" in out.of(0)
    assert "llmasos" not in out.text
