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


@pytest.fixture(scope="session")
def new_certificate():
    """A function that makes a key and a certificate, as PEM, that bears one name and is good for so many hours."""
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def new(named="127.0.0.1", password=None, hours=1):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        general = x509.IPAddress(ipaddress.ip_address(named)) if named[0].isdigit() else x509.DNSName(named)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=2))
            .not_valid_after(now + datetime.timedelta(hours=hours))
            .add_extension(x509.SubjectAlternativeName([general]), False)
            .sign(key, hashes.SHA256())
        )
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
        return pem, made.public_bytes(serialization.Encoding.PEM)

    return new


@pytest.fixture(scope="session")
def certificate(new_certificate):
    """A key and a certificate for 127.0.0.1, as PEM."""
    return new_certificate()
