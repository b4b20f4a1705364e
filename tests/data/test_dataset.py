import datetime
import decimal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.data import Dataset, Preprocessing, Rows
from llmasos_xla.data.batches import batches

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10)


def test_rows_and_repr():
    data = Dataset(X, Y)
    assert len(data) == 10
    x, y = data[-1]
    np.testing.assert_array_equal(x, X[9])
    assert y == 9
    rows = data.take([3, 1])
    assert isinstance(rows, Rows)
    np.testing.assert_array_equal(rows.x, X[[3, 1]])
    np.testing.assert_array_equal(rows.y, [3, 1])
    assert rows.weight is None
    assert data.has_labels
    assert not Dataset(X).has_labels
    assert repr(data) == "Dataset(arrays: 10 rows, x float32 (2,), y int64, mode=train)"
    assert repr(Dataset(X, mode="test")) == "Dataset(arrays: 10 rows, x float32 (2,), y none, mode=test)"


def test_all_rows_are_not_copied():
    assert np.shares_memory(Dataset(X, Y).rows().x, X)


@pytest.mark.parametrize("x", [X.tolist(), jnp.asarray(X), list(X)])
def test_every_form_of_array(x, unchecked):
    np.testing.assert_array_equal(Dataset(x, Y).rows().x, X)


def test_a_tuple_is_x_and_y():
    assert Dataset((X, Y))[3][1] == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.floats(0.05, 0.95), st.integers(0, 5))
def test_split_parts_the_rows(rows, fraction, seed):
    data = Dataset(np.arange(rows, dtype=np.float32)[:, None], np.arange(rows), weights=np.arange(1, rows + 1))
    if not 0 < round(rows * fraction) < rows:
        with pytest.raises(ValueError, match=r"leaves one part empty"):
            data.split(fraction, seed)
        return
    first, rest = data.split(fraction, seed)
    assert len(first) == round(rows * fraction)
    assert sorted([*first.labels, *rest.labels]) == list(range(rows))
    np.testing.assert_array_equal(first.labels, data.split(fraction, seed)[0].labels)
    np.testing.assert_array_equal(first.rows().weight, first.labels + 1)


def test_tail_is_the_last_part_as_in_keras():
    first, last = Dataset(X, Y).tail(0.3)
    np.testing.assert_array_equal(first.labels, np.arange(7))
    np.testing.assert_array_equal(last.labels, [7, 8, 9])
    # Parts of parts stay parts of the same rows.
    np.testing.assert_array_equal(last.tail(0.34)[1].labels, [9])
    np.testing.assert_array_equal(last.only([2, 0]).take([1]).x, X[[7]])
    assert last.with_mode("test").mode == "test"
    assert last.mode == "train"


class Pairs:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.full((2, 2), index, np.uint8), "even" if index % 2 == 0 else "odd"


def test_any_indexable_of_pairs():
    data = Dataset(Pairs())
    assert len(data) == 4
    assert not data.in_memory
    assert data[2][1] == "even"
    preprocessing = Preprocessing.fit(data)
    assert preprocessing.label_names == ("even", "odd")
    assert preprocessing.shape == (2, 2)
    assert data.tail(0.5)[1].take([0]).x[0, 0, 0] == 2


def test_a_pandas_frame():
    import pandas as pd

    frame = pd.DataFrame(
        {"a": [1, 2, 3, 4], "b": [0.5, None, 1.5, 1.0], "c": ["x", "y", None, "x"], "label": list("pqpq")}
    )
    data = Dataset(frame)
    assert data.columns == ("a", "b", "c")
    assert data.inputs is None
    assert data.classes == ("p", "q")
    preprocessing = Preprocessing.fit(data)
    encoded = preprocessing.encode(frame)
    assert encoded.shape == (4, 4)
    assert encoded[1, 1] == 0
    np.testing.assert_array_equal(encoded[:, 2:], [[1, 0], [0, 1], [0, 0], [1, 0]])


def test_pandas_numbers_and_dates_in_other_clothes():
    import pandas as pd

    def frame(column):
        return pd.DataFrame({"a": column, "b": [1.0, 2.0], "label": [0, 1]})

    assert Dataset(frame([decimal.Decimal("1.5"), None])).rows().x[0, 0] == 1.5
    days = ["2024-01-01", "2024-01-02"]
    for column in (
        pd.to_datetime(days), pd.to_datetime(days, utc=True), pd.to_timedelta(["1 days", "2 days"]),
        pd.period_range("2024-01", "2024-02", freq="M"), [datetime.date(2024, 1, 1), None],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"the text column 'a' holds dates or times, .* at row 0"):
            Dataset(frame(column))
    with pytest.raises(ValueError, match=r"the text column 'a' holds numbers, such as '1' at row 0"):
        Dataset(frame(["1", "2"]))
    # pandas' own word for categories says what they are.
    assert Preprocessing.fit(Dataset(frame(pd.Categorical(["1", "2"])))).shape == (3,)


