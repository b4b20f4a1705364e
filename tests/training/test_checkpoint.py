"""Checkpoints as a folder: the same bits on any devices, whole or not there, and damage is named."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from llmasos_xla.sharding import MeshSpec
from llmasos_xla.training.ballot import DELAY, Ballot
from llmasos_xla.training.checkpoint import Checkpoint, Decision, Pace
from llmasos_xla.training.checkpoint_folder import DamagedCheckpointError, entries
from llmasos_xla.training.store import Store

CHILD = pathlib.Path(__file__).with_name("store_child.py")
RECORD = {"data": {"epoch": 1}, "history": [0.1, float("nan")], "text": "ä"}


def host_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params/dense/kernel": rng.normal(size=(8, 16)).astype(np.float32),
        "params/dense.1/bias": rng.normal(size=(16,)).astype(np.float32),
        "params/half": rng.normal(size=(8, 3)).astype(ml_dtypes.bfloat16),
        "optimizer/0/count": np.int32(seed + 7),
        "state/nothing": np.zeros((0, 3), np.float32),
        "state/flags": np.array([True, False]),
        "state/odd": np.array([np.nan, -0.0, np.inf], np.float32),
        "state/zeros": np.zeros((8, 8), np.float32),
    }


def mesh(*shape):
    names = ("a", "b")[: len(shape)]
    count = int(np.prod(shape))
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=jax.devices()[:count])


def laid_out(mesh, spec):
    """A sharding for each array: the spec where the array has so many axes, else copies."""

    def of(a):
        fits = np.ndim(a) == 2 and np.shape(a)[0] % 8 == 0 and np.shape(a)[1] % 8 == 0
        return NamedSharding(mesh, spec if fits else PartitionSpec())

    return of


LAYOUTS = {
    "1": lambda a: SingleDeviceSharding(jax.devices()[2]),
    "2": laid_out(mesh(2), PartitionSpec("a")),
    "4": laid_out(mesh(4), PartitionSpec("a")),
    "8 columns": laid_out(mesh(8), PartitionSpec(None, "a")),
    "2x4": laid_out(mesh(2, 4), PartitionSpec("b", "a")),
    "4 copies": laid_out(mesh(4), PartitionSpec()),
}


def put(arrays, layout):
    return {n: jax.device_put(a, LAYOUTS[layout](a)) for n, a in arrays.items()}


def bits(arrays):
    return {n: (str(a.dtype), np.shape(a), np.asarray(a).tobytes()) for n, a in arrays.items()}


def shapes(arrays, layout=None):
    return {
        n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=LAYOUTS[layout](a) if layout else None)
        for n, a in arrays.items()
    }


def saved(folder, steps=(1,), **options):
    with Store(folder, **options) as store:
        for step in steps:
            store.save(step, put(host_arrays(step), "1"), RECORD)
    return folder


def names(folder):
    return sorted(p.name for p in pathlib.Path(folder).iterdir())


@pytest.mark.parametrize("before", ["4", "2x4", "1"])
def test_saved_on_some_devices_and_restored_on_others_bit_for_bit(tmp_path, before):
    arrays = host_arrays()
    with Store(tmp_path) as store:
        store.save(3, put(arrays, before), RECORD)
        for after in LAYOUTS:
            again, record = store.restore(3, shapes(arrays, after))
            assert bits(again) == bits(arrays)
            assert all(a.sharding == LAYOUTS[after](arrays[n]) for n, a in again.items())
            assert record["data"] == RECORD["data"]
        plain, _ = store.restore()
        assert all(isinstance(a, np.ndarray) for a in plain.values())
        assert bits(plain) == bits(arrays)


def test_the_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    change = jax.jit(lambda arrays: jax.tree.map(lambda a: a + 1, arrays), donate_argnums=0)
    arrays = {f"a{i}": jnp.full((500, 501), i, jnp.float32) for i in range(8)}
    with Store(tmp_path) as store:
        for round in range(3):
            blocked = store.save(round, arrays, {})
            for _ in range(20):
                arrays = change(arrays)
            assert blocked >= 0
            again, _ = store.restore(round)
            for i in range(8):
                np.testing.assert_array_equal(again[f"a{i}"], np.full((500, 501), i + 20 * round, np.float32))


def test_the_newest_and_the_best_are_kept(tmp_path):
    values = {1: 0.5, 2: 0.9, 3: 0.7, 4: float("nan"), 5: 0.9, 6: 0.1, 7: 0.2}
    with Store(tmp_path, keep=2, best=("score", "max"), keep_best=2) as store:
        for step, value in values.items():
            store.save(step, {"a": jnp.ones(3)}, {}, {"score": value})
        store.wait()
        assert (store.steps(), store.latest(), store.best_step()) == ([2, 5, 6, 7], 7, 5)
        # A save without the metric is none of the best.
        store.save(8, {"a": jnp.ones(3)}, {})
    with Store(tmp_path, read_only=True) as again:
        assert (again.steps(), again.best_step()) == ([2, 5, 7, 8], 5)
    saved(tmp_path / "none")
    with Store(tmp_path / "none", read_only=True) as store, pytest.raises(ValueError, match="does not say which step"):
        store.best_step()


def test_a_second_checkpoint_of_a_step_takes_the_place_of_the_first(tmp_path):
    with Store(tmp_path, keep=2) as store:
        for value in (1.0, 2.0, 3.0):
            store.save(4, {"a": jnp.full(3, value)}, {"value": value})
            assert any((entry.path / "manifest.json").is_file() for entry in entries(tmp_path)) == (value > 1)
        arrays, record = store.restore(4)
        assert store.steps() == [4]
    assert (record["value"], arrays["a"].tolist()) == (3.0, [3.0, 3.0, 3.0])
    assert names(tmp_path) == ["step_4.2"]


def test_leftovers_are_swept_when_a_folder_is_opened_for_writing_only(tmp_path):
    saved(tmp_path)
    for name in ("step_2.orbax-checkpoint-tmp", "step_2.orbax-checkpoint-tmp-17", "step_0.deleted"):
        (tmp_path / name / "arrays").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "log.csv").write_text("mine")
    with Store(tmp_path, read_only=True) as store:
        assert (store.swept, store.steps()) == ((), [1])
        with pytest.raises(RuntimeError, match="is open for reading only"):
            store.save(2, {"a": jnp.ones(3)}, {})
    with Store(tmp_path) as store:
        assert store.swept == ("step_0.deleted", "step_2.orbax-checkpoint-tmp", "step_2.orbax-checkpoint-tmp-17")
    assert names(tmp_path) == ["log.csv", "notes", "step_1"]


def test_differences_are_told(tmp_path):
    saved(tmp_path)
    like = shapes(host_arrays())
    like["params/half"] = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    like["state/odd"] = jax.ShapeDtypeStruct((3,), jnp.int32)
    like["extra"] = jax.ShapeDtypeStruct((3,), jnp.int32)
    del like["state/flags"]
    with Store(tmp_path, read_only=True) as store:
        with pytest.raises(ValueError, match="4 arrays of '.*step_1' are not what is wanted") as told:
            store.restore(1, like)
        for text in (
            "extra is missing",
            "params/half has shape (8, 3), wanted (8, 4)",
            "state/flags is left over",
            "state/odd has dtype float32, wanted int32",
        ):
            assert text in str(told.value)
        with pytest.raises(ValueError, match="7 arrays .*; .*; .*; .*; .*; [.][.][.]$"):
            store.restore(1, {"state/odd": shapes(host_arrays())["state/odd"]})
        part, _ = store.restore(1, {"state/odd": shapes(host_arrays())["state/odd"]}, partial=True)
        assert list(part) == ["state/odd"]
        with pytest.raises(FileNotFoundError, match="there is no step 5 in '.*'; its steps are 1"):
            store.restore(5)
    with Store(tmp_path / "none", read_only=True) as store, pytest.raises(FileNotFoundError, match="no folder"):
        store.restore()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


DAMAGE = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "has .* bytes, .* were written"),
    "empty": (lambda p: p.write_bytes(b""), "has 0 bytes, .* were written"),
    "gone": (lambda p: p.unlink(), "is missing"),
    "flipped": (flip, "has other bytes than were written|manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_found_and_named(tmp_path, kind):
    saved(tmp_path / "whole")
    change, text = DAMAGE[kind]
    inside = [p.relative_to(tmp_path / "whole/step_1") for p in (tmp_path / "whole/step_1/arrays").rglob("*")]
    inside = [p for p in inside if (tmp_path / "whole/step_1" / p).is_file()]
    assert len(inside) > 5
    for name in [*inside, pathlib.Path("record.json")]:
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        change(folder / "step_1" / name)
        with Store(folder, read_only=True) as store:
            with pytest.raises(DamagedCheckpointError, match=f"step_1' is damaged: .*({text})") as told:
                store.restore(1)
            assert name.as_posix() in str(told.value)
            assert store.newest_whole()[0] is None


def test_a_damaged_manifest_is_damage(tmp_path):
    saved(tmp_path)
    manifest = tmp_path / "step_1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../../outside"] = [1, 2]
    for text in ("", "[]", "{", "[" * 100_000, '{"files": {"a": 1}}', json.dumps(content)):
        manifest.write_text(text)
        with Store(tmp_path, read_only=True) as store, pytest.raises(DamagedCheckpointError, match="manifest.json"):
            store.restore(1)


def test_the_newest_whole_one_is_found_and_the_damaged_set_aside(tmp_path):
    saved(tmp_path, steps=(1, 2, 3, 4), keep=4)
    flip(tmp_path / "step_4" / "record.json")
    (tmp_path / "step_3" / "manifest.json").unlink()
    with Store(tmp_path, read_only=True) as store:
        step, damage = store.newest_whole()
        assert step == 2
        assert damage["step_4"] == "record.json has other bytes than were written"
        assert damage["step_3"].startswith("manifest.json cannot be read")
    with Store(tmp_path, keep=4) as store:
        assert store.newest_whole(set_aside=True)[0] == 2
        assert names(tmp_path) == ["step_1", "step_2", "step_3.damaged", "step_4.damaged"]
        store.save(4, put(host_arrays(4), "1"), {})
    assert names(tmp_path) == ["step_1", "step_2", "step_3.damaged", "step_4", "step_4.damaged"]


def test_a_folder_that_is_not_ours_is_not_deleted(tmp_path):
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "thesis.txt").write_text("mine")
    saved(tmp_path, steps=(2, 3), keep=1)
    assert names(tmp_path) == ["step_1", "step_3"]


def test_a_save_that_fails_says_so_and_leaves_the_earlier_ones_whole(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Store(tmp_path) as store:
        store.save(1, {"a": jnp.ones(3)}, {})
        store.wait()
        monkeypatch.setattr("llmasos_xla.training.store.digests", full)
        store.save(2, {"a": jnp.ones(3)}, {})
        with pytest.raises(RuntimeError, match="step_2 could not be written to .*No space left on device; the check"):
            store.wait()
        monkeypatch.undo()
        assert store.newest_whole() == (1, {})
        store.save(2, {"a": jnp.ones(3)}, {})
    assert names(tmp_path) == ["step_1", "step_2"]


def test_nothing_is_printed_or_logged(tmp_path, capfd):
    saved(tmp_path, steps=(1, 2, 3, 4))
    with Store(tmp_path, read_only=True) as store:
        store.restore()
    assert capfd.readouterr() == ("", "")


def test_only_the_copy_holds_the_caller_up(tmp_path, monkeypatch):
    from llmasos_xla.training import store as module

    slow = module.digests
    monkeypatch.setattr(module, "digests", lambda *a: time.sleep(1.0) or slow(*a))
    with Store(tmp_path) as store:
        store.save(1, {"a": jnp.ones(3)}, {})
        assert store.steps() == []
        # The second waits for the first, and says so.
        assert store.save(2, {"a": jnp.ones(3)}, {}) > 0.5
        assert store.steps() == [1]


def test_two_processes_save_together_and_one_reads(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, put(host_arrays(), "4"), RECORD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = [[sys.executable, str(CHILD), str(tmp_path), str(port), "2", str(rank)] for rank in range(2)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    try:
        first, _ = running[0].communicate(timeout=240)
        assert running[0].returncode == -9, first
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert names(tmp_path) == ["step_1", "step_2", "step_3", "step_4.orbax-checkpoint-tmp"]
    with Store(tmp_path) as store:
        assert store.swept == ("step_4.orbax-checkpoint-tmp",)
        assert store.newest_whole() == (3, {})
        for after in ("1", "2", "8 columns"):
            again, record = store.restore(2, shapes(host_arrays(), after))
            assert bits(again) == bits(host_arrays())
        assert (record["processes"], record["data"]) == (2, RECORD["data"])
        more, _ = store.restore(3)
        np.testing.assert_array_equal(more["params/dense/kernel"], host_arrays()["params/dense/kernel"] + np.float32(1))


def test_a_pace_is_that_of_its_options():
    now = [0.0]
    options = Checkpoint("runs/a", every_steps=10, every_seconds=60, every_epochs=2)
    pace = Pace(options, clock=lambda: now[0])
    assert pace.decide(99, pace.wish(False)) == Decision()
    pace.start(100)
    assert [pace.decide(n, Decision()).save for n in (101, 109, 110, 250)] == [False, False, True, True]
    now[0] = 59.9
    assert not pace.wish(False).save
    now[0] = 60.0
    assert pace.wish(False).save
    assert pace.decide(101, pace.wish(False)).save
    pace.start(101)
    assert [pace.decide(102, Decision(), epochs).save for epochs in (1, 2, 3, 4)] == [False, True, False, True]
    assert pace.decide(102, pace.wish(True)) == Decision(False, "interrupt")
    assert Pace(options, terminated=lambda: True).wish(True).stop == "terminate"
    assert Pace().decide(10**6, Pace().wish(False), 1000) == Decision()


def test_what_one_process_wishes_all_do_at_the_same_dispatch():
    """Eight devices stand for as many processes; an answer is read DELAY dispatches later, or at the epoch's end."""
    ballot = Ballot(MeshSpec(data=8).mesh())
    counted = jax.jit(Ballot.counted)
    quiet = ballot.cast(Decision())
    loud = quiet.at[5].set(jnp.array([1, 2], jnp.int32))
    heard = [ballot.heard(counted(votes)) for votes in (quiet, loud, quiet, quiet, quiet, loud)]
    assert heard == [Decision()] * (DELAY + 1) + [Decision(True, "terminate"), Decision()]
    assert ballot.last() == Decision(True, "terminate")
    assert ballot.last() == Decision()
    assert np.array_equal(counted(ballot.cast(Decision(False, "interrupt"))), [0, 1])
