"""Fine-tuning: what is frozen stays bit for bit, adapters are products beside kernels and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pretrained_toy import ToyConfig
from safetensors.numpy import load_file, save_file

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.models.layers._base import LAYERS
from llmasos_xla.models.lora import LoRA
from llmasos_xla.training.tuning import layers_behind

IDS = np.random.default_rng(0).integers(0, 64, (48, 6))
Y = (IDS[:, 0] % 3).astype(np.int32)
QUERY = "toy/query/kernel"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(LAYERS, "ToyConfig", ToyConfig)


def network(seed=0, **optimizer):
    model = Network(ToyConfig(), seed=seed)
    model.compile(lm.Optimizer(**{"name": "adamw", "lr": 0.01, **optimizer}), metrics=["accuracy"])
    return model


def fit(model, epochs=2, **options):
    return model.fit(IDS, Y, epochs=epochs, batch_size=16, verbose=0, **options)


def copied(model):
    return jax.tree.map(np.array, model.variables)


def changed(before, after):
    pairs = {**before.params, **before.state}, {**after.params, **after.state}
    assert pairs[0].keys() == pairs[1].keys()
    return {n for n, a in pairs[0].items() if a.tobytes() != np.asarray(pairs[1][n]).tobytes()}


@pytest.mark.parametrize(
    "optimizer", [{}, {"ema": 0.9, "weight_decay": 0.1, "accumulate": 2}, {"name": "sgd"}], ids=str
)
def test_frozen_arrays_stay_bit_for_bit(optimizer):
    model = network(**optimizer)
    params = dict(model.variables.params)
    # What adding zero would change.
    params["toy/embeddings"] = params["toy/embeddings"].at[0, 0].set(-0.0)
    model.variables = model.variables._replace(params=params)
    before = copied(model)
    model.freeze("embeddings|query")
    assert model.trained == ("toy/classifier/bias", "toy/classifier/kernel")
    fit(model, epochs=4)
    assert changed(before, model.variables) == {"toy/classifier/kernel", "toy/classifier/bias"}
    assert changed(before, model.learner.evaluation_variables) == {"toy/classifier/kernel", "toy/classifier/bias"}
    state = jax.tree_util.tree_leaves_with_path(model.learner.training_state.optimizer)
    assert not any("embeddings" in jax.tree_util.keystr(path) for path, _ in state)
    model.unfreeze()
    fit(model)
    assert {"toy/embeddings", QUERY} <= changed(before, model.variables)


def test_freezing_is_stopping_the_gradient():
    model, by_hand = network(name="sgd"), network(name="sgd")
    model.freeze("embeddings")
    zero = optax.multi_transform(
        {"sgd": optax.sgd(0.01), "zero": optax.set_to_zero()},
        lambda params: {n: "zero" if "embeddings" in n else "sgd" for n in params},
    )
    by_hand.compile(zero)
    fit(model)
    fit(by_hand)
    jax.tree.map(np.testing.assert_array_equal, model.variables, by_hand.variables)


def test_what_is_frozen_is_saved_and_gone_on_with(tmp_path):
    whole, model = network(), network()
    for each in (whole, model):
        each.freeze("embeddings")
        each.freeze("bias")
        fit(each, epochs=1)
    model.save(tmp_path / "model.safetensors")
    loaded = lm.load(tmp_path / "model.safetensors")
    assert loaded.trained == model.trained == ("toy/classifier/kernel", QUERY)
    for each in (whole, loaded):
        fit(each, epochs=1)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, whole.variables)
    with pytest.raises(ValueError, match="tuning: there"):
        fit(network(), checkpoint=_checkpoint(whole, tmp_path / "folder"), resume=True)


def _checkpoint(model, folder):
    fit(model, epochs=1, checkpoint=folder)
    return folder


def test_patterns_that_make_no_sense_are_refused(unchecked):
    model = network()
    with pytest.raises(ValueError, match=r"no array's name matches 'embedings'; there are toy/classifier/bias"):
        model.freeze("embedings")
    with pytest.raises(ValueError, match="freezes all arrays"):
        model.freeze(".")
    with pytest.raises(ValueError, match="wants a regular expression"):
        model.freeze("(")
    for call, text in (
        (
            lambda: model.add_lora(where="nothing"),
            "no array's name matches 'nothing'; kernels are toy/classifier/kernel",
        ),
        (lambda: model.add_lora(where="bias"), "is no kernel"),
        (lambda: model.add_lora(rank=0, where="query"), "rank wants a whole number"),
        (lambda: model.add_lora(rank=40, where="query"), "rank 40 is more than toy/query/kernel"),
        (lambda: model.add_lora(alpha=0, where="query"), "alpha wants a number"),
        (model.merge_lora, "has no adapters"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    model.add_lora(where="query")
    with pytest.raises(ValueError, match="has adapters already"):
        model.add_lora(where="query")
    with pytest.raises(ValueError, match="has adapters already"):
        model.new_head(classes=5)
    with pytest.raises(ValueError, match="beside other weights"):
        model.read({})


@pytest.mark.parametrize("where", ["query/kernel", "kernel|embeddings"])
def test_adapters(where, tmp_path):
    model = network()
    base, first = copied(model), np.asarray(model(IDS))
    model.add_lora(rank=3, alpha=6, where=where)
    # `up` is zero: the model is what it was.
    np.testing.assert_array_equal(model(IDS), first)
    assert set(model.trained) == {n for n in model.variables.params if n.startswith("lora/")}
    assert model.variables.params[f"lora/{QUERY}/down"].shape == (2, 32, 3)
    assert model.variables.params[f"lora/{QUERY}/up"].shape == (2, 3, 32)
    history = fit(model, epochs=6)
    assert history.history["loss"][-1] < history.history["loss"][0]
    after = copied(model)
    assert {n: a.tobytes() for n, a in base.params.items()} == {n: after.params[n].tobytes() for n in base.params}
    tuned = np.asarray(model(IDS))
    assert np.abs(tuned - first).max() > 1e-2

    # By hand.
    down, up = (after.params[f"lora/{QUERY}/{part}"] for part in ("down", "up"))
    kernel = base.params[QUERY] + 2.0 * np.einsum("lcr,lro->lco", down, up).reshape(base.params[QUERY].shape)
    np.testing.assert_allclose(model.plain_variables.params[QUERY], kernel, rtol=1e-5, atol=1e-6)

    model.save(tmp_path / "whole.safetensors")
    np.testing.assert_array_equal(lm.load(tmp_path / "whole.safetensors")(IDS), tuned)
    model.save_lora(tmp_path / "adapters.safetensors")
    assert set(load_file(tmp_path / "adapters.safetensors")) == set(model.trained)
    other = network()
    other.load_lora(tmp_path / "adapters.safetensors")
    np.testing.assert_array_equal(other(IDS), tuned)

    adapters = model.merge_lora()
    assert model.variables.params.keys() == base.params.keys()
    np.testing.assert_allclose(model(IDS), tuned, rtol=1e-5, atol=1e-5)
    assert set(model.trained) == set(base.params)
    model.unmerge_lora(adapters)
    np.testing.assert_allclose(model(IDS), tuned, rtol=1e-5, atol=1e-5)
    for name, array in base.params.items():
        np.testing.assert_allclose(model.variables.params[name], array, rtol=1e-5, atol=1e-5)
    # The same again with other numbers: nothing compiled for the first is used.
    model.merge_lora()
    model.add_adapters(adapters._replace(lora=LoRA(3, 3.0, where)))
    assert np.abs(np.asarray(model(IDS)) - tuned).max() > 1e-3


@pytest.mark.parametrize("shard", ["data", "fsdp", lm.MeshSpec(fsdp=2, tensor=2, data=2)], ids=str)
def test_adapters_on_a_mesh_are_those_of_one_device(shard):
    one, many = network(name="sgd"), network(name="sgd")
    for model, where in ((one, None), (many, shard)):
        model.add_lora(rank=4, where="query", also="classifier")
        fit(model, shard=where)
    for name, array in one.variables.params.items():
        np.testing.assert_allclose(jax.device_get(many.variables.params[name]), array, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(many(IDS[:3]), one(IDS[:3]), rtol=1e-4, atol=1e-5)


def test_stages_leave_what_is_frozen_alone():
    def stack():
        model = lm.Sequential([lm.layers.Dense(8, input_shape=(6,)), *[lm.layers.Dense(8) for _ in range(3)]])
        model.compile(lm.Optimizer("adam", 0.01), "mean_squared_error")
        return model

    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    y = np.ones((16, 8), np.float32)
    one, many = stack(), stack()
    before = copied(one)
    for model, shard in ((one, None), (many, lm.MeshSpec(pipe=2))):
        model.freeze("dense_1/|bias")
        model.fit(x, y, epochs=2, batch_size=8, verbose=0, shard=shard)
        kernels = {"dense/kernel", "dense_2/kernel", "dense_3/kernel"}
        assert changed(before, jax.device_get(model.variables)) == kernels
    for name, array in one.variables.params.items():
        np.testing.assert_allclose(jax.device_get(many.variables.params[name]), array, rtol=1e-4, atol=1e-6)
    one.add_lora(2, where="dense_2/kernel")
    with pytest.raises(ValueError, match=r"a pipeline takes no adapters; call model.merge_lora\(\) first"):
        one.fit(x, y, shard=lm.MeshSpec(pipe=2), verbose=0)


def test_plans_know_what_is_trained():
    def optimizer(model):
        best = lm.plan(model, batch_size=8, topology="cpu:1", shard="data", time=6).best
        return best.memory.parts["optimizer"], best.memory.temporary

    whole, some = (Network(ToyConfig(vocab=4096)) for _ in range(2))
    some.freeze("embeddings")
    (all_bytes, all_values), (some_bytes, some_values) = optimizer(whole), optimizer(some)
    # Two moments of the embeddings, and no gradient.
    assert all_bytes - some_bytes == 2 * 4096 * 32 * 4
    assert some_values < all_values


def test_a_fit_of_adapters_goes_on_from_its_folder(tmp_path):
    whole, first, second = network(), network(), network()
    for model in (whole, first, second):
        model.add_lora(rank=2, where="query")
    fit(whole, epochs=3)
    fit(first, epochs=1, checkpoint=tmp_path / "fit")
    loaded = lm.load(tmp_path / "fit")
    np.testing.assert_array_equal(loaded(IDS), first(IDS))
    assert loaded.trained == first.trained
    fit(second, epochs=3, checkpoint=tmp_path / "fit", resume=True)
    jax.tree.map(np.testing.assert_array_equal, second.variables, whole.variables)


def test_what_is_trained_beside_adapters_is_in_their_file(tmp_path):
    model = network()
    model.add_lora(where="query", also="classifier/bias")
    fit(model)
    assert "toy/classifier/bias" in model.trained
    model.save_lora(tmp_path / "x.safetensors")
    other = network()
    other.load_lora(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(other(IDS), model(IDS))
    assert other.trained == model.trained
    save_file({"a": np.ones(3)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="holds no adapters"):
        network().load_lora(tmp_path / "y.safetensors")
    (tmp_path / "z.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged or cut off"):
        network().load_lora(tmp_path / "z.safetensors")
    narrow = Network(ToyConfig(width=16))
    with pytest.raises(ValueError, match="do not fit the model|does not fit the model"):
        narrow.load_lora(tmp_path / "x.safetensors")


def test_kernels_of_every_rank_have_adapters():
    model = lm.Sequential(
        [
            lm.layers.Conv2D(6, 3, padding="same", input_shape=(5, 5, 4)),
            lm.layers.Flatten(),
            lm.layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile(lm.Optimizer("adam", 0.01))
    x = np.random.default_rng(0).standard_normal((12, 5, 5, 4)).astype(np.float32)
    first = model.predict(x)
    model.add_lora(rank=2, where="kernel$")
    assert model.variables.params["lora/conv2d/kernel/down"].shape == (36, 2)
    np.testing.assert_array_equal(model.predict(x), first)
    before = copied(model)
    model.fit(x, np.arange(12) % 4, epochs=2, verbose=0)
    assert all(name.startswith("lora/") for name in changed(before, model.variables))
    tuned = model.predict(x)
    model.merge_lora()
    np.testing.assert_allclose(model.predict(x), tuned, rtol=1e-5, atol=1e-6)
    # Layers of a decoder have adapters of their own, each head's features among what comes out.
    shapes = LoRA(rank=2, where="kernel").shapes(
        {
            "decoder/attention/query/kernel": np.zeros((3, 8, 4, 5)),
            "decoder/attention/output/kernel": np.zeros((3, 4, 5, 8)),
            "blocks/0/experts/up/kernel": np.zeros((7, 8, 16)),
        }
    )
    assert shapes == {
        "lora/decoder/attention/query/kernel/down": (3, 8, 2),
        "lora/decoder/attention/query/kernel/up": (3, 2, 20),
        "lora/decoder/attention/output/kernel/down": (3, 20, 2),
        "lora/decoder/attention/output/kernel/up": (3, 2, 8),
        "lora/blocks/0/experts/up/kernel/down": (7, 8, 2),
        "lora/blocks/0/experts/up/kernel/up": (7, 2, 16),
    }


def test_rates_scale_updates(unchecked):
    plain, scaled = network(name="sgd"), network(name="sgd", rates={"embeddings": 0.25, "classifier": 0, "bias": 3})
    before = copied(plain)
    # One batch, so one update.
    for model in (plain, scaled):
        model.fit(IDS, Y, epochs=1, batch_size=48, verbose=0)
    for name, factor in (("embeddings", 0.25), ("classifier/kernel", 0), ("classifier/bias", 0), ("query/kernel", 1)):
        steps = [np.asarray(m.variables.params[f"toy/{name}"]) - before.params[f"toy/{name}"] for m in (plain, scaled)]
        np.testing.assert_allclose(steps[1], factor * steps[0], rtol=1e-3, atol=5e-7)
    with pytest.raises(ValueError, match="rates: no array's name matches 'nothing'"):
        fit(network(rates={"nothing": 2}))
    for bad in ({"x": -1}, {"(": 1}, [1], {3: 1}):
        with pytest.raises(ValueError, match="rates"):
            lm.Optimizer("adam", rates=bad)
    with pytest.raises(ValueError, match="layer_decay wants"):
        lm.Optimizer("adam", layer_decay=1.5)


def test_layers_behind_slow_down():
    optimizer = lm.Optimizer("sgd", 1.0, layer_decay=0.5, rates={"bias": 0.1})
    params = {
        "m/tokens/embeddings": jnp.ones((3, 2)),
        "m/blocks/0/kernel": jnp.ones((2, 2)),
        "m/blocks/1/kernel": jnp.ones((2, 2)),
        "m/blocks/1/bias": jnp.ones(2),
        "m/last_norm/scale": jnp.ones(2),
    }
    transformation = optimizer.build()
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert {n: float(-a.reshape(-1)[0]) for n, a in updates.items()} == pytest.approx(
        {
            "m/tokens/embeddings": 0.125,
            "m/blocks/0/kernel": 0.25,
            "m/blocks/1/kernel": 0.5,
            "m/blocks/1/bias": 0.05,
            "m/last_norm/scale": 1.0,
        }
    )
    stack = {
        "embedding/embeddings": jnp.ones((3, 2)),
        "decoder/mlp/up/kernel": jnp.ones((3, 2, 2)),
        "dense/kernel": jnp.ones((2, 3)),
    }
    for stacked in ((), ("decoder/",)):
        transformation = lm.Optimizer("sgd", 1.0, layer_decay=0.5).build(stacked)
        updates, _ = transformation.update(stack, transformation.init(stack), stack)
        np.testing.assert_allclose(-updates["decoder/mlp/up/kernel"][:, 0, 0], [0.125, 0.25, 0.5])
        np.testing.assert_allclose(-updates["embedding/embeddings"][0, 0], 0.0625)
    assert layers_behind(
        dict.fromkeys(("r/stem/kernel", "r/stage0_block1/kernel", "r/stage1_block0/kernel"), (3, 3))
    ) == {
        "r/stem/kernel": 3,
        "r/stage0_block1/kernel": 2,
        "r/stage1_block0/kernel": 1,
    }
    adapters = {"lora/b/blocks/0/query/kernel/up": (2, 3), "b/blocks/1/query/kernel": (3, 3), "b/head/kernel": (3, 3)}
    assert list(layers_behind(adapters).values()) == [2, 1, 0]
    for names, text in (
        (["dense/kernel"], "these tell none"),
        (["encoder/blocks/0/a", "decoder/blocks/0/a"], "several"),
    ):
        with pytest.raises(ValueError, match=text):
            layers_behind(dict.fromkeys(names, (3, 3)))
    again = lm.Optimizer.from_json(optimizer.to_json())
    assert repr(again) == repr(optimizer)


def test_a_new_head_keeps_the_body():
    model = network()
    fit(model)
    body = copied(model)
    assert set(model.new_head(classes=5)) == {"toy/classifier/kernel", "toy/classifier/bias"}
    assert model(IDS).shape == (48, 5)
    for name in ("toy/embeddings", QUERY):
        np.testing.assert_array_equal(model.variables.params[name], body.params[name])
    model.fit(IDS, Y + 2, epochs=1, verbose=0)
    with pytest.raises(ValueError, match="unknown size of ToyConfig 'clases'"):
        model.new_head(clases=3)
