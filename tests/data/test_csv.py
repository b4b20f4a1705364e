import csv
import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.data import Dataset, Preprocessing
from llmasos_xla.data.batches import batches


@pytest.fixture
def write(tmp_path):
    def write(text, name="data.csv"):
        path = tmp_path / name
        path.write_text(text, newline="")
        return path

    return write


def encoded(data, raw=None):
    preprocessing = Preprocessing.fit(data)
    return preprocessing.encode(data.rows().x if raw is None else raw, data.columns if raw is None else None)


numbers = st.floats(-1e6, 1e6, width=32).map(float) | st.integers(-(10**6), 10**6)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).map(
    lambda text: f"w{text}"
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, words, st.sampled_from(["yes", "no"])), min_size=1, max_size=12),
    st.sampled_from([",", ";", "\t"]),
)
def test_what_csv_writes_is_read(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("csv") / "data.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["first", "second", "word", "label"])
        writer.writerows(rows)
    data = Dataset(path, delimiter=delimiter)
    assert data.columns == ("first", "second", "word")
    assert list(data.labels) == [row[3] for row in rows]
    for i, name in enumerate(["first", "second"]):
        np.testing.assert_array_equal(data.rows().x[name].astype(float), [float(row[i]) for row in rows])
    assert list(data.rows().x["word"]) == [row[2] for row in rows]


def pixels(rows, columns=784, names="pixel{}"):
    x = np.random.default_rng(0).integers(0, 256, (rows, columns))
    y = np.arange(rows) % 10
    header = ",".join(["label", *map(names.format, range(columns))])
    lines = [",".join(map(str, [label, *row])) for label, row in zip(y, x)]
    return x, y, "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize(("columns", "names"), [(784, "pixel{}"), (12, "pixel_{}"), (64, "c{}")])
def test_pixel_tables_become_bytes_times_a_255th(write, columns, names):
    x, y, text = pixels(5, columns, names)
    data = Dataset(write(text))
    assert repr(data).endswith(f"5 rows, x {columns} columns, y int64, mode=train)")
    preprocessing = Preprocessing.fit(data)
    assert preprocessing.dtype == "uint8"
    np.testing.assert_array_equal(preprocessing.encode(x), x)
    assert preprocessing.input.scale == 1 / 255
    (group,) = batches(data, preprocessing, batch_size=5, shuffle=False)
    np.testing.assert_array_equal(group.x[0], x)
    np.testing.assert_array_equal(group.y[0], y)


def test_pixel_tables_take_the_shape_of_the_model(write):
    x, _, text = pixels(3)
    preprocessing = Preprocessing.fit(Dataset(write(text)), (28, 28, 1))
    assert preprocessing.shape == (28, 28, 1)
    np.testing.assert_array_equal(preprocessing.encode(x), x.reshape(3, 28, 28, 1))


def test_pixel_columns_in_another_order(write):
    import pandas as pd

    x, _, text = pixels(3, 9, "1x{}")
    data = Dataset(write(text))
    preprocessing = Preprocessing.fit(data)
    frame = pd.DataFrame(x, columns=data.columns)
    np.testing.assert_array_equal(preprocessing.encode(frame[frame.columns[::-1]]), x)
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    with pytest.raises(ValueError, match=r"predict: 1 of the training's 9 columns are missing: 1x4"):
        preprocessing.encode(frame.drop(columns="1x4"), who="predict")


def test_a_byte_table_with_one_large_value_is_still_right(write):
    # The first rows look like bytes and the table is read as such at first.
    text = "a,b,label\n" + "1,2,0\n" * 100 + "300,-1,1\n"
    data = Dataset(write(text))
    np.testing.assert_array_equal(data.rows().x[-1], [300, -1])


def test_number_columns_are_standardized_with_the_digits_of_float64(write):
    x = 1.4e9 + np.arange(10)
    data = Dataset(write("time,label\n" + "".join(f"{v},0\n" for v in x)))
    np.testing.assert_allclose(encoded(data)[:, 0], (x - x.mean()) / x.std(), rtol=1e-6)


def test_test_tables_use_the_numbers_of_training(write):
    train = Dataset(write("a,b,label\n0,x,0\n2,y,1\n", "train.csv"))
    test = Dataset(write("b,a,label\ny,1,0\nx,4,1\n", "test.csv"), mode="test")
    preprocessing = Preprocessing.fit(train)
    (group,) = batches(test, preprocessing, batch_size=2)
    np.testing.assert_array_equal(group.x[0], [[0, 0, 1], [3, 1, 0]])


@pytest.mark.parametrize(
    ("missing", "filled"), [("mean", 3.0), ("median", 2.0), ("zero", 0.0)]
)  # fmt: skip
def test_missing_numbers_are_filled(write, missing, filled):
    data = Dataset(write("a,label\n1,0\n2,0\n6,1\nNA,1\n"), missing=missing, normalize=None)
    np.testing.assert_array_equal(encoded(data)[:, 0], [1, 2, 6, filled])


def test_missing_rows_are_dropped_and_integer_labels_stay_integers(write):
    data = Dataset(write("a,label\n1,0\n2,\n?,1\n6,1\n"), missing="drop")
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.labels, [0, 1])
    np.testing.assert_array_equal(data.rows().x[:, 0], [1, 6])


