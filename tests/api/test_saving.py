"""Model files: bit for bit, atomic, and nothing hostile gets in."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import chex
import h5py
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.metrics import f1_score

import llmasos_xla as lm
from llmasos_xla.api import saving

SUFFIXES = [".h5", ".safetensors"]


@pytest.fixture(scope="module")
def trained(blobs):
    model = lm.Model(4, 3, seed=5)
    model.add_layer("Dense", 6, activation="relu")
    model.add_layer("BatchNormalization")
    model.add_layer("Dense", 3, activation="softmax")
    model.train(blobs, lm.Optimizer("adam", lr=0.01, ema=0.9), epochs=2, batch_size=16, verbose=0)
    return model


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_load_is_the_inverse_of_save_bit_for_bit(trained, blobs, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    trained.save(path)
    again = lm.load(path)
    assert type(again) is lm.Model
    chex.assert_trees_all_equal(again.learner.training_state, trained.learner.training_state)
    np.testing.assert_array_equal(again.predict(blobs[0]), trained.predict(blobs[0]))
    assert again.evaluate(*blobs, verbose=0) == trained.evaluate(*blobs, verbose=0)
    assert again.layers == trained.layers


METRICS = ["accuracy", "f1_macro", "recall_weighted", "precision_micro", "auc"]


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_metrics_of_several_outputs_are_saved_by_name(blobs, tmp_path, head):
    x, y = blobs
    model = lm.Sequential([lm.layers.Dense(3, activation=head, input_shape=(4,))])
    classes = head == "softmax"
    # Under a loss of sigmoids the same names are metrics of labels.
    model.compile("adam", "sparse_categorical_crossentropy" if classes else "binary_crossentropy", METRICS)
    targets = y if classes else np.eye(3, dtype=np.float32)[y]
    model.fit(x, targets, epochs=1, verbose=0)
    logs = model.evaluate(x, targets, verbose=0)
    assert list(logs) == ["loss", *METRICS]
    p = model.predict(x)
    chosen, wanted = (p.argmax(1), y) if classes else (p > 0.5, targets > 0.5)
    expected = f1_score(wanted, chosen, average="macro", zero_division=0)
    assert logs["f1_macro"] == pytest.approx(expected, rel=1e-5)
    model.save(tmp_path / "m.h5")
    assert lm.load(tmp_path / "m.h5").evaluate(x, targets, verbose=0) == logs


def test_training_goes_on_after_loading(trained, blobs, tmp_path):
    trained.save(tmp_path / "m.h5")
    a, b = lm.load(tmp_path / "m.h5"), lm.load(tmp_path / "m.h5")
    optimizer = lm.Optimizer("adam", lr=0.01, ema=0.9)
    a.train(blobs, optimizer, epochs=2, batch_size=16, verbose=0)
    b.train(blobs, optimizer, epochs=1, batch_size=16, verbose=0)
    b.save(tmp_path / "n.safetensors")
    c = lm.load(tmp_path / "n.safetensors")
    c.train(blobs, optimizer, epochs=1, batch_size=16, verbose=0)
    chex.assert_trees_all_equal(a.learner.training_state, c.learner.training_state)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_keep_dtype_and_bits(tmp_path, suffix):
    import ml_dtypes

    arrays = {
        "params/a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "params/half": np.arange(4).astype(ml_dtypes.bfloat16),
        "state/counter": np.int32(7),
        "state/nan": np.array([np.nan, np.inf, -0.0]),
    }
    saving.write(tmp_path / f"x{suffix}", {"a": [1, 2]}, arrays)
    spec, again = saving.read(tmp_path / f"x{suffix}")
    assert spec["a"] == [1, 2]
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in again.items()} == {
        n: (np.asarray(a).dtype, np.shape(a), np.asarray(a).tobytes()) for n, a in arrays.items()
    }


def test_a_model_never_trained_can_be_saved(tmp_path):
    model = lm.Sequential([lm.layers.Dense(2, input_shape=(3,))])
    model.save(tmp_path / "new.h5")
    again = lm.load(tmp_path / "new.h5")
    chex.assert_trees_all_equal(again.variables, model.variables)


def test_a_file_may_not_exist_or_be_of_another_kind(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"load: there is no file '.*none.h5' \(looked from"):
        lm.load(tmp_path / "none.h5")
    with pytest.raises(ValueError, match="is a folder; wanted a .h5 or .safetensors file"):
        lm.load(tmp_path)
    with pytest.raises(ValueError, match=r"'model.pkl' ends in '.pkl'; wanted .h5 or .safetensors"):
        trained.save(tmp_path / "model.pkl")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        trained.save(tmp_path / "no" / "model.h5")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files_are_refused(trained, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    trained.save(path)
    whole = path.read_bytes()
    for keep in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="load: "):
            lm.load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_bytes_never_crash(trained, tmp_path_factory, suffix):
    path = tmp_path_factory.mktemp("damage") / f"model{suffix}"
    trained.save(path)
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255), st.integers(1, 40))
    def damage(at, flip, length):
        path.write_bytes(whole[:at] + bytes(b ^ flip for b in whole[at : at + length]) + whole[at + length :])
        try:
            saving.read(path)
        except ValueError as error:
            assert str(error).startswith("load: ")

    damage()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_hostile_files_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.h5").write_bytes(pickle.dumps(Bomb()))
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["llmasos_xla"] = np.frombuffer(json.dumps({"format": saving.FORMAT}).encode(), np.uint8)
        file["params"] = h5py.ExternalLink("/etc/passwd", "/")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file["llmasos_xla"] = np.frombuffer(json.dumps({"format": saving.FORMAT}).encode(), np.uint8)
        file.create_dataset("params/x", shape=(1 << 36,), dtype="f4", chunks=(1 << 20,))
    with h5py.File(tmp_path / "keras.h5", "w") as file:
        file.attrs["model_config"] = "{}"
    save_file({"x": np.ones(3)}, tmp_path / "plain.safetensors")
    save_file({"x": np.ones(3)}, tmp_path / "deep.safetensors", metadata={"llmasos_xla": "[" * 100_000})
    texts = {
        "pickle.h5": "is no HDF5 file",
        "linked.h5": "is a link that leads elsewhere",
        "huge.h5": "claims 274877906944 bytes",
        "keras.h5": "looks like a Keras file",
        "plain.safetensors": "holds arrays but no model of llmasos_xla",
        "deep.safetensors": "the specification in 'deep.safetensors' is damaged",
    }
    for name, text in texts.items():
        with pytest.raises(ValueError, match=text):
            lm.load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def changed(trained, tmp_path, change):
    trained.save(tmp_path / "m.safetensors")
    spec, arrays = saving.read(tmp_path / "m.safetensors")
    spec.pop("format")
    change(spec, arrays)
    return saving.write(tmp_path / "changed.safetensors", spec, arrays)


CHANGES = [
    (lambda s, a: s.pop("model"), "the specification has no model"),
    (lambda s, a: s["model"]["layers"][0].update({"class": "os.system"}), "unknown layer 'os.system'"),
    (lambda s, a: s["model"]["layers"][0].update(evil=1), "Dense has no argument evil"),
    (lambda s, a: s["model"]["layers"][0].update(units=-3), "units wants an int of at least 1, got -3"),
    (lambda s, a: s["model"].update(input_shape=["x"]), "is no shape"),
    (lambda s, a: s["door"].update(door="__import__"), "is not one of Sequential, Model"),
    (lambda s, a: s["recipe"].update(loss="eval"), "unknown loss 'eval'"),
    (lambda s, a: s["recipe"].pop("optimizer"), "the training recipe is damaged"),
    (lambda s, a: a.pop("params/dense/kernel"), r"dense/kernel: wanted \(\(4, 6\), 'float32'\), the file has none"),
    (lambda s, a: a.update({"params/dense/kernel": np.ones((4, 7), "f4")}), r"the file has \(\(4, 7\), 'float32'\)"),
    (lambda s, a: s.update(seed="x"), "the specification is damaged: seed"),
    (lambda s, a: s["preprocessing"].update(input={"kind": "exec"}), "load|preprocessing|Preprocessing"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_specifications_that_do_not_fit(trained, tmp_path, change, text):
    path = changed(trained, tmp_path, change)
    with pytest.raises(ValueError, match=text):
        lm.load(path)


def test_a_newer_format_says_so(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FORMAT", "llmasos_xla/9")
    trained.save(tmp_path / "future.h5")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is of format 'llmasos_xla/9', this version reads 'llmasos_xla/1'; upgrade"):
        lm.load(tmp_path / "future.h5")


WRITER = """
import sys, itertools, numpy as np
from llmasos_xla.api import saving
for i in itertools.count():
    saving.write(sys.argv[1], {"i": i}, {"params/x": np.full(200_000, i, np.float32)})
    print(i, flush=True)
