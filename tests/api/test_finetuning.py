"""One call from a model and data of a task to a model that does it."""

import re

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.data.labels import IGNORED
from llmasos_xla.data.tokenizers.characters import Characters
from llmasos_xla.models import BertConfig, GPT2Config, VGGConfig

LETTERS = "abcdefgh "
TOKENIZER = Characters(LETTERS, ("pad", "unknown", "start", "end"))
SIZES = {"vocab": TOKENIZER.size, "context": 24, "width": 32, "depth": 1, "heads": 4, "hidden": 64, "dropout": 0.0}
FAST = {"batch_size": 16, "learning_rate": 0.01, "verbose": 0}


@pytest.fixture
def texts():
    """Texts of four letters, whose first tells the class."""
    rng = np.random.default_rng(0)
    found = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 9))) for _ in range(96)]
    return found, ["early" if text[0] < "e" else "late" for text in found]


def bert(**sizes):
    return Network(BertConfig(**{**SIZES, "attention_dropout": 0.0, **sizes}))


@pytest.mark.parametrize("lora", [None, lm.LoRA(2, 8, r"(attention/\w+|mlp/up)/kernel")], ids=["all", "adapters"])
def test_texts(texts, lora, tmp_path):
    model = bert(task="masked-lm")
    before = {name: np.array(a) for name, a in model.variables.params.items()}
    history = lm.finetune(
        model,
        texts,
        task="text-classification",
        lora=lora,
        epochs=12,
        tokenizer=TOKENIZER,
        validation_data=texts,
        **FAST,
    )
    assert model.config.task == "classification"
    assert model.config.classes == 2
    assert history.history["val_accuracy"][-1] > 0.95
    kept = [n for n in before if n in model.variables.params and before[n].shape == model.variables.params[n].shape]
    same = [n for n in kept if np.array_equal(before[n], model.variables.params[n])]
    assert len(kept) > 10
    assert (same == kept) if lora else (len(same) < 5)
    classify = lm.pipeline("text-classification", model, TOKENIZER)
    assert [found.label for found in classify(["abc", "hgf"])] == ["early", "late"]
    model.save(tmp_path / "model.safetensors")
    again = lm.pipeline("text-classification", lm.load(tmp_path / "model.safetensors"), TOKENIZER)
    assert [found.label for found in again(["abc", "hgf"])] == ["early", "late"]


def test_examples_are_as_good_as_columns():
    examples = [("abc", "early"), ("hgf", "late")]
    losses = []
    for data in (examples, tuple(zip(*examples))):
        model = bert(task="classification")
        history = lm.finetune(model, data, task="text-classification", tokenizer=TOKENIZER, epochs=2, **FAST)
        losses.append(history.history["loss"])
    assert losses[0] == losses[1]


def test_the_tokenizer_stays_with_the_model_under_adapters_and_new_heads(texts, tmp_path):
    model = bert(classes=3)
    lm.finetune(model, texts, task="text-classification", lora=2, epochs=1, tokenizer=TOKENIZER, **FAST)
    assert model.tokenizer is TOKENIZER
    model.save(tmp_path / "model.safetensors")
    classify = lm.pipeline("sentiment", lm.load(tmp_path / "model.safetensors"))
    assert classify("abc") == lm.pipeline("sentiment", model)("abc")
    model.unmerge_lora(model.merge_lora())
    model.merge_lora()
    model.new_head(classes=4)
    assert model.tokenizer is TOKENIZER


def test_words():
    rng = np.random.default_rng(0)
    words = [
        ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 4))) for _ in range(rng.integers(1, 5))]
        for _ in range(64)
    ]
    kinds = [["low" if word[0] < "e" else "high" for word in row] for row in words]
    model = bert()
    history = lm.finetune(
        model, (words, kinds), task="token-classification", epochs=10, tokenizer=TOKENIZER, max_length=12, **FAST
    )
    assert model.config.task == "tokens"
    assert history.history["accuracy"][-1] > 0.95
    assert model.learner.preprocessing.label_names == ("high", "low")
    with pytest.raises(ValueError, match="row 0 wants a list of words and as many labels"):
        lm.finetune(model, ([["a", "b"], ["c"]], [["low"], ["high"]]), task="token-classification", tokenizer=TOKENIZER)


def test_words_with_named_labels_may_have_none():
    words, kinds = [["ab", "cd", "ef"], ["gh", "ab"]], [["low", IGNORED, "high"], ["high", "low"]]
    model = bert()
    history = lm.finetune(model, (words, kinds), task="token-classification", tokenizer=TOKENIZER, **FAST)
    assert np.isfinite(history.history["loss"]).all()
    assert model.learner.preprocessing.label_names == ("high", "low")


