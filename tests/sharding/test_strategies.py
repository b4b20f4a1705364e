"""One model and one fit on 1 and on 8 devices: the same losses, gradients, weights and outputs."""

import functools
import weakref

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from repetitions import thorough_but
from sharding.conftest import problem

import llmasos_xla as lm
from llmasos_xla.sharding import MeshSpec

THREE = MeshSpec(data=2, fsdp=2, tensor=2)
# The quick run always; the rest of the products are thorough or slow tests.
QUICK = [
    *((kind, THREE) for kind in ("cnn", "mlp", "lstm")),
    ("lstm", MeshSpec(pipe=2, data=2, fsdp=2)),
    ("decoder", MeshSpec(seq=4, data=2)),
]
THOROUGH = [
    *(("cnn", shard) for shard in ("data", "fsdp", "tensor")),
    ("lstm", "tensor"),
    ("cnn", MeshSpec(pipe=2, data=2, tensor=2)),
    ("lstm", MeshSpec(data=2, seq=4)),
    ("decoder", MeshSpec(pipe=2)),
]
SLOW = [
    *(("mlp", shard) for shard in ("data", "fsdp", "tensor")),
    *(("lstm", shard) for shard in ("data", "fsdp")),
    # Gradients of both, over these axes, are always compared: test_model_parts.py.
    ("decoder", "fsdp"),
    ("mixture", MeshSpec(expert=4, data=2)),
    ("decoder", MeshSpec(pipe=2, tensor=2, seq=2)),
    ("decoder", MeshSpec(fsdp=2, tensor=2, seq=2)),
    *((kind, shard) for kind in ("decoder", "mixture") for shard in ("data", "tensor", THREE)),
    *((kind, "expert") for kind in ("mlp", "cnn", "lstm", "decoder")),
    *((kind, MeshSpec(pipe=2)) for kind in ("cnn", "lstm")),
    ("cnn", MeshSpec(pipe=4, data=2)),
    ("decoder", MeshSpec(pipe=4, data=2)),
    ("decoder", MeshSpec(pipe=2, fsdp=2, tensor=2)),
    ("decoder", MeshSpec(seq=8)),
    ("mixture", MeshSpec(expert=2, fsdp=2, tensor=2)),
    ("mixture", MeshSpec(expert=2, seq=2, data=2)),
]
CASES = [*thorough_but(QUICK, QUICK + THOROUGH), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
# Losses of twenty steps imply gradients; by themselves they are looked at for one model of each kind of layer.
GRADIENTS = [
    *(case for case in QUICK + THOROUGH if case[0] in ("mlp", "cnn")),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW if case[0] == "mlp"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in QUICK + THOROUGH + SLOW if case[0] not in ("mlp", "cnn")),
]
STEPS, BATCH = 20, 16


@functools.cache
def alone(kind):
    """What one device gives."""
    return trained(kind, None)


def trained(kind, shard):
    model, x, y = problem(kind, BATCH)
    # An epoch is a step here, so that the loss of each is seen.
    losses = model.fit(x, y, epochs=STEPS, batch_size=BATCH, verbose=0, shard=shard).history["loss"]
    return np.array(losses), model.evaluate(x[:11], y[:11], verbose=0)["loss"], model.predict(x[:13])


@pytest.mark.parametrize(("kind", "shard"), CASES, ids=str)
def test_twenty_steps_give_the_losses_of_one_device(kind, shard):
    losses, after, outputs = trained(kind, shard)
    np.testing.assert_allclose(losses, alone(kind)[0], atol=1e-5, rtol=0)
    assert abs(after - alone(kind)[1]) < 1e-5
    np.testing.assert_allclose(outputs, alone(kind)[2], atol=2e-5)


def test_time_divides_over_seq_or_the_error_says_how_to_pad():
    placement = lm.sharding.Placement(MeshSpec(seq=4), MeshSpec(seq=4).mesh())
    with pytest.raises(ValueError, match="its time of 7 steps, does not divide into seq=4 .* pad the rows to 8 steps"):
        placement.batch({"x": np.zeros((16, 7, 12)), "y": np.zeros(16)})


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "shard"), GRADIENTS, ids=str)
def test_gradients_agree(kind, shard):
    """A step of gradient descent at rate 1 leaves the gradients behind."""

    def gradients(shard):
        model, x, y = problem(kind, BATCH, lm.Optimizer("sgd", learning_rate=1.0))
        model.learner.build(x.shape[1:])
        before = {n: np.asarray(a) for n, a in model.variables.params.items()}
        model.fit(x, y, batch_size=BATCH, verbose=0, shard=shard)
        return {n: before[n] - np.asarray(a) for n, a in model.variables.params.items()}

    wanted, got = gradients(None), gradients(shard)
    for name in wanted:
        scale = max(1, np.abs(wanted[name]).max())
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-5 * scale, err_msg=name)


def test_auto_takes_what_the_plan_says():
    model, x, y = problem("mlp", 64)
    model.fit(x, y, batch_size=16, verbose=0, shard="auto")
    assert model.learner.placement.spec == lm.plan(problem_built("mlp"), batch_size=16, most=2).best.spec
    again, *_ = problem("mlp", 64)
    assert len(again.fit(x, y, batch_size="auto", verbose=0, epochs=2).history["loss"]) == 2
    with pytest.raises(ValueError, match="unknown strategy 'fdsp'"):
        again.fit(x, y, batch_size="auto", shard="fdsp", verbose=0)
    with pytest.raises(ValueError, match="batch_size wants a whole number"):
        again.fit(x, y, batch_size="large", verbose=0)


def problem_built(kind):
    return problem(kind, 16)[0]


