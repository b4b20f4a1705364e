"""Files of weights: read as they are, lazily, and nothing hostile gets in."""

import hashlib
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch_file import Global, Tensor, tensor, write_legacy, write_zip

from llmasos_xla.models.pretrained import read
from llmasos_xla.models.pretrained.readers.llama2c import SIZES

WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture
def arrays(rng):
    return {
        "a.weight": rng.standard_normal((3, 5)).astype(np.float32),
        "a.bias": rng.standard_normal(3).astype(np.float16),
        "half": rng.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3), np.float32),
        "wide": rng.standard_normal(4),
    }


def _equal(read, wanted):
    assert set(read) == set(wanted)
    for name, array in wanted.items():
        assert read[name].dtype == array.dtype, name
        np.testing.assert_array_equal(read[name], array)
        assert not read[name].flags.writeable or not array.size


def test_safetensors_are_what_was_saved(arrays, tmp_path):
    save_file(arrays, tmp_path / "x.anything", metadata={"format": "pt"})
    _equal(read(tmp_path / "x.anything"), arrays)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_torch_files_are_what_was_saved(arrays, tmp_path, write):
    write(tmp_path / "x.bin", {name: tensor(a) for name, a in arrays.items()})
    _equal(read(tmp_path / "x.bin"), arrays)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_tensors_are_windows_on_shared_storages(tmp_path, write):
    storage = np.arange(24, dtype=np.float32)
    square = storage.reshape(4, 6)
    views = {
        "whole": Tensor(storage, 0, (4, 6), (6, 1)),
        "turned": Tensor(storage, 0, (6, 4), (1, 6)),
        "part": Tensor(storage, 7, (2, 3), (6, 2)),
        "one": Tensor(storage, 23, (), ()),
        "repeated": Tensor(storage, 5, (3,), (0,)),
    }
    write(tmp_path / "x.pt", views)
    found = read(tmp_path / "x.pt")
    wanted = {
        "whole": square,
        "turned": square.T,
        "part": square[1:3, 1::2],
        "one": storage[23],
        "repeated": storage[[5, 5, 5]],
    }
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert np.shares_memory(found["whole"], found["turned"])


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_state_dict_is_found_and_wrappers_are_left_out(arrays, tmp_path, write):
    inner = {f"module.{name}": tensor(a) for name, a in arrays.items()}
    write(tmp_path / "x.th", {"epoch": 3, "state_dict": inner, "best": 0.5, "optimizer": {"m": tensor(np.ones(3))}})
    _equal(read(tmp_path / "x.th"), arrays)
    write(tmp_path / "y.th", {"encoder": {"w": tensor(np.ones(2))}, "decoder": {"w": tensor(np.zeros(2))}, "n": None})
    _equal(read(tmp_path / "y.th"), {"encoder.w": np.ones(2), "decoder.w": np.zeros(2)})


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_nothing_in_a_pickle_is_executed(tmp_path, write):
    ran = tmp_path / "ran"
    for call in (
        Global("os", "system", (f"touch {ran}",)),
        Global("builtins", "eval", ("1",)),
        Global("argparse", "Namespace"),
        Global("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ):
        write(tmp_path / "x.pt", {"w": tensor(np.ones(2)), "evil": call})
        with pytest.raises(ValueError, match=f"refused: it holds an object of '{call.module}.{call.name}'"):
            read(tmp_path / "x.pt")
    assert not ran.exists()

    # What pickle itself makes, with operations that no weights have.
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(ran)!r}, 'w')",))

    for protocol in range(6):
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Evil(), protocol))
        with pytest.raises(ValueError, match="is refused|is damaged"):
            read(tmp_path / "y.pt")
    assert not ran.exists()


