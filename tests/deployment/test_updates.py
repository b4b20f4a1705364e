"""Updates: every answer is of one version, what is wrong changes nothing, the way back is open."""

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request

import jax
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.api.exporting import export_net
from llmasos_xla.deployment import shared
from llmasos_xla.deployment.batching import Batcher, ExpiredError, QueueFullError
from llmasos_xla.deployment.control import ControlError
from llmasos_xla.deployment.handing import handed_over
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.trial import Trial
from llmasos_xla.deployment.updates import Updates
from llmasos_xla.deployment.versions import open_version

pytestmark = pytest.mark.usefixtures("unchecked")  # numbers of rows are symbols where programs are exported

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def made(seed, hidden=5, classes=2):
    model = lm.Sequential(
        [lm.layers.Dense(hidden, activation="tanh", input_shape=(4,)), lm.layers.Dense(classes)], seed=seed
    )
    model.predict(X)
    return model


@pytest.fixture(scope="module")
def models():
    return [made(seed) for seed in range(3)]


@pytest.fixture
def slot(models):
    served = Served.of_model(models[0], "m")
    served.warm()
    found = Slot("m", served)
    yield found
    found.batcher.close()


@pytest.fixture
def updates(slot):
    return Updates(Host([slot]))


def asked(slot, x=X, **options):
    answer = asyncio.run(slot.infer({"input": x}, **options))
    return answer.outputs["output"], answer.served.version


def update(updates, source, **more):
    if isinstance(source, str | os.PathLike):
        return updates.handle({"do": "update", "path": str(source), **more}, [])
    with handed_over(source) as (told, files):
        return updates.handle({"do": "update", **told, **more}, files)


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_weights_come_from_memory_files_and_bundles_and_compile_nothing(models, slot, updates, tmp_path):
    asked(slot)
    compiled = len(slot.find().engine.compiled)
    models[2].save(tmp_path / "two.safetensors")
    sources = [models[1], models[0].variables, models[1].export(tmp_path / "one.lmx"), tmp_path / "two.safetensors"]
    for number, (source, model) in enumerate(zip(sources, (models[1], models[0], models[1], models[2])), 2):
        assert update(updates, source)["version"] == str(number)
        outputs, version = asked(slot)
        np.testing.assert_allclose(outputs, model.predict(X), rtol=1e-5)
        assert version == str(number)
    assert len(slot.find().engine.compiled) == compiled
    assert [served.version for served in slot.versions()] == ["2", "3", "4", "5"]
    np.testing.assert_allclose(asked(slot, version="3")[0], models[0].predict(X), rtol=1e-5)


def test_weights_of_another_architecture_are_refused(slot, updates):
    with pytest.raises(ValueError, match="these weights are of another model; hand over a file of it"):
        update(updates, made(7, hidden=9))


def test_a_file_of_another_architecture_answers(slot, updates, tmp_path):
    asked(slot)
    wide = made(7, hidden=9)
    wide.save(tmp_path / "wide.h5")
    update(updates, tmp_path / "wide.h5")
    engine = slot.find().engine
    before = len(engine.compiled)
    np.testing.assert_allclose(asked(slot)[0], wide.predict(X), rtol=1e-5)
    assert len(engine.compiled) == before > 0


