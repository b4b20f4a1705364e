"""What `predict` takes becomes the tensors that the server reads back as the same input."""

import numpy as np
import pytest

from llmasos_xla.data import Dataset, Preprocessing
from llmasos_xla.data.array_input import ArrayInput
from llmasos_xla.deployment.faces import _inputs
from llmasos_xla.deployment.raw_input import to_tensors


def test_several_inputs_by_name():
    parts = (("image", ArrayInput((2, 2), "uint8", scale=1 / 255)), ("ids", ArrayInput((3,), "int32", free=(0,))))
    preprocessing = Preprocessing(parts)
    assert [tensor.metadata() for tensor in _inputs(preprocessing.input)] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, 2, 2]},
        {"name": "ids", "datatype": "INT32", "shape": [-1, -1]},
    ]
    x = {"image": np.ones((1, 2, 2), np.uint8), "ids": [[1, 2, 3, 4]]}
    tensors = to_tensors(x, preprocessing)
    assert {name: (a.shape, a.dtype.name) for name, a in tensors.items()} == {
        "image": ((1, 2, 2), "uint8"),
        "ids": ((1, 4), "int64"),
    }
    with pytest.raises(ValueError, match="predict: a dict of the inputs image, ids is wanted, ndarray came"):
        to_tensors(np.ones(3), preprocessing)


def test_a_frame_of_pixels_is_put_in_order():
    import pandas as pd

    frame = pd.DataFrame(np.arange(12).reshape(3, 4), columns=[f"pixel{i}" for i in range(4)])
    preprocessing = Preprocessing.fit(Dataset(frame, mode="test", label=False))
    tensors = to_tensors(frame[frame.columns[::-1]], preprocessing)
    np.testing.assert_array_equal(tensors["input"], frame.to_numpy())


def test_missing_values_of_a_table():
    import pandas as pd

    frame = pd.DataFrame({"a": [1.0, 2.0, None], "b": ["x", "y", "x"]})
    preprocessing = Preprocessing.fit(Dataset(frame, mode="test", label=False))
    rows = np.array([[None, "x"], [1, None], [np.nan, "y"]], object)
    tensors = to_tensors(rows, preprocessing)
    np.testing.assert_array_equal(tensors["a"], [np.nan, 1.0, np.nan])
    assert tensors["b"].tolist() == ["x", None, "y"]
    expected = preprocessing.encode({"a": rows[:, 0], "b": rows[:, 1]})
    np.testing.assert_array_equal(preprocessing.encode(tensors), expected)
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\); \(rows, 2\) is wanted: a, b"):
        to_tensors(np.array([["x", "y", "z"]], object), preprocessing)
