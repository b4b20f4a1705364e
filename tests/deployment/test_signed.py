"""A server with a key takes what that key signed, byte for byte, and nothing else."""

import json
import zipfile

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment.control import ControlError
from llmasos_xla.storage.signatures import new_key

pytest.importorskip("cryptography", reason="cryptography is not installed")
pytestmark = pytest.mark.usefixtures("unchecked")  # numbers of rows are symbols where programs are exported

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def made(seed):
    model = lm.Sequential([lm.layers.Dense(2, input_shape=(4,))], seed=seed)
    model.predict(X)
    return model


@pytest.fixture(scope="module")
def models():
    return [made(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Private key files and the public keys as text: ours, another's."""
    folder = tmp_path_factory.mktemp("keys")
    private = [folder / "ours.pem", folder / "another's.pem"]
    return private, [new_key(path) for path in private]


@pytest.fixture(scope="module")
def server(models, keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    path = models[0].export(folder / "m.lmx", key=keys[0][0])
    with lm.Deployer(path, key=keys[1][0]).deploy(state=folder / "state.json") as server:
        yield server


def changed(path, to, entry, change):
    """A copy of a bundle with one entry changed, the zip whole."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(zipfile.ZipInfo(info.filename), change(content) if info.filename == entry else content)
    return to


def another_name(manifest):
    return json.dumps({**json.loads(manifest), "name": "other"}).encode()


def one_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_what_is_not_signed_by_the_key_is_refused_and_serving_goes_on(server, models, keys, tmp_path):
    signed = models[1].export(tmp_path / "signed.lmx", key=keys[0][0])
    models[1].save(tmp_path / "saved.safetensors")
    half = tmp_path / "half.lmx"
    half.write_bytes(signed.read_bytes()[: signed.stat().st_size // 2])
    not_this_key = "was not signed by this key, or was changed since"
    for source, reason in (
        (models[1].export(tmp_path / "unsigned.lmx"), "'unsigned.lmx' is not signed, and a signature is asked for"),
        (models[1].export(tmp_path / "theirs.lmx", key=keys[0][1]), f"'theirs.lmx' {not_this_key}"),
        (changed(signed, tmp_path / "named.lmx", "manifest.json", another_name), f"'named.lmx' {not_this_key}"),
        (changed(signed, tmp_path / "resigned.lmx", "manifest.ed25519", one_bit), f"'resigned.lmx' {not_this_key}"),
        (changed(signed, tmp_path / "heavy.lmx", "weights.safetensors", one_bit), "'heavy.lmx' is refused: "),
        (changed(signed, tmp_path / "other.lmx", "programs/0.stablehlo", one_bit), "'other.lmx' is refused: "),
        (changed(signed, tmp_path / "spec.lmx", "model.json", one_bit), "'spec.lmx' is refused: "),
        (half, "'half.lmx' is refused: "),
        (tmp_path / "saved.safetensors", "only bundles are signed, and a signature is asked for"),
        (models[1], "weights from memory are not signed, and a signature is asked for"),
        (models[1].variables, "weights from memory are not signed, and a signature is asked for"),
    ):
        with pytest.raises(ControlError) as caught:
            server.update(source)
        assert reason in str(caught.value)
        np.testing.assert_allclose(server.predict(X), models[0].predict(X), rtol=1e-5)
    assert (server.stats()["version"], server.stats()["failures"]) == ("1", 0)
    assert server.update(signed)["version"] == "2"
    np.testing.assert_allclose(server.predict(X), models[1].predict(X), rtol=1e-5)


def test_a_first_bundle_has_to_be_signed_too(models, keys, tmp_path):
    unsigned = models[0].export(tmp_path / "unsigned.lmx")
    with pytest.raises(PermissionError, match=r"'unsigned\.lmx' is not signed"):
        lm.Deployer(unsigned, key=keys[1][0])
    theirs = models[0].export(tmp_path / "theirs.lmx", key=keys[0][1])
    with pytest.raises(PermissionError, match="not signed by this key"):
        lm.Deployer(theirs, key=keys[1][0])
    models[0].save(tmp_path / "saved.h5")
    with pytest.raises(PermissionError, match="only bundles are signed"):
        lm.Deployer(tmp_path / "saved.h5", key=keys[1][0])


def test_a_file_that_was_exchanged_after_the_deployer_looked_is_refused(models, keys, tmp_path, monkeypatch):
    path = models[0].export(tmp_path / "m.lmx", key=keys[0][0])
    deployer = lm.Deployer(path, key=keys[1][0])
    models[1].export(path)
    # It looks again before it starts the server; a file may change even then, and so the server looks itself.
    monkeypatch.setattr(lm.Deployer, "_check_files", lambda self: None)
    with pytest.raises(PermissionError, match="is not signed"):
        deployer.deploy()