def test_records_columns_and_matrices_are_the_same_to_predict(write):
    data = Dataset(write("age,city,label\n30,Oslo,0\n40,Rome,1\n"))
    preprocessing = Preprocessing.fit(data)
    wanted = [[-1, 1, 0], [1, 0, 1]]
    for raw in (
        {"age": [30, 40], "city": ["Oslo", "Rome"]},
        [{"age": 30, "city": "Oslo"}, {"city": "Rome", "age": 40}],
        [[30, "Oslo"], [40, "Rome"]],
        np.array([[30, "Oslo"], [40, "Rome"]], object),
    ):
        np.testing.assert_array_equal(preprocessing.encode(raw), wanted)
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    with pytest.raises(ValueError, match=r"predict, row 0: unknown value of column 'city' 'Roma'; did you mean 'Rome'"):
        preprocessing.encode([[30, "Roma"]], who="predict")
    with pytest.raises(ValueError, match=r"the column 'age' holds numbers, 'old' came"):
        preprocessing.encode([["old", "Rome"]])
    with pytest.raises(ValueError, match=r"the columns city are missing; given: age"):
        preprocessing.encode({"age": [3]})
    with pytest.raises(ValueError, match=r"x has shape \(2,\), which is one row; add the batch axis with x\[None\]"):
        preprocessing.encode([30, "Oslo"])
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\); \(rows, 2\) is wanted: age, city"):
        preprocessing.encode([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"infinity in column 'age', first in row 1"):
        preprocessing.encode([[1, "Rome"], [np.inf, "Rome"]])


def test_no_missing_value_at_predict_if_training_allowed_none(write):
    preprocessing = Preprocessing.fit(Dataset(write("a,b,label\n1,2,0\n3,4,1\n"), missing="error"))
    with pytest.raises(ValueError, match=r"1 values are missing in column 'b', the first in row 1; the training set"):
        preprocessing.encode([[1, 2], [3, np.nan]])


def test_columns_and_categories(write):
    path = write("id,zip,size,label\n1,10,5,2\n2,20,6,4\n3,10,7,2\n")
    data = Dataset(path, columns=["zip", "size"], categories=["zip", "label"])
    assert data.columns == ("zip", "size")
    assert data.classes == ("2", "4")
    np.testing.assert_array_equal(encoded(data)[:, :2], [[1, 0], [0, 1], [1, 0]])
    # Zeros in front belong to a category.
    data = Dataset(write("zip,label\n007,1\n7,2\n"), categories=["zip"])
    assert list(data.rows().x["zip"]) == ["007", "7"]


@pytest.mark.parametrize("name", ["label", "Target", "CLASS", "y", "category"])
def test_the_label_column_is_found_by_its_usual_names(write, name):
    assert Dataset(write(f"a,{name}\n1,5\n")).labels.tolist() == [5]


def test_the_label_column_by_name_position_or_none(write):
    path = write("a,b,c\n1,2,3\n")
    assert Dataset(path, label="b").labels.tolist() == [2]
    assert Dataset(path, label=-1).labels.tolist() == [3]
    assert Dataset(path, label=0).labels.tolist() == [1]
    assert not Dataset(path, label=False, mode="test").has_labels
    assert Dataset(path, labels=[9]).columns == ("a", "b", "c")


def test_a_file_without_header(write):
    data = Dataset(write("1,2,a\n3,4,b\n"), label=-1)
    assert data.columns == ("0", "1")
    assert list(data.labels) == ["a", "b"]
    # Numbers may name columns, as pandas does by default.
    named = Dataset(write("0,1,y\n1,2,7\n3,4,8\n"))
    assert named.columns == ("0", "1")
    assert Dataset(write("a,label\nx,y\n"), header=False, label=-1, columns=["0"], categories=["0"]).columns == ("0",)


def test_zipped_marked_and_other_delimiters(tmp_path, write):
    with gzip.open(tmp_path / "data.csv.gz", "wt") as file:
        file.write("a;label\n1,5;2\n")
    assert list(Dataset(tmp_path / "data.csv.gz", categories=["a"]).rows().x["a"]) == ["1,5"]
    marked = write("\ufeffa,label\r\n1,2\r\n")
    assert Dataset(marked).columns == ("a",)
    assert Dataset(write("\n\na,label\n1,2\n\n3,4\n")).labels.tolist() == [2, 4]
    latin = tmp_path / "latin.csv"
    latin.write_bytes("a,label\nJosé,1\n".encode("latin-1"))
    assert list(Dataset(latin, encoding="latin-1", categories=["a"]).rows().x["a"]) == ["José"]
    with pytest.raises(ValueError, match=r"is no utf-8: column 'a' holds other bytes; say which"):
        Dataset(latin)


def test_text_columns_are_text(write):
    path = write('text,label\n"one, ""two""",a\nthree,b\n')
    data = Dataset(path)
    assert data.content.kind == "text"
    assert list(data.rows().x) == ['one, "two"', "three"]
    several = write("id,text,other,label\n1,ab,3,0\n2,cd,4,1\n")
    assert list(Dataset(several, text="text").rows().x) == ["ab", "cd"]


def test_very_long_texts(write):
    data = Dataset(write("text,label\n" + "".join(f"{'word ' * 50_000}{i},0\n" for i in range(3))))
    assert [len(text) for text in data.rows().x] == [250_001] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data.csv is empty \(0 bytes\)"),
        ("a,label\n", "has a header and no rows"),
        ("a,b,label\n1,2,0\n3,4\n", "data.csv, line 3: 2 values where 3 are wanted: '3,4'; mend or remove the line"),
        ("a,b,label\n1,2,0\n3,4,1,9\n", "data.csv, line 3: 4 values where 3 are wanted: '3,4,1,9'"),
        ('a,b,label\n"x\ny",2,0\n3,4\n', "data.csv, line 4: 2 values where 3"),
        (
            "a,label\n1,0\n\n2,0\nx,1\n4,1\n5,1\n",
            "column 'a' .number 1. holds numbers, but line 5 has 'x'; mend",
        ),
        ("a,a,label\n1,2,3\n", "the columns 'a' occur twice"),
        ("a,b\n1,2\n", "has no column named label, target, .* label='name' or label=-1 .* Columns: a, b$"),
        ("a,label\n1,\n2,1\n", "the label column 'label' is missing in 1 rows, the first at line 2; fill them in"),
        ("a,label\ninf,1\n2,1\n", "1 infinite values in column 'a', the first at line 2"),
        ("label\n1\n", "has the label column 'label' and no other column"),
        ("a\0b,label\n1,2\n", "is no text: it holds zero bytes"),
    ],
)
def test_broken_files(write, text, message):
    with pytest.raises(ValueError, match=message):
        Dataset(write(text))


