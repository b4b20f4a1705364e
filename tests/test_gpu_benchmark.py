"""benchmarks/gpu.py where there is no GPU: kernels interpreted or compiled, processes, records and tables."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed")

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def run(tmp_path, *arguments):
    """The command, and what it wrote."""
    command = [sys.executable, BENCHMARKS / "gpu.py", "--interpret", "--quick", "--out", tmp_path, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (path,) = tmp_path.glob("*.json")
    return ran.stdout, ran.stderr, json.loads(path.read_text())


def test_checks_and_measures(tmp_path):
    """One row of recurrence; PyTorch may be missing."""
    said, progress, content = run(tmp_path, "--check", "--bench", "--rows", "rnn/lstm-one")
    assert "check: green {'triton': 1}, 0 red, 0 left" in progress
    assert content["checks"]["worst"]["float32"] < 1e-5
    (row,) = content["rows"]
    for part in ("forward", "forward + backward"):
        ways = row["parts"][part]["ways"]
        assert {way for way, entry in ways.items() if entry.get("seconds")} >= {"ours", "xla", "scan", "scan-8"}
        assert ways["jax.experimental.rnn"]["failed"]
    assert "| lstm-one float32 | forward |" in said
    assert "Rule: the default choice takes at most 1.05 times as long as XLA alone:" in said


@pytest.mark.slow
def test_all_of_it(tmp_path):
    said, _, content = run(tmp_path, "--rows", "rnn/")
    assert content["probe"]["failed"] == {}
    assert {"launch", "recurrence", "barrier", "handing", "bandwidth"} <= content["probe"]["found"].keys()
    (table,) = (tmp_path / "tuned").glob("*.json")
    assert {"rnn forward", "rnn backward", "rnn"} <= json.loads(table.read_text())["ops"].keys()
    assert "Again and again" in said


def test_rows_have_names_of_their_own():
    from side_by_side.gpu import ops

    for op in ops.OPS.values():
        assert not op.TESTS.keys() & op.BENCH.keys()
        assert {*op.TINY} <= op.TESTS.keys()
        assert {*op.STRESS} <= op.TESTS.keys() | op.BENCH.keys()


def test_kernels_of_the_probes_compile(monkeypatch):
    """For an H100, with the types and constants that the probes launch them with; the interpreter runs them too."""
    from side_by_side.gpu import interpreted, probes

    from llmasos_xla.kernels import _dispatch
    from llmasos_xla.kernels._triton import compiler, engine, primitive

    monkeypatch.setattr(primitive, "INTERPRETER", None)
    monkeypatch.setattr(engine.ENGINE, "elsewhere", None)
    interpreted.install()
    interpreter, compiled = primitive.INTERPRETER, set()

    def both(kernel, grid, names, arrays, results, zeroed, constants):
        dtypes = dict(zip(names, [*(a.dtype for a in arrays), *(np.dtype(dtype) for _, dtype in results)]))
        asked = primitive.Kernel.of(kernel), dtypes, constants, compiler.Target("cuda", 90), compiler.Options()
        assert compiler.compile_kernel(*asked).binary
        compiled.add(kernel.fn.__name__)
        return interpreter(kernel, grid, names, arrays, results, zeroed, constants)

    monkeypatch.setattr(primitive, "INTERPRETER", both)
    with _dispatch.tracing_for("gpu"):
        found = {name: probes.PROBES[name](True) for name in ("launch", "barrier", "handing", "product")}
    assert found["launch"]["launch"] == "works"
    assert compiled == {"one_more", "counted", "meet", "hand_over", "products"}


class Asked:
    """Processes of which some requests fail."""

    def __init__(self, failing):
        self.failing = failing

    def ask(self, _, timeout=0, /, **request):
        from side_by_side.process import NoSpeedError

        if request["name"] in self.failing:
            raise NoSpeedError(f"no {request['name']}\nin two lines")
        return {"found": {request["name"]: 1}}


@pytest.mark.parametrize(("failing", "goes_on"), [(("barrier", "scan"), True), (("launch",), False)])
def test_a_failed_probe_is_written_down(tmp_path, failing, goes_on):
    """The others go on; without a launch nothing does."""
    from side_by_side.gpu import phases
    from side_by_side.gpu.device import Clock
    from side_by_side.gpu.records import Records

    path = tmp_path / "gpu.json"
    records = Records(path, {"versions": {}})
    asked = phases.Run(Asked(failing), records, None, "", True, "", False, 1, 0.0, lambda _: None)
    assert phases.probe(asked, Clock(60)) is goes_on
    section = json.loads(path.read_text())["probe"]
    assert section["failed"] == {name: f"no {name}\nin two lines" for name in failing}
    assert section["found"].keys() == (set(phases._PROBES) - set(failing) if goes_on else set())


def entry(*seconds):
    return {"seconds": list(seconds), "deviation": 0.0}


def content(ours):
    ways = {"ours": entry(*ours), "xla": entry(2.0, 2.0), "scan": entry(8.0, 8.0), "torch": {"failed": "a | b\nc"}}
    part = {"times": 1, "floors": {"bytes": 0.5}, "ways": ways}
    row = {"row": ["rnn", "toy", "float32"], "chosen": {"implementation": "triton"}, "parts": {"forward": part}}
    return {"about": {"name": "A GPU", "date": "today", "command": "gpu.py", "versions": {"jax": "1"}}, "rows": [row]}


def test_the_verdict():
    from side_by_side.gpu import tables

    assert "holds in 1 figures" in tables.verdict(content((1.0, 1.0)))
    assert "| rnn | scan | 1 | 8.00 | 8.00 (toy float32, forward) |" in tables.verdict(content((1.0, 1.0)))
    assert "holds in 1 figures" in tables.verdict(content((2.09, 2.09)))
    assert "BROKEN in 1 of 1 figures: rnn toy float32, forward: 1.50" in tables.verdict(content((3.0, 3.0)))
    assert "| toy float32 | forward | 1000 | 0% | triton | 50% (bytes) |" in tables.markdown(content((1.0, 1.0)))


def test_the_readme_holds_the_tables(tmp_path):
    from side_by_side.gpu import tables
    from side_by_side.gpu.records import results

    readme = tmp_path / "README.md"
    readme.write_text((BENCHMARKS / "README.md").read_text())
    tables.update(readme, [content((1.0, 1.0))])
    assert "#### A GPU" in readme.read_text()
    assert tables.NOTHING not in readme.read_text()
    tables.update(readme, [])
    assert tables.NOTHING in readme.read_text()
    known = [*results(BENCHMARKS / "results")]
    assert known or readme.read_text() == (BENCHMARKS / "README.md").read_text()


def test_without_jaxtyping():
    """The annotations of the public functions are all that it is needed for."""
    code = "import side_by_side.gpu, sys; print(sys.modules['jaxtyping'].Float[int, 'n'] | None)"
    absent = f"import importlib.util, sys; importlib.util.find_spec = lambda _: None; sys.path += [{str(BENCHMARKS)!r}]"
    ran = subprocess.run([sys.executable, "-c", f"{absent}; {code}"], capture_output=True, text=True)
    assert "_Annotation | None" in ran.stdout, ran.stderr
