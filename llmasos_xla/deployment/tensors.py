"""One tensor of the Open Inference Protocol v2: its datatype, its JSON data and its bytes.

JSON data may be nested like the shape or flat in row-major order. As bytes, numbers are little-endian in row-major
order, and each text is four bytes of length, then UTF-8. null is a missing value: NaN among floats, None among texts.
"""

import contextlib
import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

DATATYPES: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""Datatype of the protocol: NumPy dtype. BYTES is an object array of str."""

_MOST_AXES = 32
_NULL = type(None)


def datatype_of(array: np.ndarray) -> str:
    """The protocol's name of an array's dtype.

    >>> datatype_of(np.zeros(3, np.float32)), datatype_of(np.array(["a"], object))
    ('FP32', 'BYTES')
    """
    name = "object" if array.dtype.kind in "OUS" else array.dtype.name
    for datatype, dtype in DATATYPES.items():
        if dtype == name:
            return datatype
    raise TypeError(f"tensor: dtype {array.dtype} has no name in the protocol; it has {', '.join(DATATYPES)}")


def from_json(data: Any, shape: Sequence[int], datatype: str, who: str = "tensor") -> np.ndarray:
    """The array of `shape` that JSON `data` holds, nested or flat.

    Raises ValueError: a shape that is none, data of another length or nesting, values that are not of the datatype.

    >>> from_json([[1, 2], [3, 4]], [2, 2], "INT32").tolist(), from_json([1, 2, 3, 4], [2, 2], "INT32").tolist()
    ([[1, 2], [3, 4]], [[1, 2], [3, 4]])
    """
    shape = _checked_shape(shape, who)
    _check_datatype(datatype, who)
    flat = _flat(data, shape, who)
    _check_kinds(flat, datatype, who)
    return _from_flat(flat, datatype, who).reshape(shape)


def from_bytes(raw: bytes | memoryview, shape: Sequence[int], datatype: str, who: str = "tensor") -> np.ndarray:
    """The array of `shape` that the bytes hold.

    Raises ValueError: another number of bytes than shape and datatype make, a BOOL other than 0 and 1, text that is no
    UTF-8.
    """
    shape = _checked_shape(shape, who)
    _check_datatype(datatype, who)
    if datatype == "BYTES":
        return _texts(raw, math.prod(shape), who).reshape(shape)
    dtype = _dtype(datatype)
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise ValueError(f"{who}: {len(raw)} bytes came; {datatype} of shape {list(shape)} has {wanted}")
    if datatype == "BOOL":
        values = np.frombuffer(raw, np.uint8)
        if values.size and values.max() > 1:
            raise ValueError(f"{who}: a BOOL is the byte 0 or 1, {values.max()} came")
        return values.astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype).reshape(shape)


def to_bytes(array: np.ndarray) -> bytes:
    """The bytes of an array; the inverse of `from_bytes`."""
    if array.dtype.kind in "OUS":
        encoded = [str(text).encode() for text in array.flat]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else None).tobytes()


def to_json(array: np.ndarray) -> Any:
    """Flat data in row-major order, as orjson writes it with OPT_SERIALIZE_NUMPY."""
    flat = np.ascontiguousarray(array).reshape(-1)
    # orjson knows no bfloat16, objects or foreign byte orders; the rest it writes straight from memory.
    return flat if flat.dtype.kind in "biuf" and flat.dtype.isnative else flat.tolist()


def _checked_shape(shape: Any, who: str) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{who}: the shape is a list of whole numbers >= 0, {_short(shape)} came")
    if len(shape) > _MOST_AXES:
        raise ValueError(f"{who}: the shape has {len(shape)} axes; at most {_MOST_AXES} are allowed")
    if 0 in shape:
        raise ValueError(f"{who}: shape {_short(shape)} holds no value; at least one row is wanted")
    return tuple(shape)


def _check_datatype(datatype: Any, who: str) -> None:
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ValueError(f"{who}: unknown datatype {_short(datatype)}; known: {', '.join(DATATYPES)}")


def _dtype(datatype: str) -> np.dtype:
    if datatype == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(DATATYPES[datatype])


def _flat(data: Any, shape: tuple[int, ...], who: str) -> list[Any]:
    if type(data) is not list:
        raise ValueError(f"{who}: data is a list, {type(data).__name__} came")
    if not (data and type(data[0]) is list):
        if len(data) != math.prod(shape):
            raise ValueError(f"{who}: {len(data)} values came; shape {list(shape)} has {math.prod(shape)}")
        return data
    level = [data]
    for axis, length in enumerate(shape):
        # A loop over axes, not a recursion: the sender chooses how deep the lists are nested.
        if any(type(row) is not list for row in level):
            raise ValueError(f"{who}: the data are lists in some places and values in others at axis {axis}")
        if lengths := {len(row) for row in level} - {length}:
            raise ValueError(
                f"{who}: the data have length {min(lengths)} at axis {axis}; shape {list(shape)} has {length} there"
            )
        level = list(itertools.chain.from_iterable(level))
    return level


def _check_kinds(flat: list[Any], datatype: str, who: str) -> None:
    if datatype == "BYTES":
        allowed, wanted = {str, _NULL}, "texts"
    elif datatype == "BOOL":
        allowed, wanted = {bool}, "true or false"
    elif "INT" in datatype:
        allowed, wanted = {int}, "whole numbers"
    else:
        allowed, wanted = {int, float, _NULL}, "numbers"
    if wrong := set(map(type, flat)) - allowed:
        value = next(v for v in flat if type(v) in wrong)
        raise ValueError(f"{who}: {datatype} data are {wanted}, {_short(value)} came")


def _from_flat(flat: list[Any], datatype: str, who: str) -> np.ndarray:
    if datatype == "BYTES":
        array = np.empty(len(flat), object)
        array[:] = flat
        return array
    dtype = _dtype(datatype)
    if datatype == "UINT8":
        # Pictures: three times as fast as numpy.array.
        with contextlib.suppress(ValueError):
            return np.frombuffer(bytes(flat), np.uint8)
    if "FP" not in datatype and datatype != "BF16":
        try:
            return np.array(flat, dtype)
        except OverflowError:
            least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
            bad = next(v for v in flat if not least <= v <= most)
            raise ValueError(f"{who}: {bad} does not fit {datatype}, {least} to {most}") from None
    exact = np.array(flat, np.float64)
    with np.errstate(over="ignore"):
        array = exact.astype(dtype)
    too_large = np.isinf(array.astype(np.float64))
    if too_large.any():
        raise ValueError(f"{who}: {exact[too_large][0]} does not fit {datatype}")
    return array


def _texts(raw: bytes | memoryview, count: int, who: str) -> np.ndarray:
    texts, at = [], 0
    while at < len(raw):
        if len(raw) - at < 4 or len(raw) - at - 4 < (length := struct.unpack_from("<I", raw, at)[0]):
            raise ValueError(f"{who}: the bytes of text {len(texts)} are cut off")
        try:
            texts.append(bytes(raw[at + 4 : at + 4 + length]).decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{who}: text {len(texts)} is no UTF-8: {error.reason}") from None
        at += 4 + length
    if len(texts) != count:
        raise ValueError(f"{who}: the bytes hold {len(texts)} texts; the shape has {count}")
    array = np.empty(count, object)
    array[:] = texts
    return array


def _short(value: Any) -> str:
    # Not repr of the whole: it may be megabytes, or nested too deep for repr.
    if isinstance(value, list | tuple):
        return str(list(value)) if len(value) <= 8 and all(type(v) in (int, float) for v in value) else "a list"
    return "an object" if isinstance(value, dict) else repr(value)[:60]