def test_a_broken_row_deep_in_a_large_file(write):
    rows = ["1.5,2,0"] * 200_000
    rows[150_000] = "1.5,oops,0"
    with pytest.raises(ValueError, match=r"column 'b' .* line 150002 has 'oops'"):
        Dataset(write("a,b,label\n" + "\n".join(rows) + "\n"))
    rows[150_000] = "1.5,2"
    with pytest.raises(ValueError, match=r"line 150002: 2 values where 3 are wanted"):
        Dataset(write("a,b,label\n" + "\n".join(rows) + "\n"))


def test_types_that_change_deep_in_a_large_file(write):
    # pyarrow guesses from the first block: integers there, a fraction and words far behind.
    rows = [f"{i},2,w{i % 3}" for i in range(900_000)]
    rows[800_000] = "1.25,2,w0"
    data = Dataset(write("a,label,c\n" + "\n".join(rows) + "\n"))
    assert data.rows().x["a"][800_000] == 1.25


def test_errors_of_options(write):
    path = write("aa,bb,label\n1,x,0\n,y,1\n")
    with pytest.raises(ValueError, match=r"unknown label column of .*data.csv 'lable'; did you mean 'label'"):
        Dataset(path, label="lable")
    with pytest.raises(ValueError, match=r"label=5, but .* has 3 columns: aa, bb, label"):
        Dataset(path, label=5)
    with pytest.raises(ValueError, match=r"unknown column of .* 'bbb'; did you mean 'bb'"):
        Dataset(path, columns=["bbb"])
    with pytest.raises(ValueError, match=r"1 values are missing in aa, the first in 'aa' at line 3; missing='mean'"):
        Dataset(path, missing="error")
    with pytest.raises(ValueError, match=r"or label=False if there are none"):
        Dataset(write("a\n1\n", "no_label.csv"), mode="test")
    with pytest.raises(ValueError, match=r"has 2 rows, and labels= has 3"):
        Dataset(path, labels=[1, 2, 3])
    with pytest.raises(ValueError, match=r"leaves no row"):
        Dataset(write("a,label\n,1\n", "gaps.csv"), missing="drop")
    with pytest.raises(ValueError, match=r"length= is an option of audio; this source was read as csv"):
        Dataset(path, length=3)


