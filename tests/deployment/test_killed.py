"""A server that is killed, at any moment of an update, comes back with a whole version."""

import contextlib
import json
import os
import pathlib
import signal
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.state import State
from llmasos_xla.deployment.versions import open_version

pytestmark = [
    pytest.mark.usefixtures("unchecked"),  # numbers of rows are symbols where programs are exported
    pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's"),
]

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def made(seed, hidden=5):
    model = lm.Sequential([lm.layers.Dense(hidden, activation="tanh", input_shape=(4,)), lm.layers.Dense(2)], seed=seed)
    model.predict(X)
    return model


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(server):
    before = server.restarts
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.restarts > before)


@pytest.fixture(scope="module")
def models():
    return [made(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def bundles(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [model.export(folder / f"{i}.lmx") for i, model in enumerate(models)]


def killed_in_updates(server, sources, times, seed):
    """Kills the server `times` times, each a random while after an update began; what it said before and since.

    Yields (version before, version that the update would make, its number among the sources).
    """
    rng = np.random.default_rng(seed)
    seconds = server.update(sources[0])["seconds"]
    known = {server.stats()["version"]: 0}
    for turn in range(times):
        before, new = server.stats()["version"], 1 + turn % (len(sources) - 1)
        # From the message's arrival to well behind the swap.
        moment = time.monotonic() + rng.uniform(0, 2.5) * seconds
        restarts, pid = server.restarts, server.pid
        thread = threading.Thread(target=_update, args=(server, sources[new]))
        thread.start()
        time.sleep(max(0.0, moment - time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        thread.join()
        wait_until(lambda restarts=restarts: server.restarts > restarts)
        after = server.stats()["version"]
        assert after in (before, str(int(before) + 1))
        if after != before:
            known[after] = new
        yield known[after], after != before


def _update(server, source):
    with contextlib.suppress(ConnectionError):
        server.update(source)


@pytest.mark.slow
def test_killed_at_random_moments_of_updates_it_answers_with_a_whole_version(models, bundles, tmp_path):
    """Twenty times; a server that ends five times a minute stays ended, so there are five servers, of one state."""
    state, answered, new = tmp_path / "state.json", 0, 0
    for seed in range(5):
        with lm.Deployer(bundles[0]).deploy(name="m", state=state, restart=True) as server:
            for number, updated in killed_in_updates(server, bundles, 4, seed):
                np.testing.assert_allclose(server.predict(X), models[number].predict(X), rtol=1e-5)
                assert server.stats()["failures"] == 0
                answered, new = answered + 1, new + updated
    assert answered == 20
    # Random moments lie on both sides of the swap.
    assert 0 < new < 20


@pytest.mark.slow
def test_killed_while_weights_from_memory_are_written_it_starts_with_some_of_them_whole(models, bundles, tmp_path):
    state, rng = tmp_path / "state.json", np.random.default_rng(0)
    for _ in range(2):
        with lm.Deployer(bundles[0]).deploy(name="m", state=state, restart=True) as server:
            known = {server.stats()["version"]: server.predict(X)}
            for _ in range(4):
                for number in rng.permutation(3):
                    known[server.update(models[number])["version"]] = models[number].predict(X)
                time.sleep(rng.uniform(0, 0.01))
                kill(server)
                np.testing.assert_allclose(server.predict(X), known[server.stats()["version"]], rtol=1e-5)
            # On a busy machine none was written before the server was killed; one that is stopped writes the last.
            server.update(models[0])
        assert not list(tmp_path.glob(".*.part"))
        assert len(list(state.with_name("state.json.live").iterdir())) == 1


def test_weights_from_memory_are_those_it_starts_with_again(models, bundles, tmp_path):
    state = tmp_path / "state.json"
    with lm.Deployer(bundles[0]).deploy(name="m", state=state, restart=True) as server:
        for model in (models[1], models[2]):
            server.update(model)
        wait_until(lambda: _recorded(state) == "3")
        kill(server)
        assert server.stats()["version"] == "3"
        np.testing.assert_allclose(server.predict(X), models[2].predict(X), rtol=1e-5)
        # What it was started with is still what a rollback leads to, and starts with then.
        server.update(models[0])
        assert server.rollback() == "3"
        wait_until(lambda: _recorded(state) == "3")
        wide = made(7, hidden=9)
        server.update(wide)
        expected = wide.predict(X)
    # The end of the server waits for what is not written.
    assert [file.name for file in (tmp_path / "state.json.live").iterdir()] == ["m-5.safetensors"]
    with lm.Deployer(bundles[0]).deploy(name="m", state=state) as server:
        np.testing.assert_allclose(server.predict(X), expected, rtol=1e-5)


def _recorded(state):
    return json.loads(state.read_text())["m"]["version"] if state.exists() else None


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "state.json")


def of_memory(model, version):
    return Served.of_model(model, "m", version)


def test_versions_without_a_file_are_written_and_the_newest_stays(models, state):
    for number, model in enumerate(models):
        state.put("m", of_memory(model, str(number)))
    assert state.close(20.0)
    known = State(state.path).known("m")
    assert known is not None
    assert known["version"] == "2"
    assert [str(file) for file in state.folder.iterdir()] == [known["path"]]
    assert state.keeps(known["path"])
    found = open_version(known["path"], "m").infer({"input": X})["output"]
    np.testing.assert_allclose(found, models[2].predict(X), rtol=1e-5)


def test_a_file_that_answers_since_is_not_written_over(models, bundles, state, monkeypatch):
    from llmasos_xla.deployment import versions

    begun, go = threading.Event(), threading.Event()
    write = versions.write_version

    def slow(served, path):
        begun.set()
        assert go.wait(20)
        write(served, path)

    monkeypatch.setattr(versions, "write_version", slow)
    state.put("m", of_memory(models[1], "2"))
    assert begun.wait(20)
    served = open_version(str(bundles[2]), "m", "3")
    served.path = str(bundles[2])
    state.put("m", served)
    go.set()
    assert state.close(20.0)
    assert State(state.path).known("m") == {"path": str(bundles[2]), "digest": served.digest, "version": "3"}
    assert list(state.folder.iterdir()) == []


def test_what_a_killed_server_left_half_written_is_removed(models, state):
    state.put("m", of_memory(models[0], "1"))
    assert state.close(20.0)
    parts = [state.folder / ".m-2.safetensors.x.part", state.path.parent / ".state.json.y.part"]
    for part in parts:
        part.write_bytes(b"half")
    assert State(state.path).known("m") == state.known("m")
    assert _recorded(state.path) == "1"
    assert not any(part.exists() for part in parts)


def test_a_disk_that_takes_nothing_is_told_of_and_changes_nothing(models, state, caplog):
    state.folder.write_text("a file where the folder should be")
    state.put("m", of_memory(models[0], "1"))
    assert state.close(20.0)
    assert "version 1 of 'm' is not kept" in caplog.text
    assert state.known("m") is None


@pytest.mark.parametrize("text", ["", "[]", '{"m": 3}', '{"m": {"path": 1, "version": "2"}}'])
def test_a_state_file_that_is_none_says_nothing(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    assert State(tmp_path / "state.json").known("m") is None


def test_functions_without_a_model_are_kept_as_a_bundle(tmp_path):
    from llmasos_xla.api.exporting import export_net
    from llmasos_xla.deployment import versions

    variables = lm.Variables({"w": jnp.ones((2, 3))}, {})
    path = export_net(
        lambda v, x: {"y": x @ v.params["w"]}, variables, tmp_path / "f.lmx", example=np.ones((2, 2), np.float32)
    )
    served = open_version(str(path), "f")
    served.arrays = {n: 2 * a for n, a in served.arrays.items()}
    kept = pathlib.Path(tmp_path / f"kept{versions.ending(served)}")
    versions.write_version(served, kept)
    again = open_version(str(kept), "f")
    np.testing.assert_array_equal(again.infer({"input": X[:, :2]})["y"], served.infer({"input": X[:, :2]})["y"])
    versions.check(again, None)
