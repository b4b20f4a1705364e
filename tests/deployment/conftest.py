"""Small models, saved once a session, and a client that asks the application without a network."""

import asyncio

import httpx
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment.app import App
from llmasos_xla.deployment.host import Host, Limits
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot


class Client:
    """Sends requests straight into the application."""

    def __init__(self, slot, *, max_body=Limits().body, keys=(), **limits):
        self.host = Host([slot], limits=Limits(max_body, **limits), keys=keys)
        self._app = App(self.host)

    def request(self, method, path, **options):
        async def ask():
            transport = httpx.ASGITransport(app=self._app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path):
        return self.request("GET", path)

    def infer(self, message, path="/v2/models/m/infer"):
        return self.request("POST", path, json=message)


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)


@pytest.fixture(scope="session")
def image_model(images):
    """Pixels to three named classes."""
    model = lm.Sequential(
        [
            lm.layers.Conv2D(4, (3, 3), activation="relu", input_shape=(6, 6, 1)),
            lm.layers.Flatten(),
            lm.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, np.array(["ant", "bee", "cat"] * 14)[:40], epochs=1, batch_size=20, verbose=0)
    return model


@pytest.fixture(scope="session")
def text_model():
    """Words to one probability."""
    model = lm.Sequential(
        [
            lm.layers.Embedding(12, 4),
            lm.layers.GlobalAveragePooling1D(),
            lm.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy")
    model.fit(TEXTS, np.array([1.0, 0.0, 1.0, 0.0], np.float32), epochs=1, batch_size=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def table_model():
    """Two columns of numbers, one with gaps, and one of categories, to a number."""
    model = lm.Sequential([lm.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    model.fit(lm.Dataset(frame(), label="y"), epochs=1, batch_size=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def series_model():
    """Series of any length, two values a step, to two classes without names."""
    model = lm.Sequential(
        [
            lm.layers.Conv1D(3, 4, input_shape=(None, 2)),
            lm.layers.GlobalAveragePooling1D(),
            lm.layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    x = np.random.default_rng(1).normal(size=(4, 8, 2)).astype(np.float32)
    model.fit(x, np.array([0, 1, 0, 1]), epochs=1, batch_size=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def image_file(image_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "insects.h5"
    image_model.save(path)
    return path


@pytest.fixture(scope="session")
def client(image_model):
    return Client(Slot("m", Served.of_model(image_model, "m")))


@pytest.fixture
def client_of_slot():
    return Client


@pytest.fixture
def client_of():
    return lambda model, **options: Client(Slot("m", Served.of_model(model, "m")), **options)


TEXTS = ["a good film", "a bad film", "good good", "so bad"]


@pytest.fixture
def texts():
    return TEXTS


@pytest.fixture
def table():
    return frame()


def frame():
    import pandas as pd

    return pd.DataFrame(
        {
            "size": [1.0, 2.5, None, 4.0],
            "year": [1990, 2000, 2010, 2020],
            "kind": ["x", "y", "x", "z"],
            "y": [0.0, 1, 2, 3],
        }
    )
