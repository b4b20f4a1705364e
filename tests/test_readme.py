"""The README's listings run as they stand, on small data."""

import pathlib
import re

import numpy as np
import pytest

import llmasos_xla as lm

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def listings():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    return blocks


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channel", [True, False])
def test_the_first(listings, capsys, dtype, channel):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 200)
    x = (rng.integers(0, 100, (200, 28, 28)) + 15 * y[:, None, None]).astype(dtype)
    x = x[..., None] if channel else x
    names = {"x_train": x[:160], "y_train": y[:160], "x_test": x[160:], "y_test": y[160:]}
    exec(listings[0], names)
    assert "Epoch 5/5" in capsys.readouterr().out
    assert names["model"].predict(x[:3]).shape == (3, 10)


def test_the_second(listings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    for mode, rows in (("train", 150), ("test", 40)):
        y = rng.integers(0, 10, rows)
        table = np.column_stack([y, rng.integers(0, 100, (rows, 784)) + 15 * y[:, None]])
        np.savetxt(f"{mode}.csv", table, fmt="%d", delimiter=",", header=header, comments="")
    handles = []
    deploy = lm.Deployer.deploy
    monkeypatch.setattr(lm.Deployer, "deploy", lambda *a, **k: handles.append(deploy(*a, **k)) or handles[-1])
    names = {}
    try:
        exec(listings[1], names)
        raw = names["test_dataset"]
        pixels = np.loadtxt("test.csv", delimiter=",", skiprows=1, dtype=np.uint8)[:, 1:]
        np.testing.assert_array_equal(handles[0].predict(pixels), names["model"].predict(raw))
    finally:
        for handle in handles:
            handle.stop()
    assert "Epoch 10/10" in capsys.readouterr().out
    # The address in the README is one machine's: the text says that the port is any free one.
    text = README.read_text()
    (shown,) = set(re.findall(r"http://127\.0\.0\.1:(\d+)", text))
    assert f"The port is one that was free, so yours is another; `deploy(port={shown})` asks for that one" in text
    again = lm.load("model.h5")
    assert again.evaluate(raw, verbose=0) == names["model"].evaluate(raw, verbose=0)


def test_every_make_target_has_a_rule():
    text = README.with_name("Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert [name for name in targets.split() if not re.search(rf"^{name}:", text, re.MULTILINE)] == []


@pytest.mark.slow
def test_the_page_on_sharding(tmp_path, monkeypatch, capsys):
    """Its listings run one after the other, as they stand; the table of arrays is the one that is printed."""
    monkeypatch.chdir(tmp_path)
    text = README.with_name("docs").joinpath("sharding.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    table, *_ = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert table in capsys.readouterr().out
    assert names["again"].predict(names["x"][:3]).shape == (3, 4)
    sizes = lm.MeshSpec(fsdp=-1, tensor=2).legal_world_sizes(batch_size=6, most=12)
    assert f"# {sizes}\n" in text
