"""Versions over several replicas, without Ray: real replicas in threads, and a conductor in an event loop."""

import asyncio
import concurrent.futures
import sys
import threading
import time
import types

import httpx
import jax
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.api.exporting import arrays_of
from llmasos_xla.deployment import metrics
from llmasos_xla.deployment.cluster.conductor import Conductor, Record, merged
from llmasos_xla.deployment.cluster.replica import Replica, Settings
from llmasos_xla.deployment.engine import fingerprint_of

pytestmark = pytest.mark.usefixtures("unchecked")

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
SETTINGS = Settings("app", ("m",), 1, 1 << 20, 64, 0.0, None, 3, (), None, False, (), None)


class ActorDiedError(Exception):
    """The conductor is no more."""


class Remote:
    """An actor's method: runs in the loop's thread, as Ray would run it in another process."""

    def __init__(self, loop, method, asked):
        self._loop, self._method, self._asked = loop, method, asked

    def remote(self, *arguments):
        found = asyncio.run_coroutine_threadsafe(self._method(*arguments), self._loop)
        self._asked.append(found)
        return found


class Actor:
    """A conductor that is asked as actors of Ray are."""

    def __init__(self, conductor):
        self.conductor = conductor
        self._loop, self._asked = asyncio.new_event_loop(), []
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def __getattr__(self, name):
        return Remote(self._loop, getattr(self.conductor, name), self._asked)

    def ask(self, name, *arguments):
        return getattr(self, name).remote(*arguments).result(60)

    def close(self):
        async def end():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        # What was asked when the loop had stopped nobody answers, and who asked would wait on in others' tests.
        deadline = time.monotonic() + 10
        while listening := [thread for thread in threading.enumerate() if thread.name == "conductor"]:
            assert time.monotonic() < deadline
            for asked in list(self._asked):
                asked.cancel()
            listening[0].join(0.01)
        self._loop.close()


@pytest.fixture
def ray(monkeypatch):
    """What replicas use of Ray: `get`, and the errors of an actor that is gone."""

    def get(reference):
        if not isinstance(reference, concurrent.futures.Future):
            return reference
        try:
            return reference.result(60)
        except concurrent.futures.CancelledError:
            raise ActorDiedError from None

    known = types.SimpleNamespace(ActorDiedError=ActorDiedError, RayError=ConnectionError)
    module = types.ModuleType("ray")
    module.get, module.exceptions, module.deleted = get, known, []
    module.serve = types.ModuleType("ray.serve")
    module.serve.delete = module.deleted.append
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "ray.serve", module.serve)
    # Replicas set these for themselves, before their XLA starts.
    monkeypatch.setenv("NPROC", "32")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return module


def made(seed, hidden=5, classes=2):
    model = lm.Sequential(
        [lm.layers.Dense(hidden, activation="tanh", input_shape=(4,)), lm.layers.Dense(classes)], seed=seed
    )
    model.predict(X)
    return model


