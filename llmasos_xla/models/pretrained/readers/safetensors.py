"""Hugging Face's safetensors: a JSON header of names, dtypes, shapes and offsets, then the bytes."""

import json
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from llmasos_xla.models.pretrained.readers.views import Arrays, mapped, window

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
_MOST_HEADER_BYTES = 100_000_000


def looks_like(start: bytes) -> bool:
    """Whether a file that starts so may be one."""
    return len(start) > 8 and start[8:9] == b"{"


def read(path: str | os.PathLike) -> Arrays:
    """The arrays of one file, as windows on it; raises ValueError with the reason for a damaged one."""
    name = pathlib.Path(path).name
    memory = mapped(path)
    try:
        return Arrays("safetensors", _views(memory))
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


def _views(memory: np.ndarray) -> dict[str, np.ndarray]:
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
