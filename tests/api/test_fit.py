"""Fitting through the front doors: laws of order, seeds, resuming, padding and callbacks."""

import csv
import os
import signal
import threading

import chex
import jax
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.training import evaluation, loop
from llmasos_xla.training.diagnose import NonFiniteLossError

QUIET = {"verbose": 0, "batch_size": 16}


def test_loss_falls_and_history_tells(sequential, blobs):
    model = sequential(optimizer=lm.Optimizer("adam", lr=0.02))
    history = model.fit(*blobs, epochs=8, **QUIET)
    losses = history.history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert history.history["accuracy"][-1] > 0.6
    assert history.epoch == list(range(8))
    assert [r.what.split(" x")[0] for r in history.compiled].count("train step") == 1
    assert "samples/s" in str(history)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(sequential, blobs):
    a, b, c = sequential(1), sequential(1), sequential(2)
    for model in (a, b, c):
        model.fit(*blobs, epochs=2, **QUIET)
    chex.assert_trees_all_equal(a.variables, b.variables)
    assert not np.array_equal(a.variables.params["dense/kernel"], c.variables.params["dense/kernel"])


def test_both_doors_give_the_same_weights(sequential, blobs):
    first = sequential(3)
    first.fit(*blobs, epochs=2, **QUIET)
    second = lm.Model(input_dim=4, output_dim=3, seed=3)
    second.add_layer("Dense", 8, activation="relu")
    second.add_layer("BatchNormalization")
    second.add_layer("dropout", 0.1)
    second.add_layer("Dense", 3, activation="softmax")
    second.train(lm.Dataset(blobs), lm.Optimizer("Adam", lr=0.001), epochs=2, **QUIET)
    chex.assert_trees_all_equal(first.variables, second.variables)
    assert first.evaluate(*blobs, verbose=0) == second.evaluate(lm.Dataset(blobs), verbose=0)


NAMES = np.array(["ant", "cat", "dog"])


def by_name(units, head):
    model = lm.Model(4, units)
    model.add_layer("Dense", units, activation=head)
    return model