def test_a_fit_holds_one_copy_of_the_state():
    """The arrays that a fit began with are gone once it runs, unless somebody else holds them."""
    model, x, y = problem("mlp", 32)
    model.learner.build((20,))
    first = weakref.ref(model.learner._state.params["dense/kernel"])
    gone = []
    model.fit(x, y, verbose=0, callbacks=[lambda event: gone.append((a := first()) is None or a.is_deleted())])
    assert gone[-1]
    held = model.variables.params["dense/kernel"]
    model.fit(x, y, verbose=0)
    assert np.isfinite(np.asarray(held)).all()


def test_weights_are_made_where_they_lie():
    model, x, y = problem("mlp", BATCH)
    model.fit(x, y, batch_size=BATCH, verbose=0, shard="fsdp")
    kernel = model.variables.params["dense_1/kernel"]
    assert kernel.shape == (64, 64)
    assert {s.data.shape for s in kernel.addressable_shards} == {(8, 64)}
    mu = jax.tree.leaves(model.learner.training_state.optimizer[0].mu["dense_1/kernel"])[0]
    assert mu.sharding.is_equivalent_to(kernel.sharding, 2)
    whole, *_ = problem("mlp", BATCH)
    whole.learner.build((20,))
    placed, *_ = problem("mlp", BATCH)
    placed.learner.shard("fsdp")
    placed.learner.build((20,))
    for name, a in whole.variables.params.items():
        assert np.array_equal(np.asarray(a), np.asarray(placed.variables.params[name])), name


def test_a_fit_goes_on_elsewhere():
    """Two epochs on one device, then on eight in another way, as four on one."""
    rows = 4 * BATCH
    stay, x, y = problem("cnn", rows)
    stay.fit(x, y, epochs=4, batch_size=BATCH, verbose=0)
    move, *_ = problem("cnn", rows)
    for shard in (None, "fsdp", MeshSpec(data=2, tensor=2), MeshSpec()):
        move.fit(x, y, epochs=1, batch_size=BATCH, verbose=0, shard=shard)
    assert move.learner.placement is None
    np.testing.assert_allclose(move.predict(x), stay.predict(x), atol=2e-5)


def test_predict_is_divided_too():
    model, x, y = problem("cnn", 13)
    wanted = model.predict(x)
    np.testing.assert_allclose(model.predict(x, shard="tensor"), wanted, atol=1e-6)
    assert model.learner.placement.spec == MeshSpec(tensor=8)
    alone = problem("cnn", 13)[0].evaluate(x, y, verbose=0)
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0)["loss"], alone["loss"], rtol=1e-5)


def test_saved_from_a_mesh_loads_on_one_device(tmp_path):
    model, x, y = problem("cnn", 2 * BATCH)
    model.fit(x, y, batch_size=BATCH, verbose=0, shard=MeshSpec(fsdp=4, tensor=2))
    model.save(tmp_path / "m.h5")
    again = lm.load(tmp_path / "m.h5")
    for name, a in model.variables.params.items():
        assert np.array_equal(np.asarray(a), np.asarray(again.variables.params[name])), name
    again.fit(x, y, batch_size=BATCH, verbose=0)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(again.predict(x), model.predict(x), atol=2e-5)


def test_batches_that_do_not_divide():
    model, x, y = problem("mlp", 30)
    with pytest.raises(ValueError, match="a batch of 12 rows does not divide into 8 parts"):
        model.fit(x, y, batch_size=12, verbose=0, shard="data")


def test_fewer_rows_than_a_batch_are_filled_with_rows_of_no_weight():
    def fitted(**options):
        model = lm.Sequential([lm.layers.Dense(16, activation="relu", input_shape=(12,)), lm.layers.Dense(3)])
        model.compile("adam", "sparse_categorical_crossentropy")
        return model.fit(x, y, batch_size=32, epochs=5, verbose=0, **options).history["loss"]

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 12)).astype(np.float32), rng.integers(0, 3, 30)
    np.testing.assert_allclose(fitted(shard=MeshSpec(data=8)), fitted(), rtol=1e-5)


def test_a_loss_that_is_not_finite_is_told_on_a_mesh():
    model, x, y = problem("mlp", 2 * BATCH)
    x[20, 3] = np.nan
    with pytest.raises((FloatingPointError, ValueError), match="NaN|not finite"):
        model.fit(lm.Dataset((x, y), normalize=None), batch_size=BATCH, verbose=0, shard="fsdp")


def test_bfloat16_gathers_half_the_bytes_and_learns():
    model, x, y = problem("mlp", 4 * BATCH)
    model.compile("adam", precision="bfloat16")
    losses = model.fit(x, y, epochs=3, batch_size=BATCH, verbose=0, shard="fsdp").history["loss"]
    alone, *_ = problem("mlp", 4 * BATCH)
    alone.compile("adam", precision="bfloat16")
    np.testing.assert_allclose(
        losses, alone.fit(x, y, epochs=3, batch_size=BATCH, verbose=0).history["loss"], rtol=2e-2
    )


def test_layouts_that_do_not_fit_the_model_are_refused():
    model, x, y = problem("mlp", 16)
    with pytest.raises(
        ValueError, match=r"shard: seq=8 divides the time of samples; this model's have the shape \(\d+,\)"
    ):
        model.fit(x, y, batch_size=16, verbose=0, shard="seq")
    with pytest.raises(ValueError, match=r"shard: the rule 'zzz\$' names no array of this model; it has dense"):
        model.fit(x, y, batch_size=16, verbose=0, shard=MeshSpec(data=8, rules=(("zzz$", PartitionSpec()),)))
    model.fit(x, y, batch_size=16, verbose=0, shard="data")
    # What a model carries has names too.
    model, x, y = problem("cnn", 16)
    model.fit(x, y, batch_size=16, verbose=0, shard=MeshSpec(data=8, rules=(("/mean$", PartitionSpec()),)))