def test_what_is_wrong_changes_nothing(models, slot, updates, tmp_path):
    bundle = models[1].export(tmp_path / "one.lmx")
    damaged = tmp_path / "damaged.lmx"
    damaged.write_bytes(bundle.read_bytes()[:-40])
    other = made(3, classes=3)
    other.save(tmp_path / "other.h5")
    sick = made(4)
    sick.variables = jax.tree.map(lambda a: a * np.float32(np.nan), sick.variables)
    lacking = lm.Variables(dict(list(models[1].variables.params.items())[1:]), {})
    for source, reason in (
        (damaged, "is refused"),
        (tmp_path / "none.lmx", "there is no file"),
        (tmp_path / "other.h5", "its outputs are output FP32"),
        (sick, "holds NaN or infinity"),
        (lacking, "1 arrays do not fit the model"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            update(updates, source)
    with pytest.raises(TypeError, match="wants a path, a model or its variables"):
        update(updates, 3)
    with pytest.raises(ValueError, match="nothing to do called 'dance'"):
        updates.handle({"do": "dance"}, [])
    with pytest.raises(LookupError, match="unknown model 'n'"):
        updates.handle({"do": "rollback", "model": "n"}, [])
    outputs, version = asked(slot)
    np.testing.assert_allclose(outputs, models[0].predict(X), rtol=1e-5)
    assert (version, slot.updates) == ("1", 0)


def test_a_bundle_whose_answer_is_not_its_own_is_refused(models, slot, updates, tmp_path):
    import dataclasses

    from llmasos_xla.storage.bundle import Bundle, write

    content = Bundle.open(models[1].export(tmp_path / "one.lmx")).content
    inputs, outputs = content.example
    lying = dataclasses.replace(content, example=(inputs, {n: a + 1 for n, a in outputs.items()}))
    with pytest.raises(ValueError, match="of its example differs from the bundle's by"):
        update(updates, write(tmp_path / "lying.lmx", lying))


def test_a_bundle_whose_answer_is_not_its_own_is_not_deployed(models, tmp_path):
    import dataclasses

    from llmasos_xla.storage.bundle import Bundle, write

    content = Bundle.open(models[0].export(tmp_path / "good.lmx")).content
    inputs, outputs = content.example
    write(tmp_path / "bad.lmx", dataclasses.replace(content, example=(inputs, {n: a + 1 for n, a in outputs.items()})))
    with pytest.raises(ValueError, match="deploy: 'output' of its example differs from the bundle's by"):
        lm.Deployer(tmp_path / "bad.lmx").deploy()


def test_the_way_back(models, slot, updates):
    with pytest.raises(LookupError, match="no version before this one"):
        updates.handle({"do": "rollback"}, [])
    update(updates, models[1])
    update(updates, models[2])
    assert updates.handle({"do": "rollback"}, []) == {"version": "2"}
    np.testing.assert_allclose(asked(slot)[0], models[1].predict(X), rtol=1e-5)
    # What was taken back has had its name: the next is another.
    assert update(updates, models[2])["version"] == "4"


def test_every_answer_is_of_one_version(models, slot, updates):
    """Threads ask while versions change: each answer is, bit for bit, that of the version that it names."""
    known = {"1": models[0].predict(X)}
    found, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            found.append(asked(slot))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(30):
        model = models[i % 3]
        version = update(updates, model)["version"]
        known[version] = model.predict(X)
        if not i % 6:
            # On a slow machine all versions could be gone before anybody had asked.
            wait_until(lambda version=version: version in {seen for _, seen in found})
    stop.set()
    for thread in threads:
        thread.join()
    assert len({version for _, version in found}) > 3
    for outputs, version in found:
        # Batches of other sizes are other programs, which may differ in the last bits; versions differ by far more.
        np.testing.assert_allclose(outputs, known[version], rtol=1e-4, atol=1e-5)
    assert slot.failures == 0


def test_a_canary_that_is_good_takes_over(models, slot, updates):
    assert update(updates, models[1], trial={"share": 0.25, "requests": 5, "most_latency": 1e9})["trial"]
    versions = [asked(slot)[1] for _ in range(19)]
    assert versions.count("2") == 4
    asked(slot)
    wait_until(lambda: slot.find().version == "2")
    assert slot.trial is None
    assert slot.updates == 1


def test_a_canary_that_fails_is_taken_back(models, slot, updates, monkeypatch):
    update(updates, models[1], trial={"share": 0.5, "requests": 10})
    with pytest.raises(ValueError, match="version 2 is on trial; end that first"):
        update(updates, models[2], trial={"share": 0.5})
    run = Served.run
    monkeypatch.setattr(Served, "run", lambda self, inputs: run(self, inputs) if self.version == "1" else 1 / 0)
    failures = 0
    for _ in range(6):
        try:
            asked(slot)
        except ZeroDivisionError:
            failures += 1
    wait_until(lambda: slot.trial is None)
    assert failures == 1
    assert asked(slot)[1] == "1"
    assert slot.rollbacks == 1


def test_a_canary_whose_answers_are_no_numbers_is_taken_back(slot, updates):
    update(updates, made(1), trial={"share": 1.0, "requests": 10})
    # As where a weight is NaN that the example does not touch.
    slot.trial.served.arrays = jax.tree.map(lambda a: a * np.nan, slot.trial.served.arrays)
    assert np.isnan(asked(slot)[0]).all()
    wait_until(lambda: slot.trial is None)
    assert (slot.last_trial["verdict"], slot.last_trial["reason"]) == ("bad", "1 of 1 requests failed")
    assert asked(slot)[1] == "1"


def test_a_shadow_is_compared_and_not_seen(models, slot, updates):
    update(updates, models[1], trial={"share": 1.0, "shadow": True, "requests": 10**6})
    trial = slot.trial
    for _ in range(10):
        outputs, version = asked(slot)
        np.testing.assert_allclose(outputs, models[0].predict(X), rtol=1e-5)
        assert version == "1"
    wait_until(lambda: trial.answered > 0)
    difference = np.abs(models[0].predict(X) - models[1].predict(X)).max()
    np.testing.assert_allclose(trial.stats()["largest_difference"], difference, rtol=1e-4)
    assert updates.handle({"do": "end_trial", "verdict": "bad"}, []) == {"version": "1"}
    with pytest.raises(LookupError, match="has none"):
        updates.handle({"do": "end_trial", "verdict": "bad"}, [])


def test_a_shadow_takes_over_only_where_its_outputs_are_held_against_the_others(models, slot, updates):
    difference = float(np.abs(models[0].predict(X) - models[1].predict(X)).max())
    watched = {"share": 1.0, "shadow": True, "requests": 2}
    update(updates, models[1], trial=watched)
    trial = slot.trial
    while trial.answered < 4:
        assert asked(slot)[1] == "1"
    assert trial.verdict is None
    updates.handle({"do": "end_trial", "verdict": "bad"}, [])

    for allowed, verdict, version in ((difference / 2, "bad", "1"), (difference * 2, "good", "4")):
        update(updates, models[1], trial={**watched, "most_difference": allowed})
        while slot.trial is not None:
            asked(slot)
        told = slot.stats()["last_trial"]
        assert (told["verdict"], told["shadow"], slot.find().version) == (verdict, True, version)
        assert "differ by" in told["reason"]
        np.testing.assert_allclose(told["largest_difference"], difference, rtol=1e-4)
    with pytest.raises(ValueError, match="most_difference is for a shadow"):
        update(updates, models[2], trial={"share": 0.5, "most_difference": 1.0})


def test_a_full_queue_says_nothing_of_the_version_on_trial(models, slot, updates, monkeypatch):
    update(updates, models[1], trial={"share": 1.0, "requests": 10, "most_errors": 0.0})

    def full(self, job):
        raise QueueFullError("no room", 1.0)

    with monkeypatch.context() as patched:
        patched.setattr(Batcher, "submit", full)
        with pytest.raises(QueueFullError):
            asked(slot)
    assert (slot.trial.failed, slot.trial.verdict) == (0, None)
    assert asked(slot)[1] == "2"


def test_a_shadow_that_fails_is_taken_back_and_its_log_says_why_once(models, slot, updates, monkeypatch, caplog):
    update(updates, models[1], trial={"share": 1.0, "shadow": True, "requests": 2, "most_errors": 0.9})
    trial, run = slot.trial, Served.run
    monkeypatch.setattr(Served, "run", lambda self, inputs: run(self, inputs) if self.version == "1" else 1 / 0)
    while trial.verdict is None:
        assert asked(slot)[1] == "1"
    wait_until(lambda: slot.trial is None)
    assert trial.stats()["failed"] >= 2
    assert (slot.failures, slot.rollbacks) == (0, 1)
    assert caplog.text.count("version 2 failed as a shadow") == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_slow_version_is_judged_bad(models):
    verdicts = []
    trial = Trial(
        Served.of_model(models[0], "m"), 1.0, requests=3, judged=lambda verdict, reason: verdicts.append(verdict)
    )
    for _ in range(3):
        trial.beside(0.01, {}, {})
        trial.told(0.03, None)
    assert verdicts == ["bad"]
    assert "3.00 times" in trial.reason
    assert not trial.takes()


def test_a_share_that_is_none(models, slot, updates):
    for share in (0, 1.5, "half", True, float("nan")):
        with pytest.raises(ValueError, match="the share of a trial is above 0 and at most 1"):
            update(updates, models[1], trial={"share": share})


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("requests", "5", "the requests of a trial is a whole number from 1, '5' came"),
        ("requests", 0, "the requests of a trial"),
        ("most_errors", "x", "the most_errors of a trial is a share"),
        ("most_latency", -1, "the most_latency of a trial is a number above 0"),
        ("most_difference", "0.1", "the most_difference of a trial is a number from 0"),
        ("shadow", "yes", "the shadow of a trial is True or False"),
        ("most_latencies", 2.0, "unknown option of a trial 'most_latencies'; did you mean 'most_latency'"),
        ("judged", 1, "unknown option of a trial 'judged'"),
    ],
)
def test_figures_of_a_trial_that_are_none_are_refused_ahead_of_the_requests(
    models, slot, updates, option, value, reason
):
    with pytest.raises(ValueError, match=reason):
        update(updates, models[1], trial={"share": 1.0, option: value})
    assert slot.trial is None
    assert asked(slot)[1] == "1"