@pytest.mark.parametrize("loss", [None, "sparse_categorical_crossentropy"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_text_labels_are_learnt_as_their_ids(blobs, loss, shape):
    x, y = blobs
    ids, names = by_name(3, "softmax"), by_name(3, "softmax")
    a = ids.train((x, y), loss=loss, **QUIET).history
    b = names.train((x, NAMES[y].reshape(shape).tolist()), loss=loss, **QUIET).history
    assert a == b
    chex.assert_trees_all_equal(ids.variables, names.variables)
    assert names.learner.preprocessing.label_names == tuple(NAMES)


@pytest.mark.parametrize(("units", "head"), [(1, "sigmoid"), (2, "softmax")])
def test_yes_and_no_are_learnt_as_1_and_0(blobs, units, head):
    x, y = blobs[0], blobs[1] % 2
    ids, names = by_name(units, head), by_name(units, head)
    a = ids.fit(x, y, **QUIET).history
    b = names.fit(x, np.array(["no", "yes"])[y], **QUIET).history
    assert a == b
    assert set(a) == {"loss", "accuracy"}


@pytest.mark.parametrize("options", [{}, {"categories": ["label"]}])
def test_a_table_with_text_labels_or_categories_trains(blobs, tmp_path, options):
    x, y = blobs
    labels = y + 2 if options else NAMES[y]
    lines = [",".join(map(str, (*row, label))) for row, label in zip(x, labels, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,d,label", *lines]))
    model = by_name(3, "softmax")
    history = model.train(lm.Dataset(str(tmp_path / "t.csv"), **options), epochs=5, **QUIET).history
    assert history["accuracy"][-1] > history["accuracy"][0]


def test_labels_shaped_as_the_outputs_are_shares_and_others_classes(blobs):
    x, y = blobs
    for labels, loss in (
        (y, "sparse_categorical_crossentropy"),
        (y[:, None], "sparse_categorical_crossentropy"),
        (np.eye(3)[y], "categorical_crossentropy"),
    ):
        model = by_name(3, "softmax")
        model.train((x, labels), **QUIET)
        assert model.learner.recipe.loss.name == loss
    steps = lm.Model((5, 4), 3)
    steps.add_layer("Dense", 3, activation="softmax")
    steps.train((np.ones((6, 5, 4), np.float32), np.zeros((6, 5), int)), **QUIET)
    assert steps.learner.recipe.loss.name == "sparse_categorical_crossentropy"


@pytest.mark.thorough
def test_disable_jit_learns_the_same_step_by_step(sequential, blobs):
    def confidence(outputs, y):
        seen.append(float(outputs.max()))
        return outputs.max(axis=-1)

    seen = []
    compiled, eager = sequential(), sequential()
    request = {"epochs": 1, "steps_per_dispatch": 3, "validation_data": blobs, **QUIET}
    history = compiled.fit(*blobs, **request).history
    eager.compile("adam", "sparse_categorical_crossentropy", ["accuracy", confidence])
    with jax.disable_jit():
        run = eager.fit(*blobs, **request)
        p, logs = eager.predict(blobs[0]), eager.evaluate(*blobs, verbose=0)
        compiled.predict(blobs[0])
    # The metric read numbers, in training as in evaluation.
    assert len(seen) > 7
    assert not run.compiled
    chex.assert_trees_all_close(eager.variables, compiled.variables, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run.history["val_loss"], history["val_loss"], rtol=1e-4)
    np.testing.assert_allclose(p, eager.predict(blobs[0]), rtol=1e-4, atol=1e-6)
    assert logs["loss"] == pytest.approx(run.history["val_loss"][0], rel=1e-4)


def test_two_fits_equal_one(sequential, blobs):
    once, twice = sequential(), sequential()
    once.fit(*blobs, epochs=4, **QUIET)
    twice.fit(*blobs, epochs=1, **QUIET)
    twice.fit(*blobs, epochs=3, **QUIET)
    chex.assert_trees_all_equal(once.variables, twice.variables)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_per_dispatch_do_not_change_what_is_learnt(sequential, blobs, steps):
    many, few = sequential(), sequential()
    many.fit(*blobs, epochs=2, **QUIET)
    few.fit(*blobs, epochs=2, steps_per_dispatch=steps, **QUIET)
    chex.assert_trees_all_close(many.variables, few.variables, rtol=1e-4, atol=1e-5)


@pytest.fixture
def interrupted_at(monkeypatch):
    """Sends the process Ctrl-C's signal when the fit takes its n-th group of batches."""

    def arm(number):
        taken = iter(range(1, 1000))

        def arrays_of(group):
            if next(taken) == number:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluation.arrays_of(group)

        monkeypatch.setattr(loop, "arrays_of", arrays_of)

    return arm


# An epoch is four dispatches; the first group is only looked at for its shapes.
@pytest.mark.parametrize("group", [2, 5, 7, 9, 13], ids=["first", "epoch's last", "middle", "next's last", "very last"])
def test_an_interrupted_fit_goes_on_bit_for_bit(sequential, blobs, tmp_path, interrupted_at, group):
    request = {"epochs": 3, "steps_per_dispatch": 2, "validation_data": blobs, **QUIET}
    undisturbed, stopped = sequential(), sequential()
    whole = undisturbed.fit(*blobs, **request)
    interrupted_at(group)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(*blobs, **request)
    assert stopped.learner.unfinished.position.totals is not None
    stopped.save(tmp_path / "halfway.h5")
    elsewhere = lm.load(tmp_path / "halfway.h5")
    for model in (stopped, elsewhere):
        rest = model.fit(*blobs, **request)
        chex.assert_trees_all_equal(model.variables, undisturbed.variables)
        assert rest.history == whole.history
        assert rest.epoch == whole.epoch
        assert (model.learner.unfinished, model.learner.epochs_done) == (None, 3)


def test_a_fit_interrupted_in_its_validation_goes_on_with_that(sequential, blobs, monkeypatch):
    request = {"epochs": 2, "validation_data": blobs, **QUIET}
    undisturbed, stopped = sequential(), sequential()
    whole = undisturbed.fit(*blobs, **request)

    def second_ctrl_c(group):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "arrays_of", second_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(*blobs, **request)
    assert stopped.fit(*blobs, **request).history == whole.history
    chex.assert_trees_all_equal(stopped.variables, undisturbed.variables)


def test_another_request_starts_a_fit_of_its_own(sequential, blobs, interrupted_at):
    model = sequential()
    interrupted_at(4)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*blobs, epochs=3, steps_per_dispatch=2, **QUIET)
    assert len(model.fit(*blobs, epochs=1, steps_per_dispatch=2, **QUIET).epoch) == 1


def test_an_error_in_a_callback_keeps_the_weights(sequential, blobs):
    model = sequential()

    def broken(event):
        if event.epoch == 1:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        model.fit(*blobs, epochs=3, callbacks=[broken], **QUIET)
    chex.assert_tree_all_finite(model.variables)
    reference = sequential()
    reference.fit(*blobs, epochs=2, **QUIET)
    chex.assert_trees_all_equal(model.variables, reference.variables)


def test_a_reference_to_old_weights_stays_alive(sequential, blobs):
    model = sequential()
    before = model.variables
    copy = jax.tree.map(np.array, before)
    model.fit(*blobs, epochs=1, **QUIET)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, before), copy)


def test_ragged_ends_compile_nothing_new(sequential, blobs):
    model = sequential()
    x, y = blobs
    history = model.fit(x, y, validation_data=(x[:37], y[:37]), epochs=2, **QUIET)
    assert sorted(r.what.split(" x")[0] for r in history.compiled) == ["evaluation", "initial weights", "train step"]
    model.evaluate(x[:37], y[:37], verbose=0)
    assert sum(r.what == "evaluation" for r in model.learner.compiled) == 1


def test_a_second_fit_compiles_no_train_step_unless_something_changed(sequential, blobs):
    def steps(model, x, y, **options):
        history = model.fit(x, y, epochs=1, verbose=0, **{"batch_size": 16, **options})
        return sum(r.what.startswith("train step") for r in history.compiled)

    model, (x, y) = sequential(4), blobs
    assert steps(model, x, y) == 1
    assert steps(model, x, y) == 0
    assert steps(model, x, y, batch_size=8) == 1
    assert steps(model, x, y, class_weight={0: 2.0}) == 1
    assert steps(model, x, y, steps_per_dispatch=1) == 1
    assert steps(model, x, y, batch_size=8) == 0
    model.compile(optimizer=lm.Optimizer("adam", lr=0.0), loss="sparse_categorical_crossentropy")
    before = jax.tree.map(np.array, model.variables.params)
    assert steps(model, x, y) == 1
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, model.variables.params), before)


