"""Texts to a model that reads ids: each is answered as the model would answer it alone, whatever it is padded to."""

import asyncio
import json
import threading

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.data.tokenizers.characters import Characters
from llmasos_xla.deployment.faces import ModelFace
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.versions import open_version
from llmasos_xla.models import BertConfig, GPT2Config

TOKENIZER = Characters("abcdefgh ", ("pad", "unknown", "start", "end"))
CONTEXT = 64
SIZES = {"vocab": TOKENIZER.size, "context": CONTEXT, "width": 32, "depth": 1, "heads": 4, "hidden": 64}
TEXTS = ["abc", "hgf edc abc", "a", "hh " * 15, "abcdefgh " * 20, "hgfe " * 6]


def tuned(data=None, tokenizer=TOKENIZER, **more):
    model = Network(BertConfig(**SIZES), seed=1)
    data = data or [("abc", "early"), ("hgf", "late")] * 8
    lm.finetune(
        model, data, task="text-classification", tokenizer=tokenizer, epochs=4, learning_rate=0.01, verbose=0, **more
    )
    return model


@pytest.fixture(scope="module")
def model():
    return tuned()


def alone(model, texts):
    """What the model predicts of each text by itself, not padded."""
    found = []
    for text in texts:
        row = TOKENIZER.batch([text], CONTEXT)
        found.append(model.predict({name: row[name] for name in ("ids", "attention_mask")})[0])
    return np.stack(found)


@pytest.fixture(scope="module")
def served(model):
    return Served.of_model(model, "m")


def of(texts):
    array = np.empty(len(texts), object)
    array[:] = texts
    return {"text": array}


def test_answers_are_those_of_each_text_alone(model, served):
    expected = alone(model, TEXTS)
    np.testing.assert_allclose(served.infer(of(TEXTS))["output"], expected, rtol=1e-5, atol=1e-5)
    for text, row in zip(TEXTS, expected, strict=True):
        found = served.infer(of([text]))
        np.testing.assert_allclose(found["output"][0], row, rtol=1e-5, atol=1e-5)
        assert found["label"][0] == ("early", "late")[int(row.argmax())]


def test_lengths_are_powers_of_two_up_to_what_the_model_reads(served):
    lengths = {len(text): served.encode(of(["a" * len(text)]))["ids"].shape[1] for text in TEXTS}
    # With what begins and ends a text, and cut at the end.
    assert lengths == {1: 16, 3: 16, 11: 16, 30: 32, 45: 64, 180: 64}
    encoded = served.encode(of(["ab", "abcdefgh " * 3]))
    assert {name: (a.shape, a.dtype.name) for name, a in encoded.items()} == {
        "ids": ((2, 32), "int32"),
        "attention_mask": ((2, 32), "int32"),
    }
    assert encoded["attention_mask"].sum(axis=1).tolist() == [4, 29]
    assert set(encoded["ids"][0, 4:]) == {TOKENIZER.special.pad}


def test_what_it_takes_and_gives(served):
    said = served.metadata()
    assert said["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1]}
    assert [tensor["name"] for tensor in said["inputs"]] == ["text", "ids", "attention_mask", "token_type_ids"]
    assert served.example() == [{"name": "text", "datatype": "BYTES", "shape": [1], "fill": "a fine film"}]
    assert served.face.labels == ("early", "late")


def test_the_smallest_length_is_compiled_ahead_and_no_more_is_then(model):
    served = Served.of_model(model, "m")
    served.warm()
    before = len(served.engine.compiled)
    for text in ("a", "abc", "abcdefgh"):
        served.infer(of([text]))
    assert len(served.engine.compiled) == before
    for length in range(1, 100):
        served.infer(of(["a" * length]))
    assert len(served.engine.compiled) == before + 2


def test_requests_of_one_length_run_together(model, served):
    slot, texts = Slot("m", served, delay=0.5, most_rows=4), ["a", "bc", "def", "gh ab"]
    for text in texts:
        served.infer(of([text]))
    answers = {}

    def ask(text):
        answers[text] = asyncio.run(slot.infer(of([text]))).outputs["output"][0]

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slot.batcher.close()
    assert slot.batcher.batches < 4
    for text, row in zip(texts, alone(model, texts), strict=True):
        np.testing.assert_allclose(answers[text], row, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({**of(["a"]), "ids": np.ones((1, 3), np.int32)}, "'text' comes alone, or 'ids' in its place; ids came too"),
        ({"text": np.array([["a", "b"]], object)}, r"'text' has shape \(1, 2\); \(rows,\) is wanted"),
        ({"text": np.array("a", object)}, r"'text' has shape \(\); \(rows,\) is wanted"),
        ({"text": np.empty(0, object)}, "'text' holds no text"),
        (of(["a", None]), "'text' wants texts, 'None' came"),
        ({"text": np.ones(2, np.float32)}, r"'text' wants texts, '1\.0' came"),
        ({"words": np.array(["a"], object)}, "unknown input 'words'"),
    ],
)
def test_what_is_no_text_is_refused(served, tensors, reason):
    with pytest.raises((ValueError, TypeError), match=reason):
        served.infer(tensors)


