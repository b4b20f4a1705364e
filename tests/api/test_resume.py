"""A fit that was killed and resumed equals one that was not, bit for bit; and checkpoints open as models."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import chex
import numpy as np
import optax
import pytest

import llmasos_xla as lm
from llmasos_xla.training import evaluation, loop
from llmasos_xla.training.checkpoint_folder import DamagedCheckpointError, entries

CHILD = pathlib.Path(__file__).with_name("resume_child.py")
CACHE = pathlib.Path(__file__).parents[2] / ".cache" / "jax"
QUIET = {"verbose": 0, "batch_size": 16}


def child(folder, *how):
    """Runs the fit in a process of its own; returns its exit status and what it wrote to the terminal."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, str(CHILD), str(folder), *map(str, how)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def result(folder):
    with np.load(folder / "end.npz") as file:
        return {name: (file[name].dtype, file[name].shape, file[name].tobytes()) for name in file.files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert child(folder) == (0, "")
    return result(folder)


def killed_and_resumed(folder, moments, wanted):
    kills = 0
    for moment in moments:
        code, text = child(folder, *moment)
        # A kill may come too late, when the fit is done.
        assert code in (-signal.SIGKILL, 0), text
        kills += code != 0
    assert child(folder) == (0, "")
    assert result(folder) == wanted
    assert all((entry.path / "manifest.json").is_file() for entry in entries(folder / "run"))
    # What killed saves left is swept when the next run opens the folder.
    assert not [p.name for p in (folder / "run").iterdir() if "tmp" in p.name or "deleted" in p.name]
    return kills


@pytest.mark.thorough
def test_killed_twice_and_resumed_bit_for_bit(tmp_path, undisturbed):
    assert killed_and_resumed(tmp_path, [("commit", 3), ("step", 5)], undisturbed) == 2


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, undisturbed):
    rng, kills = random.Random(0), 0
    most = {"step": 15, "load": 16, "write": 6, "commit": 6}
    for round in range(5):
        moments = [(where, rng.randint(2, last)) for where, last in rng.sample(sorted(most.items()), 3)]
        moments.append(("seconds", round * 0.1 + rng.random() * 0.3))
        (folder := tmp_path / str(round)).mkdir()
        kills += killed_and_resumed(folder, moments, undisturbed)
    assert kills >= 15


def test_sigterm_saves_and_exits_with_75(tmp_path, undisturbed):
    assert child(tmp_path, "step", 9, "SIGTERM") == (75, "")
    # The first group is only looked at, and an epoch's 13 steps are seven dispatches: it was the second epoch's first.
    assert int(lm.load(tmp_path / "run").learner.training_state.step) == 13 + 2
    killed_and_resumed(tmp_path, [], undisturbed)


# Within one process


@pytest.fixture
def stopped_at(monkeypatch):
    """Sends the process a signal when the fit takes its n-th group; the first is only looked at for its shapes."""

    def arm(number, kind=signal.SIGINT):
        taken = iter(range(1, 1000))

        def arrays_of(group):
            if next(taken) == number:
                os.kill(os.getpid(), kind)
            return evaluation.arrays_of(group)

        monkeypatch.setattr(loop, "arrays_of", arrays_of)

    return arm


def damage(folder):
    path = sorted(p for p in (folder / "arrays").rglob("*") if p.is_file() and p.parent.name == "d")[0]
    path.write_bytes(path.read_bytes()[:-1])


# An epoch is seven steps in four dispatches.
STOPS = [(2, "INT"), (13, "INT"), (5, "TERM"), (7, "TERM")]


