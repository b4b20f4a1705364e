import gzip
import hashlib
import http.server
import struct
import threading

import numpy as np
import pytest

from llmasos_xla.data import Dataset, named


def test_digits_part_into_the_same_rows_always():
    train, test = Dataset.named("digits"), Dataset.named("digits", mode="test")
    assert (len(train), len(test)) == (1437, 360)
    assert (train.mode, test.mode) == ("train", "test")
    x = np.concatenate([train.rows().x, test.rows().x])
    assert x.shape == (1797, 8, 8, 1)
    assert x.dtype == np.uint8
    assert x.max() == 16
    from sklearn.datasets import load_digits

    whole = load_digits().images.astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, whole)) == sorted(map(bytes, x.reshape(1797, -1)))
    # The documented split: a change would make accuracies of before and after incomparable.
    assert hashlib.sha256(test.labels.tobytes()).hexdigest()[:8] == "0f76250b"
    assert set(train.labels) == set(test.labels) == set(range(10))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown data set 'fashion-mnist'; did you mean 'fashion_mnist'\? Known"):
        Dataset.named("fashion-mnist")
    with pytest.raises(ValueError, match=r"Dataset.named: unknown mode= 'valid'"):
        Dataset.named("digits", mode="valid")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A standard set of three images, its four files by name, and a cache of its own."""
    rng = np.random.default_rng(0)
    files = {
        name: idx(rng.integers(0, 10, (3, 4, 4) if "images" in name else 3, np.uint8)) for name in named.MNIST.sha256
    }
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    monkeypatch.setitem(named.SETS, "tiny", named._idx_set("tiny", named.IdxSet(("http://127.0.0.1:1/",), sums)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMASOS_DATA", raising=False)
    return files


@pytest.mark.parametrize("zipped", [False, True])
def test_files_in_the_folder_of_the_variable(tiny, tmp_path, monkeypatch, zipped):
    folder = tmp_path / "here" / "tiny"
    folder.mkdir(parents=True)
    for name, data in tiny.items():
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    monkeypatch.setenv("LLMASOS_DATA", str(tmp_path / "here"))
    data = Dataset.named("tiny", mode="test")
    assert data.rows().x.shape == (3, 4, 4, 1)
    assert data.labels.tolist() == list(tiny["t10k-labels-idx1-ubyte"][-3:])


def test_offline_the_error_says_where_files_go(tiny, tmp_path):
    with pytest.raises(OSError, match=r"train-images-idx3-ubyte.gz is not here and cannot be downloaded") as caught:
        Dataset.named("tiny")
    assert str(tmp_path / "cache" / "llmasos_xla" / "tiny") in str(caught.value)
    assert "set LLMASOS_DATA to a folder that holds them in tiny/" in str(caught.value)
    assert not list((tmp_path / "cache" / "llmasos_xla" / "tiny").iterdir())


def test_another_content_than_the_published_is_refused(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(tiny["t10k-images-idx3-ubyte"])
    monkeypatch.setenv("LLMASOS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is not the published file: its content has SHA-256"):
        Dataset.named("tiny")


@pytest.fixture
def mirror(tiny, monkeypatch):
    """A web server on this machine that has the files; `damage` names one it sends cut short."""
    damage = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path[1:].removesuffix(".gz")
            body = gzip.compress(tiny[name])
            body = body[:-9] if name in damage else body
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in tiny.items()}
    mirrors = ("http://127.0.0.1:1/", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setitem(named.SETS, "tiny", named._idx_set("tiny", named.IdxSet(mirrors, sums)))
    yield server, damage
    server.shutdown()
    server.server_close()


def test_a_download_is_checked_and_kept(mirror, tmp_path):
    server, _ = mirror
    first = Dataset.named("tiny")
    server.shutdown()
    np.testing.assert_array_equal(Dataset.named("tiny").rows().x, first.rows().x)
    kept = sorted(path.name for path in (tmp_path / "cache" / "llmasos_xla" / "tiny").iterdir())
    assert kept == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_a_broken_download_is_not_kept(mirror, tmp_path):
    _, damage = mirror
    damage.add("train-images-idx3-ubyte")
    with pytest.raises(OSError, match=r"cannot be downloaded .*is a damaged gzip file"):
        Dataset.named("tiny")
    assert not list((tmp_path / "cache" / "llmasos_xla" / "tiny").iterdir())


@pytest.mark.parametrize("name", ["fashion_mnist"])
def test_the_real_files_have_the_published_content(name, shared_data):
    data = Dataset.named(name, mode="test")
    assert data.rows().x.shape == (10000, 28, 28, 1)
    assert data.classes[9] == "Ankle boot"
    assert np.bincount(data.labels).tolist() == [1000] * 10