def test_errors_of_arrays():
    with pytest.raises(ValueError, match=r"x has 10 rows and y has 9; .* equally many \(x \(10, 2\), y \(9,\)\)"):
        Dataset(X, Y[:9])
    with pytest.raises(ValueError, match=r"Dataset: arrays holds no rows"):
        Dataset(X[:0], Y[:0])
    with pytest.raises(ValueError, match=r"x is a single value"):
        Dataset(np.float32(3))
    with pytest.raises(TypeError, match=r"numbers or text are wanted, list of dict came"):
        Dataset([{"a": 1}], [0])
    with pytest.raises(TypeError, match=r"y: an array is wanted, a dict of a, b came; pass one of its arrays"):
        Dataset(X, {"a": Y, "b": Y})
    with pytest.raises(ValueError, match=r"x is an empty dict; arrays by input name are wanted"):
        Dataset({}, Y)
    with pytest.raises(ValueError, match=r"different numbers of rows: {'a': 10, 'b': 5}"):
        Dataset({"a": X, "b": X[:5]}, Y)
    with pytest.raises(ValueError, match=r"x: the rows have different shapes \(\(2,\), \(3,\)\); an array needs"):
        Dataset([[1, 2], [1, 2, 3]], [0, 1])


def test_errors_of_pairs():
    class Triples(Pairs):
        def __getitem__(self, index):
            return index, index, index

    with pytest.raises(TypeError, match=r"Triples\[0\] gave tuple; a pair \(x, y\) is wanted"):
        Dataset(Triples())[0]


def test_errors_of_labels(tmp_path):
    with pytest.raises(ValueError, match=r"labels= was given, but Pairs gives pairs \(x, y\) itself; leave it out"):
        Dataset(Pairs(), labels=[1, 2, 3, 4])
    (tmp_path / "a.csv").write_text("a,label\n1,2\n")
    with pytest.raises(ValueError, match=r"labels='label'; an array with a label for each row is wanted"):
        Dataset(tmp_path / "a.csv", labels="label")


def test_nothing_heavy_is_imported_until_used():
    code = (
        "import sys, llmasos_xla.data, llmasos_xla.data.batches\n"
        "heavy = {'grain', 'pyarrow', 'PIL', 'sklearn', 'soundfile', 'pandas', 'scipy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("grain", lambda data, path: batches(data, Preprocessing.fit(data), batch_size=2)),
        ("pyarrow", lambda data, path: Dataset(path / "a.csv")),
        ("PIL", lambda data, path: Dataset(path, kind="images")),
        ("soundfile", lambda data, path: Dataset(path, kind="audio")),
        ("sklearn.datasets", lambda data, path: Dataset.named("digits")),
    ],
)
def test_a_missing_package_is_named(package, use, tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a,label\n1,2\n")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.wav").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"needs? (grain|pyarrow|pillow|soundfile|scikit-learn): pip install"):
        use(Dataset(X, Y), tmp_path)


def test_errors_of_options(tmp_path):
    with pytest.raises(ValueError, match=r"unknown mode= 'tset'; did you mean 'test'\? Known: test, train"):
        Dataset(X, Y, mode="tset")
    with pytest.raises(ValueError, match=r"unknown kind= 'cvs'; did you mean 'csv'"):
        Dataset(X, Y, kind="cvs")
    with pytest.raises(ValueError, match=r"unknown normalize= 'pixel'; did you mean 'pixels'"):
        Dataset(X, Y, normalize="pixel")
    with pytest.raises(ValueError, match=r"unknown missing= 'avg'"):
        Dataset(X, Y, missing="avg")
    with pytest.raises(ValueError, match=r"image_size= is an option of images; this source was read as array"):
        Dataset(X, Y, image_size=(2, 2))
    with pytest.raises(ValueError, match=r"weights has shape \(3,\); one a row is wanted: \(10,\)"):
        Dataset(X, Y, weights=[1, 2, 3])
    with pytest.raises(ValueError, match=r"weights run from -1.0 to 1.0"):
        Dataset(X, Y, weights=np.linspace(-1, 1, 10))
    with pytest.raises(ValueError, match=r"Dataset.split: fraction=1.5; a number between 0 and 1"):
        Dataset(X, Y).split(1.5)
    with pytest.raises(IndexError, match=r"row 10 of 10"):
        Dataset(X, Y)[10]


def test_a_missing_file_names_its_neighbors(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("a,label\n1,2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        Dataset("trian.csv")
    assert str(caught.value) == (
        f"Dataset: no file 'trian.csv' (working directory {tmp_path}); did you mean 'train.csv'?"
    )
    with pytest.raises(FileNotFoundError, match=r"the folder data does not exist"):
        Dataset("data/train.csv")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds train.csv"):
        Dataset("zzz")
    (tmp_path / "what.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"what.bin has no known suffix .* say what it is with kind="):
        Dataset("what.bin")