"""


def test_a_kill_in_the_middle_of_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "model.h5"
    for pause in (0.0, 0.01, 0.03):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        spec, arrays = saving.read(path)
        assert (arrays["params/x"] == spec["i"]).all()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(tmp_path):
    path = tmp_path / "model.h5"
    saving.write(path, {"i": 1}, {"params/x": np.ones(3)})
    with pytest.raises(TypeError):
        saving.write(path, {"i": 2}, {"params/x": np.array([object()])})
    assert saving.read(path).spec["i"] == 1
    assert os.listdir(tmp_path) == ["model.h5"]


def test_optimizer_of_the_users_own_is_left_out(blobs, tmp_path):
    import optax

    model = lm.Sequential([lm.layers.Dense(3, activation="softmax", input_shape=(4,))])
    model.compile(optax.sgd(0.1), "sparse_categorical_crossentropy")
    model.fit(*blobs, verbose=0)
    with pytest.warns(UserWarning, match="saved without the training state, and after load compile must be called"):
        model.save(tmp_path / "own.h5")
    again = lm.load(tmp_path / "own.h5")
    chex.assert_trees_all_equal(again.variables, model.variables)
    with pytest.raises(ValueError, match=r"call compile\(optimizer=, loss=, metrics=\) first"):
        again.evaluate(*blobs, verbose=0)
    assert jax.tree.leaves(again.variables)