def test_torch_files_that_are_something_else_are_named(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match=r"a zip without data.pkl: notes.txt"):
        read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"")
        file.writestr("m/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript program"):
        read(path)
    write_zip(path, {"w": tensor(np.ones(20))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="zip is compressed"):
        read(path)
    write_zip(path, {"n": 3})
    with pytest.raises(ValueError, match="holds no tensors"):
        read(path)
    for window in (
        Tensor(np.ones(6), 0, (2, 4), (4, 1)),
        Tensor(np.ones(6), -1, (2,), (1,)),
        Tensor(np.ones(6), 4, (3,), (1,)),
        Tensor(np.ones(6), 0, (2,), (-1,)),
        Tensor(np.ones(6), 0, (2**30, 2**30), (0, 0)),
    ):
        write_zip(path, {"w": window})
        with pytest.raises(ValueError, match="damaged or cut off"):
            read(path)


def test_many_files_with_an_index(arrays, tmp_path):
    names = sorted(arrays)
    first = {name: arrays[name] for name in names[:3]}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file({name: arrays[name] for name in names[3:]}, tmp_path / "model-2.safetensors")
    files = {name: f"model-{1 if name in first else 2}.safetensors" for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    _equal(read(index), arrays)
    _equal(read(tmp_path), arrays)
    index.write_text(json.dumps({"weight_map": {**files, "lost": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match="1 arrays that its files lack, 'lost'"):
        read(tmp_path)
    for bad in ("../model-1.safetensors", "/etc/passwd", "", 3, "a\0b", "missing.safetensors", index.name):
        index.write_text(json.dumps({"weight_map": {"x": bad}}))
        with pytest.raises(ValueError, match="which is no file of"):
            read(tmp_path)
    for bad in ("[", "[]", "{}", '{"weight_map": []}', "[" * 100000):
        index.write_text(bad)
        with pytest.raises(ValueError, match=r"index of weights|no weight_map"):
            read(tmp_path)


def test_folders_and_what_is_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no file of weights"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path / "none.pt")
    write_zip(tmp_path / "a.pt", {"w": tensor(np.ones(2))})
    assert list(read(tmp_path)) == ["w"]
    write_zip(tmp_path / "b.pt", {"w": tensor(np.ones(2))})
    with pytest.raises(ValueError, match=r"several files of weights, a.pt, b.pt; name one"):
        read(tmp_path)
    for content, text in ((b"", "is empty"), (b"hello world, how are you", "of no known format")):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(ValueError, match=text):
            read(tmp_path / "a.pt")


def test_keras_files_have_keras_names(tmp_path, rng):
    kernel, bias = rng.standard_normal((3, 3, 1, 4)).astype(np.float32), np.ones(4, np.float32)
    with h5py.File(tmp_path / "keras2.h5", "w") as file:
        group = file.create_group("model_weights")
        group.create_dataset("conv/conv/kernel:0", data=kernel)
        group.create_dataset("conv/conv/bias:0", data=bias, chunks=(2,), compression="gzip")
        file.create_dataset("optimizer_weights/adam/m:0", data=bias)
    _equal_h5(read(tmp_path / "keras2.h5"), {"conv/kernel": kernel, "conv/bias": bias})
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.create_dataset("conv/conv_W:0", data=kernel)
        file.create_dataset("conv/conv_b:0", data=bias)
    _equal_h5(read(tmp_path / "weights.h5"), {"conv_W": kernel, "conv_b": bias})
    with h5py.File(tmp_path / "keras3.h5", "w") as file:
        file.create_dataset("layers/conv/vars/0", data=kernel)
        file.create_dataset("layers/conv/vars/1", data=bias)
        file.create_dataset("optimizer/vars/0", data=bias)
    _equal_h5(read(tmp_path / "keras3.h5"), {"layers/conv/vars/0": kernel, "layers/conv/vars/1": bias})
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["x"] = h5py.ExternalLink("keras3.h5", "layers")
    with pytest.raises(ValueError, match="leads elsewhere"):
        read(tmp_path / "outside.h5")


def _equal_h5(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def _llama2c(path, rng, version, shared):
    dim, hidden, layers, heads, kv_heads, vocab, length = 8, 12, 2, 4, 2, 10, 6
    shapes = {
        "tok_embeddings": (vocab, dim),
        "attention_norm": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, 4, dim),
        "wv": (layers, 4, dim),
        "wo": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm": (dim,),
        "freqs_cos": (length, 1),
        "freqs_sin": (length, 1),
        "output": (vocab, dim),
    }
    order = list(shapes)
    if version:
        order = ["attention_norm", "ffn_norm", "norm", "tok_embeddings", *order[2:6], "w1", "w2", "w3", "output"]
    order = order[:-1] if shared else order
    arrays = {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in order}
    sizes = (dim, hidden, layers, heads, kv_heads, vocab if version or shared else -vocab, length)
    head = struct.pack("<7i", *sizes)
    if version:
        head = (struct.pack("<Ii", 0x616B3432, version) + head + bytes([shared])).ljust(256, b"\0")
    path.write_bytes(head + b"".join(arrays[name].tobytes() for name in order))
    return arrays, {**dict(zip(SIZES, sizes)), "vocab_size": vocab, "shared_classifier": shared}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_llama2c_files(tmp_path, rng, version, shared):
    path = tmp_path / "model.bin"
    arrays, config = _llama2c(path, rng, version, shared)
    found = read(path)
    _equal(found, arrays)
    assert found.config == config
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"damaged or cut off|is no file of llama2.c|no known format"):
        read(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A whole file of each format."""
    folder, rng = tmp_path_factory.mktemp("good"), np.random.default_rng(0)
    arrays = {"a.weight": rng.standard_normal((4, 5)).astype(np.float32), "b": np.arange(6)}
    tensors = {"state_dict": {name: tensor(a) for name, a in arrays.items()}, "epoch": 3}
    save_file(arrays, folder / "safetensors")
    write_zip(folder / "zip", tensors)
    write_legacy(folder / "legacy", tensors)
    _llama2c(folder / "llama2c", rng, 0, True)
    _llama2c(folder / "llama2c_1", rng, 1, True)
    with h5py.File(folder / "keras", "w") as file:
        file.create_dataset("conv/conv/kernel:0", data=arrays["a.weight"])
        file.create_dataset("conv/conv/bias:0", data=arrays["a.weight"], chunks=(2, 5), compression="gzip")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "llama2c", "llama2c_1", "keras"])
def test_damage_is_a_value_error_and_takes_no_memory(good, tmp_path, kind):
    path, whole = tmp_path / "model.bin", good[kind]
    # Most of these files is numbers, whose damage nobody can see: look where the structure is.
    most = {"safetensors": 250, "llama2c": 40, "llama2c_1": 300}.get(kind, len(whole))

    def opened(content):
        path.write_bytes(content)
        try:
            found = read(path)
            for name in found:
                assert np.asarray(found[name]).nbytes <= 1 << 24
        except ValueError:
            pass

    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, most - 1), st.integers(1, 255), st.integers(1, 9), st.booleans())
    def damage(at, flip, length, cut):
        rest = b"" if cut else whole[at + length :]
        opened(whole[:at] + bytes(b ^ flip for b in whole[at : at + length]) + rest)

    tracemalloc.start()
    damage()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_headers_that_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"

    def refused(header, data=b"\0" * 8, match="damaged or cut off"):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        with pytest.raises(ValueError, match=match):
            read(path)

    refused({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})
    refused({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}})
    refused({"x": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}})
    refused({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, match="takes 4 bytes")
    refused({"x": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, match="known are BOOL")
    refused({"x": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, match="no whole numbers")
    refused({"x": {"dtype": "F32"}})
    refused({"x": [1, 2]})
    refused(b'{"x": 1, "x": 2}', match="stands twice")
    refused(b"{" * 50000)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="header claims"):
        read(path)


def test_opening_reads_no_array(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file({"x": np.ones((16, 1 << 20), np.float32)}, path)
    code = (
        "import resource, sys; from llmasos_xla.models.pretrained import read\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"x = read({str(path)!r})['x']; part = x[3, :10].sum()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 16 << 10  # KiB; the file has 64 MiB


def _digest(arrays):
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]


def test_published_files_are_what_torch_reads(shared_data):
    # The digests are of torch.load(..., weights_only=True), version 2.13.
    for file, wanted in (
        ("weights_mtcnn/pnet.pt", "0a611ba75cfbbf76"),
        ("weights_mtcnn/rnet.pt", "02611b111e9362b0"),
        ("weights_mtcnn/onet.pt", "64ff72acb5a263df"),
        ("weights_resnet20_cifar/resnet20-12fca82f.th", "bb7e61c258999630"),
    ):
        assert _digest(read(shared_data / file)) == wanted
    silero = shared_data / "weights_silero_vad/silero_vad_16k.safetensors"
    _equal(read(silero), load_file(silero))
    stories = read(shared_data / "weights_stories260k/stories260K.bin")
    assert tuple(stories.config[size] for size in SIZES) == (64, 172, 5, 8, 4, 512, 512)
    # llama2.c's own tables of angles stand behind all weights: right only if all of the order is.
    angles = np.arange(512)[:, None] / 10000.0 ** (np.arange(4) / 4)
    np.testing.assert_allclose(stories["freqs_cos"], np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(stories["freqs_sin"], np.sin(angles), atol=1e-4)
