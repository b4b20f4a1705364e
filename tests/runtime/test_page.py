"""The page's listings run as they stand, on fewer rows."""

import pathlib
import re
import subprocess
import sys

import pandas as pd
import pytest

from llmasos_xla.runtime.figures import COLUMNS, GPU_COLUMNS

pytest.importorskip("psutil", reason="psutil is not installed")

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "runtime.md"


def test_listings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sections = {part.partition("\n")[0]: part for part in PAGE.read_text().split("\n## ")}
    watching, monitor = re.findall(r"```python\n(.*?)```", sections["Watching"], re.DOTALL)
    (energy,) = re.findall(r"```python\n(.*?)```", sections["Energy"], re.DOTALL)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = {"pid": process.pid}
    for listing in (watching.replace("200_000", "2_000"), monitor, energy):
        exec(listing, names)
    process.communicate(b"\n")
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    frame = pd.read_parquet("fit.parquet")
    assert frame["loss"].dropna().iloc[-1] == names["history"].history["loss"][-1]
    assert len(pd.read_parquet("log")) >= 1


def test_every_column_is_told():
    told = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert {*COLUMNS, *(f"gpu0_{name}" for name in GPU_COLUMNS)} <= told