@pytest.mark.thorough
@pytest.mark.parametrize(("group", "kind"), STOPS, ids=["first", "very last", "epoch's last", "middle"])
def test_ctrl_c_and_sigterm_save_before_they_end(sequential, blobs, tmp_path, stopped_at, group, kind):
    kind, error = {"INT": (signal.SIGINT, KeyboardInterrupt), "TERM": (signal.SIGTERM, SystemExit)}[kind]
    request = {"epochs": 3, "steps_per_dispatch": 2, "validation_data": blobs, **QUIET}
    whole = sequential()
    wanted = whole.fit(*blobs, **request)
    stopped_at(group, kind)
    before = signal.getsignal(kind)
    with pytest.raises(error) as ended:
        sequential().fit(*blobs, checkpoint=tmp_path / "run", **request)
    if error is SystemExit:
        assert ended.value.code == 75
    assert signal.getsignal(kind) is before
    opened = lm.load(tmp_path / "run")
    assert opened.learner.unfinished.position.totals is not None
    resumed = sequential()
    history = resumed.fit(*blobs, checkpoint=tmp_path / "run", resume=True, **request)
    opened.fit(*blobs, **request)
    for model in (resumed, opened, lm.load(tmp_path / "run")):
        chex.assert_trees_all_equal(model.learner.training_state, whole.learner.training_state)
        assert (model.learner.unfinished, model.learner.epochs_done) == (None, 3)
    assert (history.history, history.epoch) == (wanted.history, wanted.epoch)


def test_sigterm_in_the_last_epochs_callbacks_lets_the_fit_finish(sequential, blobs, tmp_path, capsys):
    def late(event):
        if event.kind == "epoch" and event.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        sequential().fit(*blobs, epochs=2, callbacks=late, checkpoint=tmp_path, **QUIET)
    assert ended.value.code == 75
    again = sequential()
    history = again.fit(*blobs, epochs=2, checkpoint=tmp_path, resume=True, verbose=1, batch_size=16)
    assert "that fit is finished" in capsys.readouterr().out
    assert (history.epoch, again.learner.epochs_done) == ([0, 1], 2)


def test_sigterm_in_a_callback_ends_the_fit_after_that_epoch(sequential, blobs, tmp_path, capsys):
    def early(event):
        if event.kind == "epoch" and event.epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    callbacks = [early, lm.callbacks.csv_log(tmp_path / "log.csv")]
    with pytest.raises(SystemExit):
        sequential().fit(*blobs, epochs=3, callbacks=callbacks, checkpoint=tmp_path, verbose=1, batch_size=16)
    out = capsys.readouterr().out
    assert f"saved step 7 in '{tmp_path}'" in out
    assert "told to end after epoch 1; the fit is saved, resume=True goes on from here" in out
    assert lm.load(tmp_path).learner.unfinished.position.epoch == 1
    shutil.copytree(tmp_path, tmp_path / "copy")
    rest = {"epochs": 3, "resume": True, "verbose": 1, "batch_size": 16}
    sequential().fit(*blobs, checkpoint=tmp_path / "copy", **rest)
    assert "what csv_log remembered is lost: this call of fit has no such callbacks" in capsys.readouterr().out
    sequential().fit(*blobs, checkpoint=tmp_path, callbacks=lm.callbacks.csv_log(tmp_path / "log.csv"), **rest)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 3


def test_without_checkpoint_sigterm_is_the_process_own(sequential, blobs):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        sequential().fit(*blobs, callbacks=lambda event: os.kill(os.getpid(), signal.SIGTERM), **QUIET)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [1, 1, 1]


@pytest.mark.parametrize("restore_best", [False, True])
def test_early_stopping_remembers(sequential, blobs, tmp_path, stopped_at, restore_best):
    scripted = {0: 3.0, 1: 2.0, 2: 2.5, 3: 2.6, 4: 1.0}

    def request():
        def score(event):
            if event.kind == "epoch":
                event.logs["score"] = scripted[event.epoch]

        stopping = lm.callbacks.early_stopping("score", patience=2, restore_best=restore_best)
        return {"epochs": 5, "callbacks": [score, stopping], "steps_per_dispatch": 2, **QUIET}

    whole = sequential()
    assert whole.fit(*blobs, **request()).epoch == [0, 1, 2, 3]
    # In the fourth epoch: one of two epochs of patience is used up, the best was the second.
    stopped_at(15)
    with pytest.raises(KeyboardInterrupt):
        sequential().fit(*blobs, checkpoint=tmp_path, **request())
    resumed = sequential()
    assert resumed.fit(*blobs, checkpoint=tmp_path, resume=True, **request()).epoch == [0, 1, 2, 3]
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    chex.assert_trees_all_equal(lm.load(tmp_path).variables, whole.variables)