def test_evaluate_is_the_mean_over_rows_whatever_the_batches(sequential, blobs):
    model = sequential()
    model.fit(*blobs, epochs=1, **QUIET)
    x, y = blobs
    p = model.predict(x).astype(np.float64)
    expected = {"loss": -np.log(p[np.arange(len(y)), y]).mean(), "accuracy": (p.argmax(1) == y).mean()}
    for size in (None, 10, 101):
        assert model.evaluate(x, y, batch_size=size, verbose=0) == pytest.approx(expected, rel=1e-4)


def test_validation_split_takes_the_last_rows(sequential, blobs):
    x, y = blobs
    split, given = sequential(), sequential()
    a = split.fit(x, y, validation_split=0.2, epochs=2, **QUIET).history
    b = given.fit(x[:81], y[:81], validation_data=(x[81:], y[81:]), epochs=2, **QUIET).history
    assert a == b
    assert set(a) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_sample_weight_zero_leaves_a_row_out_of_the_loss(sequential, blobs):
    x, y = blobs
    weight = np.ones(len(x), np.float32)
    weight[::2] = 0.0
    wrong = np.where(weight > 0, y, (y + 1) % 3).astype(np.int32)
    a, b = sequential(), sequential()
    a.fit(x, y, sample_weight=weight, epochs=2, **QUIET)
    b.fit(x, wrong, sample_weight=weight, epochs=2, **QUIET)
    chex.assert_trees_all_equal(a.variables, b.variables)


def test_averaged_weights_are_what_predicts(sequential, blobs):
    model = sequential(optimizer=lm.Optimizer("adam", lr=0.05, ema=0.9))
    model.fit(*blobs, epochs=2, **QUIET)
    averaged = model.predict(blobs[0])
    average = model.learner.evaluation_variables
    assert not np.array_equal(average.params["dense/kernel"], model.variables.params["dense/kernel"])
    model.variables = average
    np.testing.assert_array_equal(model.predict(blobs[0]), averaged)


def test_a_loss_that_is_not_finite_names_step_and_layer(blobs):
    x, y = blobs
    model = lm.Sequential(
        [
            lm.layers.Dense(8, input_shape=(4,), name="first"),
            lm.layers.Activation("exponential", name="blows_up"),
            lm.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(
        NonFiniteLossError, match=r"not finite at step 0 \(epoch 1\).*output of layer 'blows_up'.*learning rate"
    ):
        model.fit(np.full_like(x, 1e4), y, epochs=1, **QUIET)
    chex.assert_tree_all_finite(model.variables)


def test_early_stopping_and_best_checkpoint(sequential, blobs, tmp_path):
    scripted = iter([3.0, 2.0, 2.5, 2.6, 9.0, 9.0])

    def metric_of_the_epoch(event):
        if event.kind == "epoch":
            event.logs["score"] = next(scripted)

    model = sequential()
    at_epoch = {}
    remember = lambda e: at_epoch.update({e.epoch: jax.tree.map(np.array, e.model.variables)})  # noqa: E731
    history = model.fit(
        *blobs,
        epochs=6,
        callbacks=[
            metric_of_the_epoch,
            remember,
            lm.callbacks.best_checkpoint(tmp_path / "best.h5", monitor="score"),
            lm.callbacks.csv_log(tmp_path / "log.csv"),
            lm.callbacks.tensorboard(tmp_path / "board"),
            lm.callbacks.early_stopping("score", patience=2, restore_best=True),
        ],
        **QUIET,
    )
    assert history.epoch == [0, 1, 2, 3]
    chex.assert_trees_all_equal(jax.tree.map(np.array, model.variables), at_epoch[1])
    chex.assert_trees_all_equal(jax.tree.map(np.array, lm.load(tmp_path / "best.h5").variables), at_epoch[1])
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["score"]) for r in rows] == [3.0, 2.0, 2.5, 2.6]
    assert [float(r["loss"]) for r in rows] == history.history["loss"]
    assert any((tmp_path / "board").iterdir())