def test_ids_are_taken_as_before(model, served):
    row = TOKENIZER.batch(["hgf"], CONTEXT)
    expected = model.predict({name: row[name] for name in ("ids", "attention_mask")})
    np.testing.assert_allclose(served.infer(row)["output"], expected, rtol=1e-5, atol=1e-5)
    # Nothing says how these are prepared, and nothing is done to them.
    assert served.infer({"ids": row["ids"]})["output"].shape == (1, 2)


def test_a_model_of_pairs_takes_a_text_as_the_first_of_two():
    model = tuned(PAIRS)
    served = Served.of_model(model, "m")
    row = TOKENIZER.batch(["abc"], CONTEXT)
    expected = model.predict({**row, "token_type_ids": np.zeros_like(row["ids"])})
    np.testing.assert_allclose(served.infer(of(["abc"]))["output"], expected, rtol=1e-5, atol=1e-5)


PAIRS = ([("abc", "hgf"), ("hgf", "abc")] * 8, [0, 1] * 8)


@pytest.mark.parametrize("case", ["no tokenizer", "answers for each id", "goes on with text"])
def test_models_that_texts_are_no_input_of(case):
    if case == "goes on with text":
        model = Network(GPT2Config(**SIZES))
        model.tokenizer = TOKENIZER
    else:
        model = Network(BertConfig(**SIZES, task="tokens" if case == "answers for each id" else "classification"))
        model.predict(np.ones((1, 8), np.int32))
        if case == "answers for each id":
            model.tokenizer = TOKENIZER
    face = ModelFace(model, "m")
    assert "text" not in [tensor.name for tensor in face.inputs]
    assert face.first == ("ids",)


@pytest.mark.usefixtures("unchecked")  # numbers of rows are symbols where programs are exported
def test_a_bundle_brings_its_tokenizer(model, tmp_path):
    served = open_version(str(model.export(tmp_path / "m.lmx")), "m")
    np.testing.assert_allclose(served.infer(of(TEXTS))["output"], alone(model, TEXTS), rtol=1e-5, atol=1e-5)
    # Programs alone take what they were exported with.
    program = open_version(str(tmp_path / "m.lmx"), "m", program=True)
    assert "text" not in program.face.first


def test_over_http(model, tmp_path):
    model.save(tmp_path / "films.safetensors")
    expected = alone(model, TEXTS)
    with lm.Deployer(tmp_path / "films.safetensors").deploy() as server:
        for x in (TEXTS, np.array(TEXTS), tuple(TEXTS), {"text": TEXTS}):
            np.testing.assert_allclose(server.predict(x), expected, rtol=1e-5, atol=1e-5)
        row = TOKENIZER.batch(["abc"], CONTEXT)
        ids = {name: row[name] for name in ("ids", "attention_mask")}
        np.testing.assert_allclose(server.predict(ids), expected[:1], rtol=1e-5, atol=1e-5)
        with pytest.raises(TypeError, match="a list of texts is wanted"):
            server.predict("abc")
        body = json.loads(server.curl.split(" -d '")[1].rstrip("'"))
        assert body == {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a fine film"]}]}
