"""Models that read a dict of arrays, through everything that a door does."""

import numpy as np
import optax
import pytest
from api.several import REGISTERED, TinyScan, TinyTagger

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.deployment.raw_input import to_tensors
from llmasos_xla.deployment.served import Served
from llmasos_xla.models.bert import BertConfig
from llmasos_xla.models.layers._base import LAYERS
from llmasos_xla.training.losses import IGNORED

pytestmark = pytest.mark.usefixtures("unchecked")

ROWS, TIME = 24, 6


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, layer in REGISTERED.items():
        monkeypatch.setitem(LAYERS, name, layer)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (ROWS, TIME))
    lengths = rng.integers(2, TIME + 1, ROWS)
    mask = (np.arange(TIME) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, ids, 0)
    return {"ids": ids, "attention_mask": mask}, (ids[:, 0] % 3).astype(np.int32)


def tagger(steps=False, seed=0, **options):
    model = Network(TinyTagger(steps=steps), seed=seed)
    model.compile(lm.Optimizer("adam", 0.02), "sparse_categorical_crossentropy", ["accuracy"], **options)
    return model


def test_a_dict_is_fitted_evaluated_predicted_and_saved(data, tmp_path):
    x, y = data
    model = tagger()
    history = model.fit(x, y, epochs=60, batch_size=8, validation_data=(x, y), verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    assert set(history.history) >= {"val_loss", "val_accuracy"}
    logs = model.evaluate(x, y, verbose=0)
    assert logs == model.evaluate(lm.Dataset(x, y), verbose=0)
    outputs = model.predict(x)
    assert logs["accuracy"] == pytest.approx((outputs.argmax(-1) == y).mean())
    np.testing.assert_array_equal(model.predict(lm.Dataset(x, y)), outputs)
    np.testing.assert_allclose(model(x["ids"], x["attention_mask"]), outputs, rtol=1e-5, atol=1e-6)

    model.save(tmp_path / "tagger.safetensors")
    loaded = lm.load(tmp_path / "tagger.safetensors")
    np.testing.assert_array_equal(loaded.predict(x), outputs)
    assert loaded.learner.preprocessing == model.learner.preprocessing
    loaded.fit(lm.Dataset(x, y), epochs=1, batch_size=8, verbose=0)


def test_pairs_of_dicts_are_prepared_as_arrays_are():
    x = {"images": np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1), "age": np.full((4, 1), 30.0, np.float32)}
    rows = [({name: a[i] for name, a in x.items()}, i) for i in range(4)]

    class Pairs:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return rows[i]

    found, expected = (lm.data.Preprocessing.fit(lm.Dataset(given)) for given in (Pairs(), (x, np.arange(4))))
    assert found == expected
    assert found.describe() == "images: uint8 (rows, 4, 4, 1), times 1/255; age: float32 (rows, 1)"
    with pytest.raises(ValueError, match="normalize='standard' wants all rows of several inputs at once"):
        lm.data.Preprocessing.fit(lm.Dataset(Pairs(), normalize="standard"))


def test_pairs_of_dicts_are_read_on_demand(data):
    x, y = data

    class Pairs:
        def __len__(self):
            return ROWS

        def __getitem__(self, i):
            return {name: a[i] for name, a in x.items()}, y[i]

    dataset = lm.Dataset(Pairs())
    assert dataset.inputs == ("ids", "attention_mask")
    losses = [tagger().fit(given, epochs=2, batch_size=8, verbose=0).history["loss"] for given in
              (dataset, lm.Dataset(x, y))]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-6)
    model = tagger()
    model.fit(dataset, verbose=0)
    np.testing.assert_array_equal(model.predict(dataset), model.predict(x))

    class Ragged(Pairs):
        def __getitem__(self, i):
            return ({"ids": x["ids"][i]}, y[i]) if i == 3 else super().__getitem__(i)

    with pytest.raises(ValueError, match="row 3 gave a dict of ids for x, the first row a dict of ids, attention_mask"):
        tagger().fit(lm.Dataset(Ragged()), verbose=0)


def test_what_is_not_needed_may_come_later_or_stay_away(data):
    x, y = data
    model = tagger()
    # One array is the first input.
    model.fit(x["ids"], y, epochs=2, batch_size=8, verbose=0)
    whole = np.ones_like(x["ids"])
    alone = model.predict(x["ids"])
    np.testing.assert_array_equal(model.predict({"ids": x["ids"]}), alone)
    np.testing.assert_allclose(model.predict({"ids": x["ids"], "attention_mask": whole}), alone, rtol=1e-5, atol=1e-6)
    assert np.abs(model.predict(x) - alone).max() > 1e-3
    # Any length, and masks as booleans.
    short = {"ids": x["ids"][:, :2], "attention_mask": whole[:, :2].astype(bool)}
    np.testing.assert_allclose(model.predict(short), model.predict(x["ids"][:, :2]), rtol=1e-5, atol=1e-6)


