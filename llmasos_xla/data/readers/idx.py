"""Reads idx files, the format of MNIST: a magic number, the sizes of the axes, the bytes."""

import dataclasses
import gzip
import math
import pathlib
import struct
import zlib
from typing import Any

import numpy as np

from llmasos_xla.data.readers.arrays import as_array, from_arrays
from llmasos_xla.data.readers.content import Content
from llmasos_xla.data.readers.files import existing

# The third byte of the magic number; values are big-endian.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def from_idx(path: pathlib.Path, labels: Any) -> Content:
    """Inputs of an idx file, with the labels at the path `labels`, or in the file of the usual name beside it."""
    x = read_idx(path)
    if labels is None:
        found = labels_beside(path)
        y = None if found is None else read_idx(found)
    else:
        is_file = isinstance(labels, str | pathlib.Path)
        y = read_idx(existing(labels)) if is_file else as_array(labels, "Dataset: labels")
    return dataclasses.replace(from_arrays(x, y), name=str(path))


def labels_beside(path: pathlib.Path) -> pathlib.Path | None:
    """`train-labels-idx1-ubyte.gz` for `train-images-idx3-ubyte.gz`, if there is such a file, zipped or not."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    names = [name, name.removesuffix(".gz"), f"{name}.gz"] if name != path.name else []
    return next((path.with_name(n) for n in names if path.with_name(n).is_file()), None)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The array of an idx or idx.gz file.

    Raises ValueError for a file that is damaged, cut short, or no idx file.
    """
    return parse_idx(read_bytes(path), str(path))


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file, unzipped if it is gzip."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"Dataset: {path} is a damaged gzip file ({len(data)} bytes): {error}; fetch it again"
        ) from None


def parse_idx(data: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an idx file.

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "labels")
    array([7, 9], dtype=uint8)
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES or not data[3]:
        raise ValueError(
            f"Dataset: {name} is no idx file: it begins with {data[:4].hex(' ') or 'nothing'}, not 00 00 08 03"
        )
    dtype, axes = np.dtype(TYPES[data[2]]), data[3]
    start = 4 + 4 * axes
    if len(data) < start:
        raise ValueError(f"Dataset: {name} is cut short: {len(data)} bytes do not hold the sizes of {axes} axes")
    shape = struct.unpack(f">{axes}I", data[4:start])
    size = math.prod(shape) * dtype.itemsize
    if len(data) - start != size:
        problem = "cut short" if len(data) - start < size else "too long"
        raise ValueError(
            f"Dataset: {name} is {problem}: {' x '.join(map(str, shape))} {dtype.name} take {size} bytes, "
            f"{len(data) - start} follow the header"
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