@pytest.mark.parametrize(
    ("data", "task", "says"),
    [
        (([np.nan, "abc"], [0, 1]), "text-classification", "texts are wanted, or pairs of texts; row 0 is nan"),
        ((["abc", None], [0, 1]), "text-classification", "texts are wanted, or pairs of texts; row 1 is None"),
        ((["abc", "ab"], ["a", "a"]), "text-classification", "all labels are 'a'; two classes or more"),
        ((["abc", "ab"], [np.nan, 1.0]), "text-classification", "some labels are NaN"),
        ((["abc", "ab"], ["a", 1]), "text-classification", "some labels are text and some are not, 1; make them"),
        (([], []), "text-classification", "the data have no rows"),
        (([["ab"], ["c"]], [0, 1]), "token-classification", "row 0 wants a list of words and as many labels"),
        (([["ab"], ["c"]], [[0]]), "token-classification", "there are 2 rows of words and 1 rows of labels"),
    ],
)
def test_odd_data_are_refused_in_words(data, task, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        lm.finetune(bert(), data, task=task, tokenizer=TOKENIZER, epochs=1, **FAST)


def test_language():
    text = "abcdefgh " * 200
    model = Network(GPT2Config(**{k: v for k, v in SIZES.items() if k != "dropout"}))
    history = lm.finetune(
        model,
        ([text, text], None),
        task="language-modelling",
        lora=4,
        epochs=2,
        tokenizer=TOKENIZER,
        max_length=16,
        **FAST,
    )
    assert history.history["loss"][-1] < history.history["loss"][0]
    # It writes with its adapters, and the same once they are merged.
    written = lm.generate(model, "abcd", tokenizer=TOKENIZER, max_new_tokens=8)
    adapters = model.merge_lora()
    assert lm.generate(model, "abcd", tokenizer=TOKENIZER, max_new_tokens=8) == written
    assert adapters.lora.rank == 4
    ids = np.tile(np.arange(9, dtype=np.int32) + 4, 30)[: 16 * 16].reshape(16, 16)
    history = lm.finetune(model, (ids, None), task="language-modelling", epochs=30, **FAST)
    assert history.history["accuracy"][-1] > 0.9


def test_pictures():
    rng = np.random.default_rng(0)
    y = np.arange(32) % 3
    x = rng.standard_normal((32, 8, 8, 3)).astype(np.float32) + 3.0 * np.eye(3)[y][:, None, None]
    model = Network(VGGConfig((1, 1), (4, 8), classes=10, hidden=16, dropout=0.0, input_shape=(8, 8, 3)))
    names = np.array(["red", "green", "blue"])[y]
    history = lm.finetune(model, (x, names), task="image-classification", freeze="conv0_0", epochs=25, **FAST)
    assert model.config.classes == 3
    assert history.history["accuracy"][-1] > 0.9
    assert not any("conv0_0" in name for name in model.trained)
    # Ids that the model's classes cover leave its head alone.
    lm.finetune(model, lm.Dataset(x[:8], y[:8] % 2), task="image-classification", epochs=1, **FAST)
    assert model.config.classes == 3


def test_what_does_not_fit_is_refused(texts):
    x, y = texts
    vgg = Network(VGGConfig((1,), (4,), classes=10, hidden=16, input_shape=(8, 8, 3)))
    for call, text in (
        (lambda: lm.finetune(bert(), texts, task="translation"), "unknown task 'translation'; .*text-classification"),
        (lambda: lm.finetune(bert(), texts, task="image-classification"), "wants a model that reads images"),
        (lambda: lm.finetune(vgg, texts, task="text-classification"), "wants a model that reads ids"),
        (lambda: lm.finetune(bert(), texts, task="language-modelling"), "wants a decoder"),
        (
            lambda: lm.finetune(Network(GPT2Config(**{**SIZES})), texts, task="text-classification"),
            "no head for classes",
        ),
        (lambda: lm.finetune(bert(), texts, task="text-classification"), "pass tokenizer="),
        (lambda: lm.finetune(bert(), (x, None), task="text-classification", tokenizer=TOKENIZER), "have no labels"),
        (
            lambda: lm.finetune(bert(), x, task="text-classification", tokenizer=TOKENIZER),
            "want to be .x, y., a list of .text, label. or a Dataset",
        ),
        (
            lambda: lm.finetune(bert(), (x, [*y[:-1], 3]), task="text-classification", tokenizer=TOKENIZER),
            "some labels are text",
        ),
        (
            lambda: lm.finetune(
                bert(), texts, task="text-classification", tokenizer=TOKENIZER, validation_data=(x[:1], ["other"])
            ),
            "unknown label 'other'",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            call()