def test_both_doors_take_a_checkpoint(blobs, tmp_path, stopped_at):
    def train(**options):
        model = lm.Model(4, 3, seed=5)
        model.add_layer("Dense", 6, activation="relu")
        model.add_layer("Dense", 3, activation="softmax")
        model.train(blobs, epochs=2, steps_per_dispatch=2, **QUIET, **options)
        return model

    whole = train()
    stopped_at(4)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=str(tmp_path))
    resumed = train(checkpoint=lm.Checkpoint(tmp_path, every_epochs=None), resume=True)
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    opened = lm.load(tmp_path)
    assert type(opened) is lm.Model
    np.testing.assert_array_equal(opened.predict(blobs[0]), whole.predict(blobs[0]))


def test_an_optimizer_of_the_users_own_is_resumed_by_the_same_code(sequential, blobs, tmp_path, stopped_at):
    request = {"epochs": 2, "steps_per_dispatch": 2, **QUIET}
    whole = sequential(optimizer=optax.adam(0.01))
    whole.fit(*blobs, **request)
    stopped_at(4)
    with pytest.raises(KeyboardInterrupt):
        sequential(optimizer=optax.adam(0.01)).fit(*blobs, checkpoint=tmp_path, **request)
    opened = lm.load(tmp_path)
    assert (opened.learner.recipe, opened.learner.training_state) == (None, None)
    assert opened.predict(blobs[0]).shape == (101, 3)
    resumed = sequential(optimizer=optax.adam(0.01))
    resumed.fit(*blobs, checkpoint=tmp_path, resume=True, **request)
    chex.assert_trees_all_equal(resumed.learner.training_state, whole.learner.training_state)


def test_a_fit_can_be_prolonged(sequential, blobs, tmp_path):
    whole, twice = sequential(), sequential()
    wanted = whole.fit(*blobs, epochs=4, **QUIET)
    sequential().fit(*blobs, epochs=2, checkpoint=tmp_path, **QUIET)
    history = twice.fit(*blobs, epochs=4, checkpoint=tmp_path, resume=True, **QUIET)
    chex.assert_trees_all_equal(twice.learner.training_state, whole.learner.training_state)
    assert (history.history, twice.learner.epochs_done) == (wanted.history, 4)
    with pytest.raises(ValueError, match="is in epoch 5 already, epochs=3 asks for less; pass epochs=4"):
        sequential().fit(*blobs, epochs=3, checkpoint=tmp_path, resume=True, **QUIET)


def test_what_is_saved_when_and_kept(sequential, blobs, tmp_path):
    options = lm.Checkpoint(tmp_path, every_steps=3, every_seconds=None, keep=100)
    history = sequential().fit(*blobs, epochs=2, checkpoint=options, steps_per_dispatch=1, **QUIET)
    # Seven steps an epoch; an epoch's end counts as a save, and what is due at its last step is saved with it.
    assert [step for step, _ in history.saves] == [3, 6, 7, 10, 13, 14]
    assert all(seconds > 0 for _, seconds in history.saves)
    assert [entry.step for entry in entries(tmp_path)] == [3, 6, 7, 10, 13, 14]
    often = lm.Checkpoint(tmp_path / "often", every_seconds=0, every_epochs=None, keep=2)
    history = sequential().fit(*blobs, epochs=2, checkpoint=often, steps_per_dispatch=2, **QUIET)
    assert [step for step, _ in history.saves] == [2, 4, 6, 7, 9, 11, 13, 14]
    assert [entry.step for entry in entries(tmp_path / "often")] == [13, 14]
    rare = lm.Checkpoint(tmp_path / "rare", every_epochs=2)
    history = sequential().fit(*blobs, epochs=5, checkpoint=rare, **QUIET)
    assert [step for step, _ in history.saves] == [14, 28, 35]


@pytest.mark.parametrize("restore_best", [False, True])
def test_the_best_is_kept_and_opened(sequential, blobs, tmp_path, restore_best):
    # Downhill for the first epochs, then uphill.
    rate = lm.Schedule("linear", init_value=0.3, end_value=-0.5, transition_steps=35)
    model = sequential(optimizer=lm.Optimizer("sgd", lr=rate))
    stopping = lm.callbacks.early_stopping("val_loss", patience=9, restore_best=restore_best)
    options = lm.Checkpoint(tmp_path, best="val_loss", keep=1)
    history = model.fit(*blobs, epochs=5, validation_data=blobs, checkpoint=options, callbacks=stopping, **QUIET)
    losses = history.history["val_loss"]
    best = int(np.argmin(losses))
    assert 0 < best < 4
    assert [entry.step for entry in entries(tmp_path)] == [7 * (best + 1), 35]
    assert lm.load(tmp_path, step="best").evaluate(*blobs, verbose=0)["loss"] == losses[best]
    assert lm.load(tmp_path, step=35).evaluate(*blobs, verbose=0)["loss"] == losses[best if restore_best else -1]


