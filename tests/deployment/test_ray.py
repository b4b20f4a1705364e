"""Replicas run by Ray Serve: the law is that nobody notices an update, whoever ends meanwhile.

Ray has an environment of its own (`make ray`); elsewhere these tests are skipped.
"""

import collections
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import llmasos_xla as lm

pytest.importorskip(
    "ray", reason="Ray is not installed here; `make ray` runs these tests in an environment that has it"
)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
ROOT = str(pathlib.Path(__file__).parents[2])


def made(seed, hidden=5):
    model = lm.Sequential([lm.layers.Dense(hidden, activation="tanh", input_shape=(4,)), lm.layers.Dense(2)], seed=seed)
    model.predict(X)
    return model


@pytest.fixture(scope="module")
def models():
    return [made(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for number, model in enumerate(models):
        model.save(folder / f"{number}.safetensors")
    return [folder / f"{number}.safetensors" for number in range(len(models))]


@pytest.fixture(scope="module")
def small():
    """A small store of objects, for machines that have not much memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", str(200 << 20))
        yield


@pytest.fixture(scope="module")
def server(files, small):
    with lm.Deployer(files[0]).deploy(engine="ray", replicas=2, name="m", warm=(1, 4), wait=False) as server:
        yield server


@pytest.fixture(autouse=True)
def back_at_the_first(request, models):
    """Each test that shares the server finds the first model's weights in it."""
    if "server" in request.fixturenames:
        request.getfixturevalue("server").update(models[0])


def ask(server, connection=None):
    """(outputs, version) of one request."""
    own = connection or http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    tensor = {"name": "input", "shape": [3, 4], "datatype": "FP32", "data": X.ravel().tolist()}
    own.request("POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}), {"Content-Type": "application/json"})
    response = own.getresponse()
    content = json.loads(response.read())
    if connection is None:
        own.close()
    assert response.status == 200, content
    return np.array(content["outputs"][0]["data"], np.float32).reshape(3, 2), content["model_version"]


def replicas(server):
    return {each["pid"] for each in server.stats()["replicas"]}


def test_it_answers_as_the_model_does(server, models):
    np.testing.assert_allclose(server.predict(X), models[0].predict(X), rtol=1e-5)
    assert server.ready()
    assert len(replicas(server)) == 2
    for address, content in (("/metrics", b'replica="'), ("/v2/stats", b'"replicas"'), ("/", b"<html")):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", address)
        answer = connection.getresponse()
        assert (answer.status, content in answer.read()) == (200, True)
        connection.close()


def test_nobody_notices_updates(server, models, files):
    """Eight updates and four rollbacks, under load of four clients: every answer is that of the version it names."""
    expected, stop, wrong = {}, threading.Event(), []
    seen = collections.Counter()

    def load():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        found = []
        while not stop.is_set():
            try:
                found.append(ask(server, connection))
            except BaseException as error:
                wrong.append(error)
                break
        connection.close()
        answers.extend(found)

    answers = []
    expected[server.stats()["version"]] = models[0]
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(8):
        model, file = models[number % 3 + 1], files[number % 3 + 1]
        told = server.update(model if number % 2 else file)
        assert told["replicas"] == 2
        expected[told["version"]] = model
        time.sleep(0.1)
        if number % 2:
            server.rollback()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    for outputs, version in answers:
        np.testing.assert_allclose(outputs, expected[version].predict(X), rtol=1e-4, atol=1e-6)
        seen[version] += 1
    assert len(seen) >= 5
    stats = server.stats()
    assert {each["version"] for each in stats["replicas"]} == {stats["version"]}
    assert stats["failures"] == 0


def test_another_architecture_and_the_way_back(server, models):
    wide = made(9, hidden=7)
    server.update(wide)
    np.testing.assert_allclose(server.predict(X), wide.predict(X), rtol=1e-5)
    server.rollback()
    for _ in range(8):
        np.testing.assert_allclose(ask(server)[0], models[0].predict(X), rtol=1e-4, atol=1e-6)


def test_what_is_refused_changes_nothing(server, models, tmp_path):
    from llmasos_xla.deployment.control import ControlError

    before = server.stats()["version"]
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ControlError, match="is no HDF5 file"):
        server.update(tmp_path / "text.h5")
    with pytest.raises(ControlError, match="there is no file"):
        server.update(tmp_path / "none.h5")
    with pytest.raises(ControlError, match="trials are of one server"):
        server.update(models[1], share=0.1)
    assert {each["version"] for each in server.stats()["replicas"]} == {before}


def test_a_replica_that_is_killed_comes_back_with_the_version_that_answers(server, models):
    version = server.update(models[2])["version"]
    before = replicas(server)
    os.kill(next(iter(before)), signal.SIGKILL)
    deadline = time.monotonic() + 90
    while len(now := replicas(server)) < 2 or now == before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {each["version"] for each in server.stats()["replicas"]} == {version}
    for _ in range(8):
        np.testing.assert_allclose(ask(server)[0], models[2].predict(X), rtol=1e-4, atol=1e-6)
    # It has those before, too.
    server.rollback()
    assert len({each["version"] for each in server.stats()["replicas"]} - {version}) == 1


def test_ports_of_ray_are_of_this_machine_alone_or_want_a_token(server):
    if not os.path.exists("/proc/net/tcp6"):
        pytest.skip("Linux shows who listens where")
    family = family_of(server.pid)
    names = {pid: pathlib.Path(f"/proc/{pid}/comm").read_text().strip() for pid in family}
    sockets = {
        os.readlink(f"/proc/{pid}/fd/{number}"): pid for pid in family for number in os.listdir(f"/proc/{pid}/fd")
    }
    public = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            local = fields[1].rpartition(":")[0]
            loopback = local in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
            if fields[3] == "0A" and not loopback and (pid := sockets.get(f"socket:[{fields[9]}]")):
                public.add(names[pid])
    # Each replica has one for calls between deployments, which checks the token.
    assert all("ServeRepl" in name for name in public), public


def family_of(pid):
    """A process and all that it started."""
    found, parents = [pid], {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def gone(family):
    # Two helpers of Ray's look for it once in a minute.
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        left = [pid for pid in family if os.path.exists(f"/proc/{pid}") and not zombie(pid)]
        if not left:
            return True
        time.sleep(0.2)
    return [pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in left]


def zombie(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_with_keys_and_tls_it_is_quiet_and_leaves_nothing(files, small, new_certificate, tmp_path, capfd):
    both, keys = tmp_path / "both.pem", tmp_path / "keys"
    both.write_bytes(b"".join(new_certificate()))
    keys.write_text("secret\n")
    before = set(pathlib.Path("/tmp").glob("llmasos-ray-*"))
    with lm.Deployer(files[0]).deploy(
        engine="ray", replicas=1, certificate=both, keys=keys, name="m", wait=False
    ) as server:
        family = family_of(server.pid)
        assert server.url.startswith("https://")
        assert server.ready() is True
        from llmasos_xla.deployment.tls import trusting

        context = trusting(both.read_text())
        for key, status in (("secret", 200), ("other", 401)):
            for path in ("/v2/models/m", "/metrics", "/v2/stats"):
                connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=context)
                connection.request("GET", path, headers={"X-API-Key": key})
                assert connection.getresponse().status == status
                connection.close()
    assert gone(family) is True
    assert set(pathlib.Path("/tmp").glob("llmasos-ray-*")) <= before
    out, err = capfd.readouterr()
    # What Ray tells of a machine whose disk is nearly full is its own to tell.
    told = [line for line in err.splitlines() if "file_system_monitor" not in line]
    assert (out, told) == ("", [])


SCRIPT = """
import os, signal, llmasos_xla as lm
server = lm.Deployer({path!r}).deploy(engine="ray", replicas=1, wait=False)
print("pid", server.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("whom", ["script", "server"])
def test_killed_it_takes_all_of_ray_along(files, small, whom, tmp_path):
    environment = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, "-c", SCRIPT.format(path=str(files[0]))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as script:
        assert script.stdout is not None
        pid = int(script.stdout.readline().split()[1])
        family = family_of(pid)
        assert len(family) > 5
        os.kill(script.pid if whom == "script" else pid, signal.SIGKILL)
        try:
            assert gone(family) is True
        finally:
            script.kill()


def test_a_port_in_use_and_a_model_that_is_none(files, small, image_file, tmp_path):
    import shutil

    import h5py

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="is in use"):
        lm.Deployer(files[0]).deploy(engine="ray", port=taken.getsockname()[1])
    half = tmp_path / "half.h5"
    shutil.copy(image_file, half)
    with h5py.File(half, "a") as file:
        del file["params/conv2d/kernel"]
    with pytest.raises(ValueError, match="load: 1 arrays of params do not fit the model"):
        lm.Deployer(half).deploy(engine="ray", replicas=1)
