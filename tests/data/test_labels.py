import numpy as np
import pytest

from llmasos_xla.data import Dataset, Preprocessing

X = np.zeros((4, 2), np.float32)


def fitted(y):
    return Preprocessing.fit(Dataset(X, y))


def test_text_labels_become_ids_by_sorted_name_and_back():
    preprocessing = fitted(["dog", "cat", "dog", "ant"])
    assert preprocessing.label_names == ("ant", "cat", "dog")
    ids = preprocessing.encode_labels(["dog", "ant"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [2, 0]
    assert preprocessing.decode_labels(ids).tolist() == ["dog", "ant"]
    # Ids of a model whose classes have names pass as well.
    assert preprocessing.encode_labels([2, 0]).tolist() == [2, 0]


@pytest.mark.parametrize("y", [[0, 3, 1, 2], np.array([0, 3, 1, 2], np.uint8), np.array([[0], [3], [1], [2]])])
def test_integers_pass(y):
    preprocessing = fitted(y)
    assert preprocessing.label_names is None
    ids = preprocessing.encode_labels(y)
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 3, 1, 2]
    assert preprocessing.decode_labels(ids).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize("y", [np.eye(4), np.linspace(0, 1, 4), np.linspace(0, 1, 4)[:, None]])
def test_float_targets_stay(y):
    encoded = fitted(y).encode_labels(y)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, y.astype(np.float32))


def test_bool_labels():
    assert fitted([True, False, True, True]).encode_labels(np.array([True, False])).tolist() == [1, 0]


def test_a_split_keeps_the_classes_of_the_whole():
    whole = Dataset(X, ["a", "b", "c", "d"])
    part, _ = whole.split(0.5)
    assert part.classes == ("a", "b", "c", "d")
    assert Preprocessing.fit(part).encode_labels(["d"]).tolist() == [3]


def test_errors():
    named = fitted(["dog", "cat", "dog", "ant"])
    with pytest.raises(ValueError, match=r"evaluate: unknown label 'cats'; did you mean 'cat'\? Known: ant, cat, dog"):
        named.encode_labels(["cats"], who="evaluate")
    with pytest.raises(ValueError, match=r"label 3 in row 1 is outside 0\.\.2, the classes ant, cat, dog"):
        named.encode_labels([0, 3])
    with pytest.raises(TypeError, match=r"text labels came \('dog'\); the model was trained on numbers"):
        fitted([0, 1, 2, 3]).encode_labels(["dog"])
    with pytest.raises(ValueError, match=r"2 labels are NaN or infinite, the first in row 1; mend those rows"):
        named.encode_labels([0.0, np.nan, np.inf])
    with pytest.raises(ValueError, match=r"a single label came"):
        named.encode_labels(3)
    with pytest.raises(ValueError, match=r"class ids from 0 to 2 are wanted"):
        named.decode_labels([3])