def test_a_damaged_checkpoint_is_told_and_passed_over(sequential, blobs, tmp_path):
    request = {"epochs": 3, "validation_data": blobs, **QUIET}
    whole = sequential()
    whole.fit(*blobs, checkpoint=tmp_path / "run", **request)
    for name in ("step_21", "step_14"):
        damage(tmp_path / "run" / name)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(DamagedCheckpointError, match=r"step_21' is damaged: arrays/.* were written; load\(.*step=7"):
        lm.load(tmp_path / "run")
    assert int(lm.load(tmp_path / "run", step=7).learner.training_state.step) == 7
    resumed = sequential()
    with pytest.warns(UserWarning, match=r"set aside .*step_21: .*step_14: .*going on from step 7, which is whole"):
        resumed.fit(*blobs, checkpoint=tmp_path / "run", resume=True, **request)
    chex.assert_trees_all_equal(resumed.learner.training_state, whole.learner.training_state)
    assert sorted(os.listdir(tmp_path / "run")) == [f"step_{n}" for n in ("14", "14.damaged", "21", "21.damaged", "7")]
    damage(tmp_path / "copy" / "step_7")
    for _ in range(2):
        with pytest.raises(DamagedCheckpointError, match="no checkpoint in .* is whole .*; start anew in another"):
            sequential().fit(*blobs, checkpoint=tmp_path / "copy", resume=True, **request)


def test_another_fit_is_not_gone_on_with(sequential, blobs, tmp_path):
    x, y = blobs
    sequential().fit(x, y, epochs=2, checkpoint=tmp_path, **QUIET)
    same = {"epochs": 2, "checkpoint": tmp_path, "resume": True}
    own = optax.sgd(0.1)
    with pytest.raises(FileExistsError, match="up to step 14; pass resume=True to go on with that fit, choose another"):
        sequential().fit(x, y, epochs=2, checkpoint=tmp_path, **QUIET)
    for text, call in {
        "fit batch_size: there 16, here 8": lambda: sequential().fit(x, y, batch_size=8, verbose=0, **same),
        "fit rows: there 101, here 100": lambda: sequential().fit(x[:100], y[:100], **QUIET, **same),
        "seed: there 0, here 1": lambda: sequential(seed=1).fit(x, y, **QUIET, **same),
        "recipe optimizer name: there adam, here sgd": lambda: sequential(optimizer="sgd").fit(x, y, **QUIET, **same),
        "recipe: there {'optimizer.*, here None": lambda: sequential(optimizer=own).fit(x, y, **QUIET, **same),
        "fit class_weight: there None, here": lambda: sequential().fit(x, y, class_weight={0: 2.0}, **QUIET, **same),
        "preprocessing": lambda: sequential().fit(x * 2 + 1, np.array(list("abc"))[y], **QUIET, **same),
        "fit first_epoch: there 0, here 2; this model has been trained since": lambda: lm.load(tmp_path).fit(
            x, y, **QUIET, **same
        ),
    }.items():
        with pytest.raises(ValueError, match=f"belong to another fit: .*{text}.*choose another folder"):
            call()
    other = lm.Sequential([lm.layers.Dense(3, activation="softmax", input_shape=(4,))])
    other.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    with pytest.raises(ValueError, match="belong to another fit: model layers: there"):
        other.fit(x, y, **QUIET, **same)
    assert [entry.step for entry in entries(tmp_path)] == [7, 14]