def test_a_shadow_need_not_say_its_share(models, slot, updates):
    update(updates, models[1], trial={"shadow": True})
    assert (slot.trial.share, slot.trial.shadow) == (0.1, True)


def test_a_rollback_or_an_update_takes_a_version_on_trial_back(models, slot, updates):
    update(updates, models[1])
    update(updates, models[2], trial={"share": 0.5})
    assert updates.handle({"do": "rollback"}, []) == {"version": "2"}
    told = slot.stats()["last_trial"]
    assert (told["version"], told["verdict"], told["reason"]) == ("3", "bad", "it was rolled back")
    assert slot.trial is None
    update(updates, models[2], trial={"share": 0.5})
    update(updates, models[0])
    told = slot.stats()["last_trial"]
    assert (told["version"], told["reason"]) == ("4", "version 5 was handed over")
    assert asked(slot)[1] == "5"


def test_a_time_that_is_over_in_the_queue_says_nothing_of_the_version_on_trial(models, slot, updates, monkeypatch):
    update(updates, models[1], trial={"share": 1.0, "requests": 10, "most_errors": 0.0})
    run, free = Served.run, threading.Event()
    monkeypatch.setattr(Served, "run", lambda self, inputs: free.wait(20) and run(self, inputs))
    busy = threading.Thread(target=asked, args=(slot,))
    busy.start()
    wait_until(lambda: slot.batcher.running)
    with pytest.raises(ExpiredError):
        asked(slot, timeout=0.05)
    assert (slot.trial.failed, slot.trial.verdict) == (0, None)
    free.set()
    busy.join()