def test_masked_steps_change_nothing_in_a_fit(data):
    x, y = data
    wide = {name: np.pad(a, ((0, 0), (0, 3))) for name, a in x.items()}
    losses = [tagger().fit(a, y, epochs=3, batch_size=8, verbose=0).history["loss"] for a in (x, wide)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("shard", ["data", "fsdp", "tensor", "seq"])
def test_a_dict_is_divided_over_devices(data, shard):
    x, y = {name: np.pad(a, ((0, 0), (0, 2))) for name, a in data[0].items()}, data[1]
    alone, spread = tagger(), tagger()
    expected = alone.fit(x, y, epochs=2, batch_size=8, verbose=0).history["loss"]
    found = spread.fit(x, y, epochs=2, batch_size=8, shard=shard, verbose=0).history["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(spread.predict(x), alone.predict(x), rtol=1e-4, atol=1e-5)


def test_a_dict_goes_through_stages(data):
    x, y = data
    models = [
        lm.Sequential([TinyTagger(steps=True, input_shape=(None,)), lm.layers.LSTM(5), lm.layers.Dense(3)])
        for _ in range(2)
    ]
    losses = []
    for model, shard in zip(models, (None, lm.MeshSpec(pipe=2))):
        model.compile("adam", "sparse_categorical_crossentropy")
        losses.append(model.fit(x, y, epochs=2, batch_size=8, shard=shard, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_plans():
    model = tagger()
    with pytest.raises(ValueError, match=r"input shape \(None,\) leaves a size open"):
        lm.plan(model, batch_size=8, topology="cpu:2")
    plan = lm.plan(model, batch_size=8, topology="cpu:2", shard="data", time=TIME)
    assert plan.best.spec == lm.MeshSpec(data=2)
    scan = Network(TinyScan())
    scan.compile("adam", "mse")
    assert lm.plan(scan, batch_size=8, topology="cpu:2", shard="data").best.spec == lm.MeshSpec(data=2)


def test_the_batch_may_be_planned():
    x, y = {"images": np.ones((9, 4, 4, 1), np.float32), "age": np.ones((9, 1), np.float32)}, np.ones(9, np.float32)
    model = Network(TinyScan())
    model.compile("adam", "mse")
    assert len(model.fit(x, y, batch_size="auto", verbose=0).history["loss"]) == 1


def test_numbers_and_ids_together(tmp_path):
    rng = np.random.default_rng(1)
    x = {
        "images": rng.integers(0, 256, (12, 4, 4), dtype=np.uint8),
        "age": rng.normal(50, 10, 12).astype(np.float32)[:, None],
        "note_ids": rng.integers(0, 9, (12, 5)),
    }
    y = rng.normal(size=12).astype(np.float32)
    model = Network(TinyScan())
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    kinds = model.learner.preprocessing.dtype
    assert kinds == {"images": "uint8", "age": "float32", "note_ids": "int32"}
    model.save(tmp_path / "scan.h5")
    rest = {name: x[name] for name in ("images", "age")}
    np.testing.assert_array_equal(lm.load(tmp_path / "scan.h5").predict(rest), model.predict(rest))


def test_a_server_takes_what_a_model_reads(data):
    x, y = data
    model = tagger()
    model.fit(x, y, verbose=0)
    served = Served.of_model(model, "tagger")
    described = {tensor.name: (tensor.datatype, tensor.shape) for tensor in served.face.inputs}
    assert described == dict.fromkeys(("ids", "attention_mask", "type_ids"), ("INT32", (-1, -1)))
    assert [each["name"] for each in served.example()] == ["ids"]
    served.warm()
    np.testing.assert_array_equal(served.infer(x)["output"], model.predict(x))
    np.testing.assert_array_equal(served.infer({"ids": x["ids"]})["output"], model.predict(x["ids"]))
    for raw in (x, {"ids": x["ids"]}, x["ids"]):
        sent = to_tensors(raw, model.learner.preprocessing)
        np.testing.assert_array_equal(served.infer(sent)["output"], model.predict(raw))
    with pytest.raises(ValueError, match="the inputs ids are missing"):
        served.infer({"attention_mask": x["attention_mask"]})
    with pytest.raises(ValueError, match="unknown input 'words'"):
        served.infer({**x, "words": x["ids"]})
    with pytest.raises(ValueError, match="the input 'ids' has values from 0 to 19"):
        served.infer({"ids": x["ids"] + 20})


def test_bert_tags(data, tmp_path):
    x = {**data[0], "token_type_ids": data[0]["ids"] % 2}
    y = np.where(x["attention_mask"], x["ids"] % 3, IGNORED)
    sizes = {"vocab": 20, "context": 16, "width": 16, "depth": 1, "heads": 2, "hidden": 32, "classes": 3}
    model = Network(BertConfig(task="tokens", dropout=0.0, **sizes))
    model.compile(lm.Optimizer("adamw", 0.01), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x, y, epochs=15, batch_size=8, validation_data=(x, y), verbose=0).history
    assert history["val_loss"][-1] < 0.6 * history["val_loss"][0]
    assert history["val_accuracy"][-1] > 0.8
    model.save(tmp_path / "bert.safetensors")
    np.testing.assert_array_equal(lm.load(tmp_path / "bert.safetensors").predict(x), model.predict(x))
    with pytest.raises(ValueError, match="the input 'token_type_ids' has values from 0 to 1, got 2 in row 0"):
        model.predict({**x, "token_type_ids": np.full_like(x["ids"], 2)})


REFUSED = {
    "a missing input": (
        lambda x: Network(TinyScan()).predict({"images": x["ids"]}),
        "the input 'age' is missing; it reads images, age, note_ids, the data are a dict of images",
    ),
    "one array for two needed inputs": (
        lambda x: Network(TinyScan()).predict(np.ones((2, 4, 4, 1), np.float32)),
        "it reads a dict of images, age; the data are one array, and 'age' is missing",
    ),
    "an unknown input": (
        lambda x: tagger().predict({**x, "token_ids": x["ids"]}),
        "it has no input 'token_ids'; it reads ids, attention_mask, type_ids",
    ),
    "an id without a vector": (
        lambda x: tagger().predict({**x, "ids": x["ids"] + np.eye(ROWS, TIME, dtype=int) * 20}),
        r"TinyTagger: the input 'ids' has values from 0 to 19, got \d+ in row 0",
    ),
    "a mask that is none": (
        lambda x: tagger().predict({**x, "attention_mask": x["ids"]}),
        "the input 'attention_mask' has values from 0 to 1, got",
    ),
    "lengths": (
        lambda x: tagger().predict({**x, "attention_mask": x["attention_mask"][:, :-1]}),
        "the inputs have different lengths: 'ids' 6, 'attention_mask' 5",
    ),
    "rows": (
        lambda x: (m := tagger(), m.predict(x), m.predict({**x, "ids": x["ids"][:-1]})),
        "predict: the inputs have different numbers of rows",
    ),
    "an unknown input later": (
        lambda x: (m := tagger(), m.predict(x), m.predict({**x, "words": x["ids"]})),
        r"a dict of the inputs ids is wanted \(and attention_mask, type_ids, if there is\), a dict of ids, atten",
    ),
    "ids later": (
        lambda x: (m := tagger(), m.predict(x), m.predict({"ids": x["ids"] + 7})),
        "the input 'ids' has values from 0 to 19, got",
    ),
    "a pipeline of one layer": (
        lambda x: tagger().fit(x, np.zeros(ROWS, int), shard=lm.MeshSpec(pipe=2), verbose=0),
        "too few for 2 stages",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(data, case):
    call, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        call(data[0])


# Labels of steps


def test_a_step_without_a_label_is_not_looked_at(data):
    x, _ = data
    y = np.where(x["attention_mask"], x["ids"] % 3, IGNORED)
    model = tagger(steps=True)
    logs = model.evaluate(x, y, verbose=0)
    logits = np.asarray(model(**x))
    losses, right = [], []
    for row, labels in zip(logits, y):
        kept = labels != IGNORED
        each = optax.softmax_cross_entropy_with_integer_labels(row[kept], labels[kept])
        losses.append(each.mean())
        right.append((row[kept].argmax(-1) == labels[kept]).mean())
    assert logs["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-6)
    assert logs["accuracy"] == pytest.approx(float(np.mean(right)), rel=1e-6)

    garbage = {**x, "ids": np.where(x["attention_mask"], x["ids"], 7)}
    histories = [tagger(steps=True).fit(a, y, epochs=30, batch_size=8, verbose=0).history for a in (x, garbage)]
    assert histories[0]["accuracy"][-1] > 0.9
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


def test_labels_of_other_negative_ids_are_refused(data):
    x, _ = data
    with pytest.raises(ValueError, match=r"label -1 of row 0 is out of range.*-100 is what stands for no label"):
        tagger(steps=True).fit(x, x["attention_mask"] - 1 - x["attention_mask"], verbose=0)
    with pytest.raises(ValueError, match="all labels are -100"):
        tagger(steps=True).fit(x, np.full((ROWS, TIME), IGNORED), verbose=0)


def test_a_smoothed_loss_is_saved_by_its_name(data, tmp_path):
    x, y = data
    model = Network(TinyTagger())
    model.compile("adam", "sparse_categorical_crossentropy(label_smoothing=0.1)", ["accuracy"])
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    model.save(tmp_path / "model.h5")
    loaded = lm.load(tmp_path / "model.h5")
    assert loaded.learner.recipe.loss is model.learner.recipe.loss
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
