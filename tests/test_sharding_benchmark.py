"""benchmarks/sharding.py on tiny models: processes start and end, and each part has its table."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def run(tmp_path, *arguments, timeout=300):
    out = tmp_path / "found.json"
    command = [sys.executable, BENCHMARKS / "sharding.py", "--quick", "--out", out, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout, json.loads(out.read_text())


def test_layouts_take_turns(tmp_path):
    said, found = run(tmp_path, "--parts", "speed", "--rounds", "2")
    results = found["speed"]["mlp"]
    assert list(results) == ["one device", "data, 2 processes", "fsdp, 2 devices in one process"]
    alone = results["one device"]["loss"]
    for name, result in results.items():
        assert not result["failed"]
        assert len(result["steps"]) == len(result["others"]) == 2
        assert min(result["steps"]) > 0
        # Each has the loss of one device: they do fit the same model on the same rows.
        assert result["loss"] == pytest.approx(alone, rel=1e-5), name
    assert "| one device | " in said
    assert "All layouts use the same " in said
    assert found["machine"]["date"]
    assert found["versions"]["jax"] in said


@pytest.mark.slow
def test_checkpoints_and_messages(tmp_path):
    said, found = run(tmp_path, "--parts", "saves", "wire")
    (row,) = found["saves"]
    assert row["bytes"] == pytest.approx(1e6 * row["megabytes"], rel=0.1)
    assert [len(held) for held in row["held_up"]] == [3]
    assert min(row["held_up"][0]) > 0
    assert "**Checkpoints**" in said
    assert [(r["model"], r["strategy"]) for r in found["wire"]] == [("mlp", s) for s in ("data", "fsdp", "tensor")]
    data, fsdp, tensor = found["wire"]
    # Besides the gradients a step sums its loss and the count of its rows.
    assert data["compiled"]["data"] == pytest.approx(data["formula"]["data"], rel=1e-3)
    # Nobody wants the gradient of the data: for it the formula gathers the first kernel, and sums what it multiplies.
    kernel, rows = 784 * 256 * 4, 16 * 784 * 4
    first = {"fsdp": kernel * 7 / 8, "tensor": 2 * rows * 7 / 8}
    assert fsdp["compiled"]["fsdp"] == pytest.approx(fsdp["formula"]["fsdp"] - first["fsdp"], rel=1e-3)
    assert tensor["compiled"]["tensor"] == pytest.approx(tensor["formula"]["tensor"] - first["tensor"], rel=1e-2)
    assert "| mlp | data 8 | " in said


def test_who_cannot_start_gets_no_speed(monkeypatch):
    from side_by_side.sharding import speed
    from side_by_side.sharding.layouts import ALONE, Layout

    told = []
    bad = Layout("dta", 1, 1)
    found = speed.compete("mlp", [ALONE, bad], 1, True, told.append)
    assert found[bad].failed.startswith("did not start: ")
    assert "dta" in found[bad].failed
    assert not found[bad].steps
    assert len(found[ALONE].steps) == 1


def test_who_computes_something_else_gets_no_speed(monkeypatch):
    from side_by_side.sharding import speed, tables
    from side_by_side.sharding.layouts import TINY
    from side_by_side.sharding.world import Epoch

    class World:
        def __init__(self, kind, layout, tiny):
            self.layout = layout

        def ready(self):
            pass

        def epoch(self):
            return Epoch(0.5, 2.0 if self.layout.processes == 1 else float("nan"), 0.0)

        def close(self):
            pass

    monkeypatch.setattr(speed, "World", World)
    found = speed.compete("mlp", TINY, 3, True, lambda _: None)
    assert [result.failed for result in found.values()] == ["", "wrong: a loss of nan where one device has 2", ""]
    assert found[TINY[0]].steps == [250.0] * 3
    table = tables.speed("mlp", found, 4, False)
    assert "| data, 2 processes | wrong: a loss of nan where one device has 2 |  |  |" in table
    assert "| fsdp, 2 devices in one process | 250 | 250..250 | 1.00 |" in table


def test_tables_of_figures():
    from side_by_side.sharding import tables

    row = {
        "megabytes": 10.0,
        "bytes": 10e6,
        "every": 100,
        "plain": [0.01],
        "saving": [0.011],
        "held_up": [[0.02, 0.04]],
    }
    assert "| 10.0 | 10 | 100 | 30 | 20..40 | 3 | 1.10 |" in tables.saves([row, {"megabytes": 5.0, "failed": "no"}])
    rows = [
        {"model": "a", "strategy": "data", "formula": {"data": 1e6}, "compiled": {"data": 1.5e6, "?": 5e5}},
        {"model": "a", "strategy": "seq", "formula": {}, "compiled": {"seq": 1e6}},
        {"model": "a", "strategy": "pipe", "formula": {}, "failed": "not planned"},
    ]
    table = tables.wire(rows, 8)
    assert "| a | data 8 | 2.000 | 1.000 | 2.00 |" in table
    assert "| a | seq 8 | 1.000 | 0.000 | not in the formula |" in table
    assert "| a | pipe 8 | not planned | 0.000 | |" in table
