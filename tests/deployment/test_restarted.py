"""A server that was killed, and what it was started with is no more: what starts again in its place."""

import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest

import llmasos_xla as lm

pytestmark = pytest.mark.usefixtures("unchecked")  # numbers of rows are symbols where programs are exported

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def models():
    found = [lm.Sequential([lm.layers.Dense(2, input_shape=(4,))], seed=seed) for seed in range(3)]
    for model in found:
        model.predict(X)
    return found


def wait_until(true):
    deadline = time.monotonic() + 40
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.thorough
def test_a_killed_server_whose_last_file_is_gone_answers_with_what_it_was_deployed_with(models, tmp_path, monkeypatch):
    first, second = (model.export(tmp_path / f"{i}.lmx") for i, model in enumerate(models[:2]))
    monkeypatch.chdir(tmp_path)
    with lm.Deployer(first).deploy(name="m", restart=True, state="state.json") as server:
        server.update(second)
        # Wherever this process goes, the server's state stays where it was.
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts == 1)
        assert server.stats()["version"] == "2"
        second.unlink()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts == 2)
        assert "version 2, which was handed over last, cannot be opened" in server.last_words()
        assert server.stats()["version"] == "1"
        np.testing.assert_allclose(server.predict(X), models[0].predict(X), rtol=1e-5)
        # The name is not given to another.
        assert server.update(models[2])["version"] == "3"


def test_a_server_that_is_told_to_end_writes_what_came_from_memory_and_leaves_nothing_behind(models, tmp_path):
    state = tmp_path / "state.json"
    with lm.Deployer(models[0].export(tmp_path / "m.lmx")).deploy(state=state) as server:
        control = pathlib.Path(server._said["control"])
        assert control.exists()
        # The first is being written when the last comes, and the pause behind it is longer than a server's end.
        versions = [server.update(model)["version"] for model in models]
        os.kill(server.pid, signal.SIGTERM)
        assert server._child._process.wait(20) == 0
    assert not control.exists()
    assert json.loads(state.read_text())["m"]["version"] == versions[-1]


@pytest.mark.thorough
def test_a_killed_server_whose_keys_are_gone_lets_nobody_in(models, tmp_path, capsys):
    keys = tmp_path / "keys"
    keys.write_text("one")
    with lm.Deployer(models[0].export(tmp_path / "m.lmx")).deploy(restart=True, keys=keys) as server:
        keys.write_text("\n")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts or not server.running)
        assert server.restarts == 0
        assert "holds none, and would let everybody in" in capsys.readouterr().err