def test_refusals(sequential, blobs, tmp_path, unchecked):
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        sequential().fit(*blobs, resume=True)
    with pytest.raises(ValueError, match="wants a metric of this fit, loss, accuracy; got 'val_loss'; pass val"):
        sequential().fit(*blobs, checkpoint=lm.Checkpoint(tmp_path / "a", best="val_loss"), **QUIET)
    for options, text in {
        "keep": ({"keep": 0}, "keep wants a whole number >= 1, got 0"),
        "steps": ({"every_steps": 2.0}, "every_steps wants a whole number >= 1 or None, got 2.0"),
        "seconds": ({"every_seconds": -1}, "every_seconds wants a number >= 0 or None"),
        "best": ({"best": ("loss", "low")}, 'best wants a metric, "val_loss" or'),
    }.values():
        with pytest.raises(ValueError, match=text):
            lm.Checkpoint("runs/a", **options)
    with pytest.raises(ValueError, match="on a file system that every process sees, got 'gs://bucket/a'"):
        lm.Checkpoint("gs://bucket/a")
    with pytest.raises(
        ValueError, match="is a folder; wanted a .h5 or .safetensors file, or a folder that fit.* saved in$"
    ):
        lm.load(tmp_path)
    sequential().fit(*blobs, checkpoint=tmp_path / "b", **QUIET)
    with pytest.raises(ValueError, match=r"'.*/b/step_7' is a folder; wanted .* has saved in: '.*/b', with step=7$"):
        lm.load(tmp_path / "b" / "step_7")
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="step=3 is for a folder of checkpoints"):
        lm.load(tmp_path / "m.h5", step=3)


def changed(folder, to, change):
    """A copy whose record is another one, with digests to match: what someone who means harm would write."""
    from llmasos_xla.training.checkpoint_folder import digests

    shutil.copytree(folder, to)
    path = to / "step_14"
    content = json.loads((path / "record.json").read_text())
    text = change(content)
    (path / "record.json").write_text(json.dumps(content) if text is None else text)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = digests(path, manifest["files"])
    (path / "manifest.json").write_text(json.dumps(manifest))
    return to


CHANGES = [
    (lambda c: "[" * 100_000, "record.json' is damaged"),
    (lambda c: "[]", "holds no JSON object"),
    (lambda c: c.update(format="llmasos_xla/checkpoint/9"), "is of format 'llmasos_xla/checkpoint/9'.*upgrade"),
    (lambda c: c.update(record=[]), "is damaged: no record"),
    (lambda c: c.update(empty={"x": 1}), "step_14' is damaged"),
    (lambda c: c.update(empty={"params/dense/kernel": [[4, 3], "float32"]}), "dense/kernel is said to be empty"),
    (lambda c: c["record"].update(model=None), "the model's specification"),
    (lambda c: c["record"].__delitem__("model"), "the specification has no model"),
    (lambda c: c["record"]["model"]["layers"][0].update({"class": "os.system"}), "unknown layer 'os.system'"),
    (lambda c: c["record"]["model"]["layers"][0].update(units=1 << 40), "has shape|wants|too"),
    (lambda c: c["record"]["door"].update(door="__import__"), "is not one of Sequential, Model"),
    (lambda c: c["record"]["recipe"].update(loss="eval"), "unknown loss 'eval'"),
    (lambda c: c["record"].update(seed="x"), "the specification is damaged: seed"),
    (lambda c: c["record"].update(unfinished={"epoch": "x"}), "the record of the interrupted fit is damaged"),
]


@pytest.fixture(scope="module")
def trained(blobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    model = lm.Sequential([lm.layers.Dense(3, activation="softmax", input_shape=(4,))])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(*blobs, epochs=2, checkpoint=folder, **QUIET)
    return folder


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_hostile_records_are_refused(trained, tmp_path, number):
    change, text = CHANGES[number]
    with pytest.raises(ValueError, match=text):
        lm.load(changed(trained, tmp_path / "changed", change))


def test_a_step_that_went_wrong_is_not_saved(sequential, blobs, tmp_path):
    often = lm.Checkpoint(tmp_path, every_seconds=0)
    model = sequential(optimizer=lm.Optimizer("sgd", lr=1e30))
    with pytest.raises(FloatingPointError, match="step 1"):
        model.fit(*blobs, epochs=2, checkpoint=often, steps_per_dispatch=1, **QUIET)
    assert [entry.step for entry in entries(tmp_path)] == [1]
    assert int(lm.load(tmp_path).learner.unfinished.position.totals.bad_step) == -1
