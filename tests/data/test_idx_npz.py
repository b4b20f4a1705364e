import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmasos_xla.data import Dataset
from llmasos_xla.data.readers.idx import TYPES, parse_idx

CODES = {np.dtype(name).newbyteorder("=").name: code for code, name in TYPES.items()}


def idx(array):
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda name: hnp.arrays(
        name, hnp.array_shapes(max_dims=4, max_side=5), elements={"allow_nan": False} if "f" in name else None
    )
)


@settings(max_examples=40, deadline=None)
@given(arrays)
def test_idx_round_trip(array):
    again = parse_idx(idx(array), "memory")
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@settings(max_examples=20, deadline=None)
@given(arrays, st.data())
def test_idx_cut_anywhere_is_refused(array, data):
    whole = idx(array)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ValueError, match=r"memory is (no idx file|cut short)"):
        parse_idx(cut, "memory")


X = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
Y = np.arange(6, dtype=np.uint8)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["train-{}-idx{}-ubyte", "{}.idx{}"])
def test_labels_are_found_beside_images(tmp_path, zipped, name):
    end = ".gz" if zipped else ""
    write = gzip.compress if zipped else bytes
    images, labels = tmp_path / (name.format("images", 3) + end), tmp_path / (name.format("labels", 1) + end)
    images.write_bytes(write(idx(X)))
    labels.write_bytes(write(idx(Y)))
    data = Dataset(images, kind="idx")
    np.testing.assert_array_equal(data.rows().x, X)
    np.testing.assert_array_equal(data.labels, Y)
    np.testing.assert_array_equal(Dataset(images, labels, kind="idx").labels, Y)
    np.testing.assert_array_equal(Dataset(images, Y[::-1], kind="idx").labels, Y[::-1])
    labels.unlink()
    assert not Dataset(images, kind="idx").has_labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(X))[:-20], "a-idx3-ubyte is a damaged gzip file"),
        (gzip.compress(idx(X))[:30] + b"garbage" + gzip.compress(idx(X))[37:], "is a damaged gzip file"),
        (idx(X)[:-1], "is cut short: 6 x 4 x 5 uint8 take 120 bytes, 119 follow the header"),
        (idx(X) + b"1", "is too long: 6 x 4 x 5 uint8 take 120 bytes, 121 follow"),
        (b"\x89PNG", "is no idx file: it begins with 89 50 4e 47"),
        (b"", "is no idx file: it begins with nothing"),
        (idx(X)[:9], "9 bytes do not hold the sizes of 3 axes"),
        (idx(X[:0]), "holds no rows"),
    ],
)
def test_damaged_idx(tmp_path, content, message):
    path = tmp_path / "a-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Dataset(path)


def test_a_hostile_idx_header_does_not_allocate(tmp_path):
    path = tmp_path / "a-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(ValueError, match=r"cut short"):
        Dataset(path)


@settings(max_examples=20, deadline=None)
@given(hnp.arrays("float32", (5, 3), elements={"allow_nan": False, "allow_infinity": False}))
def test_npz_round_trip(tmp_path_factory, x):
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    np.savez_compressed(path, x=x, y=np.arange(5))
    np.testing.assert_array_equal(Dataset(path).rows().x, x)
    np.testing.assert_array_equal(Dataset(path).labels, np.arange(5))


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_npz_parts_by_mode(tmp_path, names):
    path = tmp_path / "data.npz"
    parts = {}
    for mode, rows in (("train", 5), ("test", 2)):
        parts[names[0].format(mode)] = X[:rows]
        parts[names[1].format(mode)] = Y[:rows]
    np.savez(path, **parts)
    assert len(Dataset(path)) == 5
    assert len(Dataset(path, mode="test")) == 2
    assert len(Dataset(path, x_key=names[0].format("test"), y_key=names[1].format("test"))) == 2


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.testing.assert_array_equal(Dataset(tmp_path / "x.npy", tmp_path / "y.npy").labels, Y)
    assert not Dataset(tmp_path / "x.npy").has_labels


class Runs:
    def __reduce__(self):
        return (print, ("this ran",))


def test_damaged_npz_and_npy(tmp_path, capsys):
    npz, npy = tmp_path / "a.npz", tmp_path / "a.npy"
    np.savez(npz, x=np.array([Runs()], object))
    with pytest.raises(ValueError, match=r"the array 'x' of .*a.npz holds pickled Python objects, which can run code"):
        Dataset(npz)
    np.save(npy, np.array([Runs()], object))
    with pytest.raises(ValueError, match=r"a.npy holds pickled Python objects"):
        Dataset(npy)
    assert capsys.readouterr().out == ""
    np.savez_compressed(npz, x=X)
    whole = npz.read_bytes()
    npz.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a.npz is damaged or no .npz file"):
        Dataset(npz)
    at = whole.index(b"x.npy") + 60
    npz.write_bytes(whole[:at] + b"\0\0\0\0\0\0\0\0" + whole[at + 8 :])
    with pytest.raises(ValueError, match=r"damaged"):
        Dataset(npz)
    np.save(npy, X)
    npy.write_bytes(npy.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a.npy is damaged or no NumPy file"):
        Dataset(npy)
    np.savez(npz, first=X, second=Y)
    with pytest.raises(ValueError, match=r"holds the arrays first, second; say which .* x_key=, y_key="):
        Dataset(npz)
    with pytest.raises(ValueError, match=r"unknown array of .* 'frist'; did you mean 'first'"):
        Dataset(npz, x_key="frist")
    with pytest.raises(ValueError, match=r"is a .npz archive"):
        Dataset(npz, kind="npy")
    np.save(npy, X)
    with pytest.raises(ValueError, match=r"is a single array"):
        Dataset(npy, kind="npz")