LOOKALIKES = {
    "numbers": ["1,5", "1.000,50", "1'000", "1 000 000", "$12.50", "12 %", "-3,5e+2", "3 €"],
    "dates or times": [
        "2024-12-31", "2024/12/31 10:30", "2024-12-31T10:30:00Z", "31.12.2024", "12/31/24", "2024-12", "10:30",
        "10:30:00.5", "3 days 04:05:06",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("what", "cell"), [(what, cell) for what, cells in LOOKALIKES.items() for cell in cells])
def test_numbers_and_dates_do_not_pass_for_categories(write, what, cell):
    text = f'when,size,label\n"{cell}",1,0\n"{cell}",2,1\nother,3,1\n'
    with pytest.raises(ValueError, match=rf"the text column 'when' holds {what}, .* at line 2: make numbers of them"):
        Dataset(write(text))
    assert Dataset(write(text), columns=["size"]).columns == ("size",)
    preprocessing = Preprocessing.fit(Dataset(write(text), categories=["when"]))
    assert preprocessing.shape == (3,)


@pytest.mark.parametrize("cell", ["red", "A12", "1.2.3", "3-room", "10-20", "v1", "12a", "-", "1st", "days"])
def test_words_with_digits_are_categories(write, cell):
    data = Dataset(write(f"kind,size,label\n{cell},1,0\n{cell},2,1\nother,3,1\n"))
    assert Preprocessing.fit(data).shape == (3,)


def test_a_decimal_comma(write):
    text = "size;n;label\n1,5;2;0\n-2,25e1;3;1\n?;4;1\n"
    data = Dataset(write(text), decimal=",", missing="zero", normalize=None)
    np.testing.assert_array_equal(encoded(data), [[1.5, 2], [-22.5, 3], [0, 4]])
    # Without a header the comma is more frequent than the delimiter.
    bare = Dataset(write("1,5;2,5;0,5\n3,5;4,5;1,5\n"), decimal=",", label=-1)
    np.testing.assert_array_equal(bare.rows().x, [[1.5, 2.5], [3.5, 4.5]])
    with pytest.raises(ValueError, match=r"column 'a' .number 1. holds numbers, but line 4 has '1.5'"):
        Dataset(write("a;label\n1,5;0\n2,5;1\n1.5;1\n"), decimal=",")
    for wrong in (";", "", "10"):
        with pytest.raises(ValueError, match=r"decimal is the one sign before a fraction, .* not the delimiter"):
            Dataset(write(text), decimal=wrong, delimiter=";")


def test_a_text_column_of_too_many_categories(write):
    path = write("name,size,label\n" + "".join(f"n{i},1,0\n" for i in range(300)))
    with pytest.raises(ValueError, match=r"'name' has 300 different values .* leave it out with columns=\[...\]"):
        Preprocessing.fit(Dataset(path))


def test_a_column_without_values(write):
    with pytest.raises(ValueError, match=r"every value of the column 'a' is missing"):
        Preprocessing.fit(Dataset(write("a,b,label\n,1,0\n,2,1\n")))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", ["columns", "categories", "text"])
def test_columns_are_called_by_name(tmp_path, option):
    path = tmp_path / "plain.csv"
    path.write_text("1,2,0\n3,4,1\n")
    with pytest.raises(ValueError, match=f"{option}= wants text, got .*-1.*are called '0', '1'"):
        Dataset(path, label=-1, **{option: -1 if option == "text" else [-1]})
