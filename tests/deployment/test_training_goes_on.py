"""A training hands its weights over after each epoch, while the server answers."""

import json
import threading
import time
import urllib.request

import numpy as np

import llmasos_xla as lm

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)
ROWS, EPOCHS = X[:3], 8


def ask(server):
    """Outputs and the version that they are of."""
    tensor = {"name": "input", "shape": list(ROWS.shape), "datatype": "FP32", "data": ROWS.tolist()}
    address, body = f"{server.url}/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    outputs = {output["name"]: output["data"] for output in found["outputs"]}
    return np.array(outputs["output"], np.float32).reshape(3, 2), found["model_version"]


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_fit_updates_the_server_that_goes_on_answering(tmp_path):
    # Statistics change in a training as weights do; averages of the weights are what predicts.
    layers = [
        lm.layers.Dense(8, activation="relu"),
        lm.layers.BatchNormalization(),
        lm.layers.Dense(2, activation="softmax"),
    ]
    model = lm.Sequential(layers)
    model.compile(lm.Optimizer("adam", 0.05, ema=0.9), loss="sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    model.save(tmp_path / "m.safetensors")
    known, answers, ended, wrong = {"1": model.predict(ROWS)}, [], threading.Event(), []

    with lm.Deployer(tmp_path / "m.safetensors").deploy() as server:
        ask(server)
        programs = server.stats()["programs"]

        def hand_over(event):
            if event.kind == "epoch":
                version = server.update(event.model)["version"]
                known[version] = event.model.predict(ROWS)
                if event.epoch % 3 == 0:
                    # However fast an epoch is, somebody has asked some of the versions.
                    wait_until(lambda: wrong or version in {seen for _, seen in answers})

        def go_on_asking():
            try:
                while not ended.is_set():
                    answers.append(ask(server))
            except Exception as error:
                wrong.append(error)

        thread = threading.Thread(target=go_on_asking)
        thread.start()
        history = model.fit(X, Y, batch_size=16, epochs=EPOCHS, verbose=0, callbacks=hand_over).history
        ended.set()
        thread.join()
        answers.append(ask(server))
        stats = server.stats()

    assert not wrong
    assert len({version for _, version in answers}) > EPOCHS // 3
    assert len(history["loss"]) == EPOCHS
    assert list(known) == [str(number) for number in range(1, EPOCHS + 2)]
    assert answers[-1][1] == str(EPOCHS + 1)
    # Neighboring versions differ by more than what is allowed for.
    for before, after in zip(list(known.values()), list(known.values())[1:]):
        assert np.abs(before - after).max() > 1e-4
    for outputs, version in answers:
        np.testing.assert_allclose(outputs, known[version], rtol=1e-5, atol=1e-6)
    assert (stats["programs"], stats["failures"], stats["updates"]) == (programs, 0, EPOCHS)