def test_functions_without_a_model_are_served(tmp_path):
    variables = lm.Variables({"w": np.ones((2, 3), np.float32)}, {})
    path = export_net(
        lambda v, x: {"y": x["a"] @ v.params["w"]},
        variables,
        tmp_path / "f.lmx",
        example={"a": np.ones((2, 2), np.float32)},
    )
    served = open_version(str(path), "f")
    assert served.metadata()["inputs"] == [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}]
    np.testing.assert_allclose(served.infer({"a": X[:, :2]})["y"], X[:, :2] @ np.ones((2, 3)), rtol=1e-5)
    for tensors, reason in (
        ({"b": X}, "inputs b came; a are wanted"),
        ({"a": X}, r"has shape \(3, 4\); \(rows, 2\) is wanted"),
        ({"a": X[0]}, r"has shape \(4,\); \(rows, 2\) is wanted"),
    ):
        with pytest.raises(ValueError, match=reason):
            served.infer(tensors)


def test_a_program_that_cannot_be_read_is_rebuilt(models, tmp_path, monkeypatch):
    path = models[0].export(tmp_path / "m.lmx")
    monkeypatch.setattr(jax.export, "deserialize", lambda data: 1 / 0 if data is None else _too_old())
    with pytest.raises(ValueError, match="cannot read this program"):
        open_version(str(path), "m", program=True)
    np.testing.assert_allclose(
        open_version(str(path), "m").infer({"input": X})["output"], models[0].predict(X), rtol=1e-5
    )


def _too_old():
    raise ValueError("calling convention version 3 is below the minimum supported, 9")


def test_shared_memory_holds_what_was_put_in(models):
    arrays = {"a": np.arange(5, dtype=np.int32), "b": np.ones((2, 0), np.float32), "c": np.float32(3).reshape(())}
    handle = shared.filled(arrays)
    try:
        for name, array in shared.read(handle).items():
            np.testing.assert_array_equal(array, arrays[name])
    finally:
        os.close(handle)
    with open(os.devnull, "rb") as file, pytest.raises(ValueError, match="is empty"):
        shared.read(file.fileno())


