"""Every reader on real data; skipped where LLMASOS_DATA does not hold them."""

import tarfile

import numpy as np
import pytest

from llmasos_xla.data import Dataset, Preprocessing
from llmasos_xla.data.batches import batches


@pytest.fixture
def get(shared_data):
    def get(*parts):
        path = shared_data.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"{path} is not there")
        return path

    return get


def first_group(data, preprocessing, **options):
    with batches(data, preprocessing, batch_size=8, group=2, **options) as source:
        return next(source)


def test_fashion_mnist_as_idx(get):
    data = Dataset(get("fashion_mnist", "t10k-images-idx3-ubyte.gz"), mode="test")
    preprocessing = Preprocessing.fit(data, (28, 28, 1))
    group = first_group(data, preprocessing)
    assert group.x.shape == (2, 8, 28, 28, 1)
    assert group.y[0].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]
    assert preprocessing.describe() == "uint8 (rows, 28, 28, 1), times 1/255"


def test_fashion_mnist_as_csv_gives_the_same_batches(get, tmp_path):
    images = Dataset(get("fashion_mnist", "t10k-images-idx3-ubyte.gz")).only(np.arange(500))
    rows = images.rows()
    table = np.concatenate([rows.y[:, None], rows.x.reshape(500, -1)], axis=1)
    path = tmp_path / "train.csv"
    np.savetxt(path, table, "%d", ",", header=",".join(["label", *(f"pixel{i}" for i in range(784))]), comments="")
    from_csv = Dataset(path)
    a = first_group(images, Preprocessing.fit(images, (784,)))
    b = first_group(from_csv, Preprocessing.fit(from_csv, (784,)))
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.y, b.y)


def test_banking77_as_text(get):
    train, test = (Dataset(get("banking77", f"{mode}.csv"), mode=mode) for mode in ("train", "test"))
    assert (len(train), len(test)) == (10003, 3080)
    assert len(train.classes) == 77
    preprocessing = Preprocessing.fit(train)
    group = first_group(test, preprocessing)
    assert group.x.dtype == np.int32
    assert preprocessing.decode_labels(group.y[0, :1]).tolist() == [test.labels[0]]
    words = preprocessing.input.decode(group.x[0, :1])[0]
    assert words == "how do i locate my card ?"
    # Most words of the test questions are known from training.
    assert (preprocessing.encode(test.rows().x) == 1).sum() < 0.02 * (preprocessing.encode(test.rows().x) > 0).sum()


def test_sonar_has_no_header_and_text_labels(get):
    data = Dataset(get("timeseries", "sonar.csv"), label=-1)
    assert data.classes == ("M", "R")
    preprocessing = Preprocessing.fit(data)
    x = preprocessing.encode(data.rows().x)
    assert x.shape == (208, 60)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-5)


def test_breast_cancer_has_question_marks_and_classes_2_and_4(get):
    data = Dataset(get("timeseries", "breast-cancer-wisconsin.csv"), label=-1, categories=["9"])
    assert data.classes == ("2", "4")
    assert np.isnan(data.rows().x).sum() == 16
    assert np.isfinite(Preprocessing.fit(data).encode(data.rows().x)).all()


def test_pollution_has_gaps_words_and_missing_labels(get):
    path = get("timeseries", "pollution.csv.gz")
    with pytest.raises(ValueError, match=r"label column 'pm2.5' is missing in 2067 rows, the first at line 2"):
        Dataset(path, label="pm2.5")
    data = Dataset(path, label="pm2.5", missing="drop")
    assert len(data) == 43824 - 2067
    preprocessing = Preprocessing.fit(data)
    assert preprocessing.shape == (11 + 4,)
    assert preprocessing.input.columns[-4].categories == ("NE", "NW", "SE", "cv")


def test_gtsrb_as_npz(get):
    train, test = (Dataset(get("gtsrb32", "gtsrb32.npz"), mode=mode) for mode in ("train", "test"))
    assert (len(train), len(test)) == (2614, 903)
    preprocessing = Preprocessing.fit(train, (32, 32, 3))
    assert first_group(train, preprocessing).x.shape == (2, 8, 32, 32, 3)
    assert preprocessing.encode_labels(train.labels).max() == 42


def test_spoken_digits_as_audio(get, tmp_path):
    with tarfile.open(get("fsdd", "fsdd.tar.gz")) as archive:
        archive.extractall(tmp_path, [m for m in archive.getmembers() if "_jackson_1" in m.name], filter="data")
    data = Dataset(tmp_path / "recordings", label_from=r"^(\d)_", length=4000)
    assert data.classes == tuple(map(str, range(10)))
    preprocessing = Preprocessing.fit(data, (4000, 1), tokens=False)
    group = first_group(data, preprocessing)
    assert group.x.shape == (2, 8, 4000, 1)
    assert 0.01 < np.abs(group.x).max() <= 1


def test_movie_lines_by_class(get):
    data = Dataset({name: get("rt_polarity", f"rt-polarity.{name}") for name in ("neg", "pos")})
    assert len(data) == 10662
    assert np.bincount(data.labels).tolist() == [5331, 5331]


def test_names_by_character(get):
    data = Dataset(get("names", "names.txt"), level="character")
    preprocessing = Preprocessing.fit(data)
    assert preprocessing.shape == (15,)
    assert preprocessing.vocabulary_size == 28
    assert preprocessing.input.decode(preprocessing.encode(["emma"])) == ["emma"]