@pytest.fixture(scope="module")
def models():
    return [made(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A function that makes what is sent of a model: a file's bytes."""
    folder = tmp_path_factory.mktemp("records")

    def record(model, name="model.safetensors"):
        model.save(folder / name)
        return Record("1", np.fromfile(folder / name, np.uint8), name)

    return record


def weights(model):
    arrays = {name: np.asarray(a) for name, a in arrays_of(model).items()}
    return Record("", arrays, None, fingerprint_of(model))


@pytest.fixture
def start(ray, models, record):
    """A function that starts a conductor with so many replicas of the first model."""
    actors = []

    def start(count=3, gone=30.0, settings=SETTINGS):
        actors.append(Actor(Conductor({"m": record(models[0])}, settings.keep, gone)))
        return actors[-1], [Replica(settings, actors[-1], f"r{number}") for number in range(count)]

    yield start
    for actor in actors:
        actor.close()


def answer(replica):
    """(output, version) of a request."""

    async def ask():
        transport = httpx.ASGITransport(app=replica)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            tensor = {"name": "input", "shape": [3, 4], "datatype": "FP32", "data": X.ravel().tolist()}
            return (await client.post("/v2/models/m/infer", json={"inputs": [tensor]})).json()

    found = asyncio.run(ask())
    return np.array(found["outputs"][0]["data"], np.float32).reshape(3, 2), found["model_version"]


def agree(replicas, model, version):
    for replica in replicas:
        found, told = answer(replica)
        assert told == version
        np.testing.assert_allclose(found, model.predict(X), rtol=1e-4, atol=1e-6)


def test_files_and_weights_roll_over_all(start, models, record):
    actor, replicas = start()
    agree(replicas, models[0], "1")
    outcome = actor.ask("update", "m", record(models[1]))
    assert (outcome["answer"]["version"], outcome["answer"]["replicas"]) == ("2", 3)
    agree(replicas, models[1], "2")
    assert actor.ask("update", "m", weights(models[2]))["answer"]["version"] == "3"
    agree(replicas, models[2], "3")
    assert actor.ask("rollback", "m") == {"answer": {"version": "2", "replicas": 3}}
    agree(replicas, models[1], "2")
    assert actor.ask("rollback", "m")["answer"]["version"] == "1"
    agree(replicas, models[0], "1")
    told = actor.ask("rollback", "m")
    assert told == {"error": "rollback: model 'm' has no version before this one", "kind": "LookupError"}
    # A name that was taken back is not given again.
    assert actor.ask("update", "m", weights(models[3]))["answer"]["version"] == "4"


def test_one_after_the_other(start, models, monkeypatch):
    actor, replicas = start()
    under_way, most = [], []
    for replica in replicas:
        update = replica._update

        def slow(*arguments, update=update, replica=replica):
            under_way.append(replica)
            most.append(len(under_way))
            time.sleep(0.05)
            try:
                return update(*arguments)
            finally:
                under_way.remove(replica)

        monkeypatch.setattr(replica, "_update", slow)
    first, second = (actor.update.remote("m", weights(model)) for model in models[1:3])
    assert [each.result(60)["answer"]["version"] for each in (first, second)] == ["2", "3"]
    assert most == [1] * 6
    agree(replicas, models[2], "3")


def test_if_one_refuses_those_that_changed_go_back(start, models, monkeypatch):
    actor, replicas = start()

    def refuse(*arguments):
        raise ValueError("no room here")

    monkeypatch.setattr(replicas[2], "_update", refuse)
    outcome = actor.ask("update", "m", weights(models[1]))
    assert outcome == {"error": "no room here; 2 that had it went back", "kind": "ValueError"}
    agree(replicas, models[0], "1")
    assert [replica._host.slots["m"].rollbacks for replica in replicas] == [1, 1, 0]


def test_what_all_refuse_changes_nothing(start, models, record):
    actor, replicas = start()
    sick = made(5)
    sick.variables = jax.tree.map(lambda a: a * np.float32(np.nan), sick.variables)
    for source, kind, reason in (
        (weights(sick), "UpdateError", "holds NaN or infinity"),
        (weights(made(6, hidden=9)), "OtherModelError", "these weights are of another model"),
        (Record("", np.zeros(40, np.uint8), "model.lmx"), "DamagedBundleError", "is refused"),
        (record(made(7, classes=3)), "UpdateError", "its outputs are"),
    ):
        outcome = actor.ask("update", "m", source)
        assert outcome["kind"] == kind
        assert reason in outcome["error"]
        assert "went back" not in outcome["error"]
    agree(replicas, models[0], "1")


def test_a_rollback_that_one_refuses_is_none(start, models, monkeypatch):
    actor, replicas = start()
    actor.ask("update", "m", weights(models[1]))

    def refuse():
        raise LookupError("lost it")

    monkeypatch.setattr(replicas[1]._host.slots["m"], "rollback", refuse)
    assert actor.ask("rollback", "m")["error"] == "lost it; 1 that had it went back"
    agree(replicas, models[1], "2")


def test_who_comes_late_has_all_versions(start, ray, models, record):
    actor, replicas = start(1, settings=SETTINGS._replace(keep=2))
    for number in (1, 2, 3):
        actor.ask("update", "m", weights(models[number]))
    late = Replica(SETTINGS._replace(keep=2), actor, "late")
    agree([*replicas, late], models[3], "4")
    # The file of version 1 is not kept any more, but these are its weights' model.
    assert [served.version for served in late._host.slots["m"].versions()] == ["2", "3", "4"]
    assert actor.ask("rollback", "m")["answer"] == {"version": "3", "replicas": 2}
    agree([*replicas, late], models[2], "3")


def test_who_comes_during_a_roll_is_changed_too(start, ray, models, monkeypatch):
    actor, replicas = start(1)
    update, late = replicas[0]._update, []

    def slow(*arguments):
        late.append(Replica(SETTINGS, actor, "late"))
        assert answer(late[0])[1] == "1"
        return update(*arguments)

    monkeypatch.setattr(replicas[0], "_update", slow)
    assert actor.ask("update", "m", weights(models[1]))["answer"]["replicas"] == 2
    agree([*replicas, *late], models[1], "2")


def test_who_is_not_heard_of_is_left_out_and_follows_when_it_is_back(start, models, monkeypatch):
    actor, replicas = start(2, gone=1.0)
    deaf = threading.Event()
    get, ray = replicas[1]._ray.get, replicas[1]._ray

    def hearing(reference):
        if threading.current_thread().name == "conductor" and threading.current_thread() is listener:
            deaf.wait(20)
        return get(reference)

    listener = next(t for t in threading.enumerate() if t.name == "conductor" and t._target.__self__ is replicas[1])
    monkeypatch.setattr(ray, "get", hearing)
    # A question that it has asked already still gets its answer.
    time.sleep(1.5)
    outcome = actor.ask("update", "m", weights(models[1]))
    assert outcome["answer"]["replicas"] == 1
    agree(replicas[:1], models[1], "2")
    deaf.set()
    deadline = time.monotonic() + 20
    while answer(replicas[1])[1] != "2":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    agree(replicas, models[1], "2")
    assert actor.ask("rollback", "m")["answer"]["replicas"] == 2


def test_figures_are_of_all(start, models):
    actor, replicas = start(2)
    for replica in (*replicas, *replicas, replicas[0]):
        answer(replica)
    (model,) = actor.ask("stats")["models"]
    assert model["requests"] == 5
    assert model["version"] == "1"
    assert {each["replica"]: each["requests"] for each in model["replicas"]} == {"r0": 3, "r1": 2}

    async def get(path):
        transport = httpx.ASGITransport(app=replicas[1])
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    found = actor.ask("ask_all", {"do": "metrics"})
    text = metrics.merged({each["replica"]: each["metrics"] for each in found}).decode()
    assert 'llmasos_requests_total{model="m",replica="r0"} 3.0' in text
    assert 'llmasos_requests_total{model="m",replica="r1"} 2.0' in text
    assert text.count("# TYPE llmasos_request_seconds histogram") == 1
    assert actor.ask("about", "m")["answer"]["version"] == "1"


def test_figures_of_models_without_replicas():
    assert merged("m", []) == {"name": "m", "version": None, "versions": [], "replicas": []}


def test_a_model_that_cannot_be_loaded_is_told(start, ray, models):
    actor = Actor(Conductor({"m": Record("1", np.zeros(9, np.uint8), "model.h5")}, 3))
    try:
        with pytest.raises(ValueError, match="is no HDF5 file"):
            Replica(SETTINGS, actor, "r")
        assert actor.ask("failure")["kind"] == "ValueError"
    finally:
        actor.close()


def test_replicas_without_their_conductor_take_the_application_down(start, ray):
    actor, _ = start(1)
    actor.close()
    actor.close = lambda: None
    deadline = time.monotonic() + 20
    while not ray.deleted:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ray.deleted == ["app"]


def test_nobody_there(models):
    conductor = Conductor({"m": Record("1", b"")}, 3)
    assert asyncio.run(conductor.update("m", Record("", b"", "x.h5")))["error"] == "update: no replica is there"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "rai"}, "deploy: unknown engine 'rai'; did you mean 'ray'? Known: local, ray"),
        ({"replicas": 2}, 'deploy: replicas are Ray\'s; say engine="ray", too'),
        ({"engine": "ray", "replicas": 0}, "deploy: replicas is a whole number from 1 to 10000, 0 came"),
        ({"engine": "ray", "keep": 0}, "deploy: keep is a whole number from 1 to 1000, 0 came"),
        (
            {"engine": "ray", "grpc_port": 0},
            'deploy: grpc_port is of a server of one process; with engine="ray" leave it away: Ray Serve\'s gRPC does '
            "not speak the protocol",
        ),
    ],
)
def test_options_are_checked(image_file, options, reason):
    with pytest.raises(ValueError) as caught:
        lm.Deployer(image_file).deploy(**options)
    assert str(caught.value) == reason


def test_without_ray_it_says_what_to_install(image_file, tmp_path, monkeypatch):
    (tmp_path / "ray.py").write_text("raise ImportError('there is none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match=r'engine="ray" needs Ray: pip install "llmasos_xla\[ray\]"'):
        lm.Deployer(image_file).deploy(engine="ray")
