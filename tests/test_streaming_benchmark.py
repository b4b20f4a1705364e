"""The benchmark of streaming runs and tells what it should."""

import json
import pathlib
import subprocess
import sys

BENCHMARK = pathlib.Path(__file__).parent.parent / "benchmarks" / "streaming.py"


def test_a_short_run(tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, BENCHMARK, "--rows", "silero_vad", "--minutes", "0.05", "--turns", "3", "--json", found]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    row = json.loads(found.read_text())["rows"]["silero_vad"]
    assert row["same"]
    assert 0 < row["real_time_factor"] < 5
    assert "| silero_vad | 309,633 |" in done.stdout