def test_a_server_is_updated_and_a_killed_one_goes_on_with_a_whole_version(models, tmp_path):
    paths = [model.export(tmp_path / f"{i}.lmx") for i, model in enumerate(models)]
    state = tmp_path / "state.json"
    with lm.Deployer(paths[0]).deploy(name="m", state=state) as server:
        np.testing.assert_allclose(server.predict(X), models[0].predict(X), rtol=1e-5)
        assert server.update(paths[1])["version"] == "2"
        np.testing.assert_allclose(server.predict(X), models[1].predict(X), rtol=1e-5)
        assert server.update(models[2])["version"] == "3"
        np.testing.assert_allclose(server.predict(X), models[2].predict(X), rtol=1e-5)
        assert server.rollback() == "2"
        stats = server.stats()
        assert (stats["version"], stats["updates"], stats["rollbacks"], stats["failures"]) == ("2", 2, 1, 0)
        with pytest.raises(ControlError, match="there is no file"):
            server.update(tmp_path / "none.lmx")
        os.kill(server.pid, signal.SIGKILL)
    with lm.Deployer(paths[0]).deploy(name="m", state=state) as server:
        assert server.stats()["version"] == "2"
        np.testing.assert_allclose(server.predict(X), models[1].predict(X), rtol=1e-5)


def test_several_models_are_updated_each_by_itself(models, tmp_path):
    paths = [model.export(tmp_path / f"{i}.lmx") for i, model in enumerate(models)]
    with lm.Deployer({"a": paths[0], "b": paths[1]}).deploy() as server:
        assert server.names == ("a", "b")
        np.testing.assert_allclose(server.predict(X), models[0].predict(X), rtol=1e-5)
        np.testing.assert_allclose(server.predict(X, model="b"), models[1].predict(X), rtol=1e-5)
        server.update(paths[2], model="b")
        np.testing.assert_allclose(server.predict(X), models[0].predict(X), rtol=1e-5)
        np.testing.assert_allclose(server.predict(X, model="b"), models[2].predict(X), rtol=1e-5)
        assert (server.stats()["version"], server.stats(model="b")["version"]) == ("1", "2")
        with pytest.raises(ValueError, match="unknown model 'c'"):
            server.predict(X, model="c")
    with pytest.raises(ValueError, match="the models have names already, a"):
        lm.Deployer({"a": paths[0]}).deploy(name="x")
    with pytest.raises(ValueError, match="a dict of no models"):
        lm.Deployer({})


def test_what_an_update_changes_about_the_input_is_known_to_the_sender(tmp_path):
    def words(texts):
        model = lm.Sequential([lm.layers.Embedding(12, 4), lm.layers.GlobalAveragePooling1D(), lm.layers.Dense(1)])
        model.compile(loss="mse")
        model.fit(texts, np.zeros(len(texts), np.float32), verbose=0)
        return model

    old, new = words(["good bad"]), words(["rain sun", "wind"])
    old.save(tmp_path / "old.h5")
    with lm.Deployer(tmp_path / "old.h5").deploy() as server:
        server.update(new)
        np.testing.assert_allclose(server.predict(["sun wind"]), new.predict(["sun wind"]), rtol=1e-5)


def test_weights_of_a_model_with_other_classes_bring_their_names(tmp_path):
    def named(*names):
        model = lm.Sequential([lm.layers.Dense(2, activation="softmax", input_shape=(4,))])
        model.compile(loss="sparse_categorical_crossentropy")
        model.fit(X[:2], np.array(names), verbose=0)
        return model

    named("ant", "bee").save(tmp_path / "old.h5")
    with lm.Deployer(tmp_path / "old.h5").deploy() as server:
        server.update(named("cat", "dog"))
        with urllib.request.urlopen(f"{server.url}/v2/models/old") as answer:
            assert json.load(answer)["parameters"]["labels"] == ["cat", "dog"]


def test_a_server_that_is_killed_is_started_again(models, tmp_path):
    paths = [model.export(tmp_path / f"{i}.lmx") for i, model in enumerate(models)]
    with lm.Deployer(paths[0]).deploy(name="m", restart=True) as server:
        server.update(paths[1])
        # Weights of another architecture bring along what rebuilds it.
        wide = made(7, hidden=9)
        assert server.update(wide)["version"] == "3"
        np.testing.assert_allclose(server.predict(X), wide.predict(X), rtol=1e-5)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts == 1)
        assert server.running
        # What came from memory is written a moment after it answers.
        whole = {"2": models[1], "3": wide}[server.stats()["version"]]
        np.testing.assert_allclose(server.predict(X), whole.predict(X), rtol=1e-5)
