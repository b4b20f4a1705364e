"""Every notebook runs from top to bottom."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

# They train or wait long: `make notebooks` runs these.
LONG = {"04_sharding", "05_models", "06_deploy_and_update", "07_runtime"}
FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


# The kernel's own machinery (zmq, tornado, jupyter_client) warns about event loops; that is not ours to mend.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in sorted(FOLDER.glob("*.ipynb"))
    ],
)
def test_runs(path, tmp_path, monkeypatch):
    # Compiled as for a reader: what trains, or is timed, wants optimized code (tests/conftest.py).
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    errors = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert not errors