def test_history_plots(sequential, blobs):
    history = sequential().fit(*blobs, epochs=2, validation_split=0.2, **QUIET)
    figure = history.plot()
    assert [a.get_ylabel() for a in figure.axes] == ["loss", "accuracy"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), history.history["loss"])


def test_lines_where_there_is_no_terminal(sequential, blobs, capsys):
    model = sequential()
    model.fit(*blobs, epochs=2, batch_size=16)
    model.evaluate(*blobs)
    out = capsys.readouterr().out
    assert "compiled train step in" in out
    assert "Epoch 2/2" in out
    assert "accuracy" in out
    assert "evaluate" in out


def test_summary(sequential, blobs, capsys):
    model = sequential()
    model.fit(*blobs, epochs=1, **QUIET)
    model.summary()
    out = capsys.readouterr().out
    assert "dense (Dense)" in out
    assert "(batch, 8)" in out
    assert "83 parameters, 16 values carried" in out


def test_bfloat16_learns(sequential, blobs):
    model = sequential(precision="bfloat16")
    history = model.fit(*blobs, epochs=6, **QUIET)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert {str(a.dtype) for a in jax.tree.leaves(model.variables)} == {"float32"}
    assert model.predict(blobs[0]).dtype == np.float32


def test_class_weights_leave_the_validation_loss_alone(sequential, blobs):
    model = sequential()
    history = model.fit(*blobs, class_weight={0: 5.0, 1: 0.1}, validation_data=blobs, **QUIET).history
    assert history["val_loss"][-1] == model.evaluate(*blobs, verbose=0)["loss"]


def test_one_callback_needs_no_list(sequential, blobs):
    told = []
    sequential().fit(*blobs, callbacks=lambda event: told.append(event.kind), **QUIET)
    assert told == ["begin", "epoch", "end"]


def test_a_fit_within_a_fit_is_refused(sequential, blobs):
    def nested(event):
        event.model.fit(*blobs, **QUIET)

    with pytest.raises(RuntimeError, match="being fitted already"):
        sequential().fit(*blobs, callbacks=[nested], **QUIET)


def test_another_thread_is_told_that_the_weights_are_in_use(sequential, blobs):
    model, errors = sequential(), []

    def ask():
        try:
            model.predict(blobs[0])
        except RuntimeError as error:
            errors.append(str(error))

    def elsewhere(event):
        if event.kind == "epoch":
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

    model.fit(*blobs, callbacks=[elsewhere], **QUIET)
    assert errors == ["this model is being fitted in another thread; wait for that fit, or load a saved copy"]
    assert model.predict(blobs[0]).shape == (101, 3)


def test_ctrl_c_after_the_last_step_ends_the_script_and_not_the_fit(sequential, blobs):
    model = sequential()

    def late(event):
        if event.epoch == 1 and event.kind == "epoch":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        model.fit(*blobs, epochs=2, callbacks=[late], **QUIET)
    assert model.learner.epochs_done == 2
    assert model.learner.unfinished is None


def test_patience_counts_as_keras_does(sequential, blobs):
    for patience, last in ((0, 2), (1, 2), (2, 3)):
        scripted = iter([3.0, 2.0, 2.5, 2.6, 2.7])

        def score(event, scripted=scripted):
            if event.kind == "epoch":
                event.logs["score"] = next(scripted)

        stop = lm.callbacks.early_stopping("score", patience=patience)
        assert sequential().fit(*blobs, epochs=5, callbacks=[score, stop], **QUIET).epoch[-1] == last


def test_a_validation_of_one_class_is_told(sequential, blobs):
    x, y = blobs
    order = np.argsort(y, kind="stable")
    with pytest.warns(UserWarning, match="takes the last 20 rows, and all of them are of class 2; shuffle the data"):
        sequential().fit(x[order], y[order], validation_split=0.2, epochs=1, **QUIET)


def test_a_batch_larger_than_the_data_is_the_data(sequential, blobs):
    x, y = blobs
    a, b = sequential(), sequential()
    a.fit(x[:20], y[:20], epochs=2, batch_size=64, verbose=0)
    b.fit(x[:20], y[:20], epochs=2, batch_size=20, verbose=0)
    chex.assert_trees_all_equal(a.variables, b.variables)
