"""benchmarks/scheduling.py on a short trace: every scheduler has its row, and each did all jobs."""

import json
import pathlib
import subprocess
import sys

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def test_every_scheduler_has_its_row(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, BENCHMARKS / "scheduling.py", "--quick", "--out", out]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    rows = found["nodes"]["1"]
    assert list(rows) == ["FIFO", "backfill, EASY", "backfill, Slurm", "planner, fixed sizes", "planner"]
    for name, row in rows.items():
        assert f"| {name} | " in ran.stdout
        assert 0 < row["utilization"] < 1
        assert row["turnaround_minutes"] > 0
    assert rows["FIFO"]["preemptions"] == rows["FIFO"]["resizes"] == 0
    assert rows["planner"]["resizes"] > 0
