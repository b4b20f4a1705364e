"""Hugging Face's safetensors: a JSON header of names, dtypes, shapes and offsets, then the bytes."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from llmasos_xla.storage.views import Arrays, mapped, window

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
NAMES = {dtype.newbyteorder("="): name for name, dtype in DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000


def looks_like(start: bytes) -> bool:
    """Whether a file that starts so may be one."""
    return len(start) > 8 and start[8:9] == b"{"


def read(path: str | os.PathLike) -> Arrays:
    """The arrays of one file, as windows on it; raises ValueError with the reason for a damaged one."""
    name = pathlib.Path(path).name
    memory = mapped(path)
    try:
        return Arrays("safetensors", views(memory))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"pretrained: the safetensors file {name!r} is damaged or cut off: {error}") from error


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts that stand beside the arrays of one file; raises ValueError for a damaged one."""
    try:
        texts = _header(mapped(path))[0].get("__metadata__") or {}
    except (ValueError, RecursionError) as error:
        name = pathlib.Path(path).name
        raise ValueError(f"pretrained: the safetensors file {name!r} is damaged or cut off: {error}") from error
    return {k: v for k, v in texts.items() if isinstance(v, str)} if isinstance(texts, dict) else {}


def pieces(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The bytes of a file of these arrays, piece by piece, so that no second copy of them is made.

    Raises TypeError for a dtype that the format has no name for.

    >>> whole = b"".join(pieces({"x": np.arange(3, dtype=np.int32)}))
    >>> views(np.frombuffer(whole, np.uint8))
    {'x': array([0, 1, 2], dtype=int32)}
    """
    header: dict[str, Any] = {}
    at = 0
    # Wide types first, as the format's own writer has it, so that every array is aligned.
    ordered = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in ordered:
        array = arrays[name]
        kind = NAMES.get(array.dtype.newbyteorder("="))
        if kind is None:
            raise TypeError(f"safetensors: {name!r} is of dtype {array.dtype}; known are {', '.join(map(str, NAMES))}")
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        little = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
        yield little.reshape(-1).view(np.uint8).data


def _header(memory: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """What stands before the bytes of the arrays, and these."""
    if memory.size < 8:
        raise ValueError("it is shorter than its first number")
    length = int(memory[:8].view("<u8")[0])
    if length > min(_MOST_HEADER_BYTES, memory.size - 8):
        raise ValueError(f"its header claims {length} bytes, the file has {memory.size}")
    header = json.loads(memory[8 : 8 + length].tobytes(), object_pairs_hook=_unrepeated)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header, memory[8 + length :]


def views(memory: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays in the bytes [size] uint8 of a file, as windows on them.

    Raises ValueError, KeyError, TypeError, RecursionError or OverflowError for damaged bytes.
    """
    header, data = _header(memory)
    header.pop("__metadata__", None)
    arrays = {}
    for name, about in header.items():
        dtype = DTYPES.get(about["dtype"])
        if dtype is None:
            raise ValueError(f"{name!r} has the dtype {str(about['dtype'])[:40]!r}; known are {', '.join(DTYPES)}")
        shape, (first, last) = about["shape"], about["data_offsets"]
        if not all(type(n) is int for n in (*shape, first, last)):
            raise ValueError(f"{name!r} has sizes that are no whole numbers")
        arrays[name] = window(data, dtype, shape, first)
        if arrays[name].nbytes != last - first:
            raise ValueError(
                f"{name!r} {tuple(shape)} takes {arrays[name].nbytes} bytes, the header says {last - first}"
            )
    return arrays


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return table
