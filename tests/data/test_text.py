import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmasos_xla as lm
from llmasos_xla.data import Dataset, Preprocessing
from llmasos_xla.data.text_input import TextInput


def test_words_by_frequency_padded_on_the_right():
    preprocessing = Preprocessing.fit(Dataset(["The cat, the dog.", "a cat"], [0, 1]))
    assert preprocessing.input.vocabulary == ("cat", "the", ",", ".", "a", "dog")
    assert preprocessing.vocabulary_size == 8
    assert preprocessing.encode(["the cat", "THE bird, a dog . . . ."]).tolist() == [
        [3, 2, 0, 0, 0, 0],
        [3, 1, 4, 6, 7, 5],
    ]
    assert preprocessing.shape == (6,)
    assert preprocessing.dtype == "int32"
    assert preprocessing.describe() == "text as 6 word ids of 8"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_characters_round_trip(texts):
    part = TextInput.fit(texts, "character")
    assert part.decode(part.encode(texts)) == texts
    again = Preprocessing.from_json(json.loads(json.dumps(Preprocessing(part).to_json())))
    assert again.input == part


def test_sizes_can_be_set():
    data = Dataset(["a b c d", "a b c", "a b"], [0, 1, 0], max_words=4, max_length=3)
    preprocessing = Preprocessing.fit(data)
    assert preprocessing.encode(["a b c d"]).tolist() == [[2, 3, 1]]
    # The model's own length decides where the Dataset leaves it open.
    assert Preprocessing.fit(Dataset(["a b"], [0]), (5,)).shape == (5,)
    assert Preprocessing.fit(Dataset(["a b"], [0]), (None,)).shape == (2,)
    with pytest.raises(ValueError, match=r"max_length=3, but the model wants rows of 5 ids"):
        Preprocessing.fit(data, (5,))
    with pytest.raises(ValueError, match=r"is text, encoded to \(rows, length\); the model wants \(28, 28, 1\)"):
        Preprocessing.fit(data, (28, 28, 1))


@pytest.mark.parametrize("level", ["word", "character"])
@pytest.mark.parametrize("max_words", [3, 7, 26, 27, 28, 29, 100])
def test_max_words_is_the_number_of_ids(max_words, level):
    data = Dataset(["a b c d e f g h i j k l m", "n o p q r s t u v w x y z"], [0, 1], level=level, max_words=max_words)
    preprocessing = Preprocessing.fit(data)
    ids = preprocessing.encode(data.rows().x)
    different = 26 if level == "word" else 27  # the space is a character
    assert preprocessing.vocabulary_size == min(max_words, different + 2)
    assert ids.max() == preprocessing.vocabulary_size - 1
    assert len(np.unique(ids[ids > 1])) == min(max_words - 2, different)


def test_a_text_fits_an_embedding_of_max_words():
    layers = [lm.layers.Embedding(5, 2), lm.layers.Flatten(), lm.layers.Dense(2, activation="softmax")]
    model = lm.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(Dataset(["a b c d e", "f g h i a"] * 2, [0, 1] * 2, max_words=5), verbose=0)
    assert model.predict(["a b q"]).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_words": 2}, "max_words wants a whole number >= 3, got 2; padding and unknown words take two ids"),
        ({"max_words": 2.5}, "max_words wants a whole number >= 3, got 2.5"),
        ({"max_words": None}, "max_words wants a whole number >= 3, got None"),
        ({"max_length": 0}, "max_length wants a whole number >= 1, got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_sizes_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.fit(Dataset(["a b"], [0], **options))


def test_lines_and_files_by_class(tmp_path):
    (tmp_path / "neg.txt").write_text("bad film\n\nworse\fstill\r\n")
    (tmp_path / "pos.txt").write_text("good film")
    lines = Dataset(tmp_path / "neg.txt")
    assert list(lines.rows().x) == ["bad film", "worse\fstill"]
    assert not lines.has_labels
    assert Dataset(tmp_path / "neg.txt", labels=["a", "b"]).classes == ("a", "b")
    both = Dataset({"neg": tmp_path / "neg.txt", "pos": tmp_path / "pos.txt"})
    assert both.classes == ("neg", "pos")
    assert both.labels.tolist() == [0, 0, 1]
    assert Preprocessing.fit(both).decode_labels([1]).tolist() == ["pos"]


def test_errors(tmp_path):
    preprocessing = Preprocessing.fit(Dataset(["one two"], [0]))
    with pytest.raises(TypeError, match=r"predict: one text came \('one'\); a list of texts is wanted: pass \[text\]"):
        preprocessing.encode("one", who="predict")
    assert preprocessing.encode([["one"], ["two"]]).tolist() == [[2, 0], [3, 0]]
    with pytest.raises(ValueError, match=r"text of shape \(1, 2\) came; one text a row is wanted"):
        preprocessing.encode([["one", "two"]])
    with pytest.raises(TypeError, match=r"text is wanted, row 1 holds int"):
        preprocessing.encode(["one", 2])
    with pytest.raises(ValueError, match=r"ids run from 0 to 3, 2 to 9 came"):
        preprocessing.encode(np.array([[2, 9]]))
    with pytest.raises(ValueError, match=r"ids of shape \(1, 3\) came; \(rows, 2\) is wanted"):
        preprocessing.encode(np.array([[2, 3, 2]]))
    assert preprocessing.encode(np.array([[2, 3]])).tolist() == [[2, 3]]
    latin = tmp_path / "latin.txt"
    latin.write_bytes("fine\nJosé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt, line 2: byte 0xe9 is no utf-8; .* encoding="):
        Dataset(latin)
    assert list(Dataset(latin, encoding="latin-1").rows().x) == ["fine", "José"]
    with pytest.raises(ValueError, match=r"has 2 lines, and labels= has 1"):
        Dataset(latin, labels=[1], encoding="latin-1")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt holds no line of text \(1 bytes\)"):
        Dataset(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match=r"unknown level= 'letter'"):
        Dataset(["a"], level="letter")
    for field, value in (("level", "sentence"), ("max_length", 0), ("vocabulary", ["a", "a"])):
        damaged = preprocessing.to_json()
        damaged["input"][field] = value
        with pytest.raises(ValueError, match=f"preprocessing: input.{field} is"):
            Preprocessing.from_json(damaged)
