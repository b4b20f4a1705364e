"""Tensors: what is written is read back, and what is no tensor is refused with the reason."""

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmasos_xla.deployment import tensors

NUMBERS = [d for d in tensors.DATATYPES if d not in ("BYTES", "BF16")]
SHAPES = hnp.array_shapes(max_dims=4, max_side=4)


@st.composite
def arrays(draw):
    datatype = draw(st.sampled_from([*NUMBERS, "BYTES"]))
    if datatype == "BYTES":
        texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        return draw(hnp.arrays(object, draw(SHAPES), elements=texts))
    dtype = np.dtype(tensors.DATATYPES[datatype])
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return draw(hnp.arrays(dtype, draw(SHAPES), elements=hnp.from_dtype(dtype, **finite)))


@settings(max_examples=150, deadline=None)
@given(arrays(), st.booleans())
def test_json_round_trip_is_exact(array, nested):
    data = array.tolist() if nested else tensors.to_json(array)
    read = orjson.loads(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))
    back = tensors.from_json(read, list(array.shape), tensors.datatype_of(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@settings(max_examples=100, deadline=None)
@given(arrays())
def test_bytes_round_trip_is_exact(array):
    back = tensors.from_bytes(tensors.to_bytes(array), list(array.shape), tensors.datatype_of(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_bytes_carry_what_json_has_not():
    import ml_dtypes

    x = np.array([np.nan, np.inf, -0.0], np.float32)
    np.testing.assert_array_equal(tensors.from_bytes(tensors.to_bytes(x), [3], "FP32"), x)
    y = x.astype(ml_dtypes.bfloat16)
    back = tensors.from_bytes(tensors.to_bytes(y), [3], tensors.datatype_of(y))
    assert back.dtype == ml_dtypes.bfloat16
    assert back.tobytes() == y.tobytes()
    assert tensors.from_json([1.0, None], [2], "BF16").dtype == ml_dtypes.bfloat16


def test_foreign_byte_order_and_strides():
    x = np.arange(12, dtype=">i4").reshape(3, 4).T
    np.testing.assert_array_equal(tensors.from_bytes(tensors.to_bytes(x), [4, 3], "INT32"), x)
    assert orjson.loads(orjson.dumps(tensors.to_json(x), option=orjson.OPT_SERIALIZE_NUMPY)) == x.ravel().tolist()


def test_null_is_missing():
    assert np.isnan(tensors.from_json([1.5, None], [2], "FP64")[1])
    assert tensors.from_json(["a", None], [2], "BYTES").tolist() == ["a", None]


@pytest.mark.parametrize(
    ("data", "shape", "datatype", "reason"),
    [
        ([1, 2, 3], [2, 2], "FP32", "t: 3 values came; shape [2, 2] has 4"),
        ([[1, 2], [3]], [2, 2], "FP32", "t: the data have length 1 at axis 1; shape [2, 2] has 2 there"),
        ([[1, 2], 3], [2, 2], "FP32", "t: the data are lists in some places and values in others at axis 1"),
        ([[[1], [2]], [[3], [4]]], [2, 2], "FP32", "t: FP32 data are numbers, [1] came"),
        ([1, "2"], [2], "FP32", "t: FP32 data are numbers, '2' came"),
        ([1, True], [2], "INT32", "t: INT32 data are whole numbers, True came"),
        ([1.5], [1], "INT32", "t: INT32 data are whole numbers, 1.5 came"),
        ([None], [1], "INT32", "t: INT32 data are whole numbers, None came"),
        ([1], [1], "BOOL", "t: BOOL data are true or false, 1 came"),
        ([1], [1], "BYTES", "t: BYTES data are texts, 1 came"),
        ([{}], [1], "FP32", "t: FP32 data are numbers, an object came"),
        ([300], [1], "UINT8", "t: 300 does not fit UINT8, 0 to 255"),
        ([1e39], [1], "FP32", "t: 1e+39 does not fit FP32"),
        ([1e6], [1], "FP16", "t: 1000000.0 does not fit FP16"),
        (7, [1], "FP32", "t: data is a list, int came"),
        ([], [0, 3], "FP32", "t: shape [0, 3] holds no value; at least one row is wanted"),
        ([1], [-1], "FP32", "t: the shape is a list of whole numbers >= 0, [-1] came"),
        ([1], [1.0], "FP32", "t: the shape is a list of whole numbers >= 0, [1.0] came"),
        ([1], [True], "FP32", "t: the shape is a list of whole numbers >= 0, a list came"),
        ([1], "1", "FP32", "t: the shape is a list of whole numbers >= 0, '1' came"),
        ([1], [1] * 33, "FP32", "t: the shape has 33 axes; at most 32 are allowed"),
        ([1], [10**18] * 4, "FP32", f"t: 1 values came; shape {[10**18] * 4} has {10**72}"),
        ([1], [1], "FLOAT", f"t: unknown datatype 'FLOAT'; known: {', '.join(tensors.DATATYPES)}"),
        ([1], [1], ["FP32"], f"t: unknown datatype a list; known: {', '.join(tensors.DATATYPES)}"),
    ],
)
def test_what_json_is_refused(data, shape, datatype, reason, unchecked):
    with pytest.raises(ValueError) as caught:
        tensors.from_json(data, shape, datatype, "t")
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("raw", "shape", "datatype", "reason"),
    [
        (b"123", [1], "FP32", "t: 3 bytes came; FP32 of shape [1] has 4"),
        (b"\x02", [1], "BOOL", "t: a BOOL is the byte 0 or 1, 2 came"),
        (b"\x05\0\0\0ab", [1], "BYTES", "t: the bytes of text 0 are cut off"),
        (b"\xff\xff\xff\xffab", [1], "BYTES", "t: the bytes of text 0 are cut off"),
        (b"\x01\0\0", [1], "BYTES", "t: the bytes of text 0 are cut off"),
        (b"\x01\0\0\0\xff", [1], "BYTES", "t: text 0 is no UTF-8: invalid start byte"),
        (b"\x01\0\0\0a", [2], "BYTES", "t: the bytes hold 1 texts; the shape has 2"),
    ],
)
def test_what_bytes_are_refused(raw, shape, datatype, reason):
    with pytest.raises(ValueError) as caught:
        tensors.from_bytes(raw, shape, datatype, "t")
    assert str(caught.value) == reason


def test_a_dtype_without_a_name_is_refused():
    with pytest.raises(TypeError, match="dtype complex64 has no name in the protocol; it has BOOL, UINT8"):
        tensors.datatype_of(np.zeros(1, np.complex64))
