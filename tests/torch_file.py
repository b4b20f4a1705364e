"""Files as torch.save writes them, made by hand: pickle's operations one by one, so that tests need no torch."""

import io
import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
}


class Tensor(NamedTuple):
    """A window on a storage, as torch describes one."""

    storage: np.ndarray
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class Global(NamedTuple):
    """An object of a class, called with arguments."""

    module: str
    name: str
    arguments: tuple = ()


def tensor(array: np.ndarray) -> Tensor:
    """A tensor that is the whole of its storage."""
    array = np.asarray(array)
    strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
    return Tensor(array.reshape(-1), 0, array.shape, strides)


class _Writer:
    def __init__(self, legacy: bool):
        self.out, self.storages, self.legacy = io.BytesIO(), [], legacy

    def key(self, storage: np.ndarray) -> str:
        for i, known in enumerate(self.storages):
            if known is storage:
                return str(i)
        self.storages.append(storage)
        return str(len(self.storages) - 1)

    def put(self, value: Any) -> None:
        out = self.out
        if value is None:
            out.write(b"N")
        elif isinstance(value, bool):
            out.write(b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            out.write(b"J" + struct.pack("<i", value))
        elif isinstance(value, float):
            out.write(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            text = value.encode()
            out.write(b"X" + struct.pack("<I", len(text)) + text)
        elif isinstance(value, Tensor):
            out.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
            kind, key = STORAGES[value.storage.dtype], self.key(value.storage)
            out.write(b"(")
            self.put("storage")
            out.write(f"ctorch\n{kind}\n".encode())
            for part in (key, "cpu", value.storage.size, *([None] if self.legacy else [])):
                self.put(part)
            out.write(b"tQ")
            for part in (value.offset, value.sizes, value.strides, False):
                self.put(part)
            out.write(b"ccollections\nOrderedDict\n)RtR")
        elif isinstance(value, Global):
            out.write(f"c{value.module}\n{value.name}\n".encode())
            self.put(value.arguments)
            out.write(b"R")
        elif isinstance(value, tuple):
            out.write(b"(")
            for part in value:
                self.put(part)
            out.write(b"t")
        elif isinstance(value, dict):
            out.write(b"}(")
            for key, part in value.items():
                self.put(key)
                self.put(part)
            out.write(b"u")
        else:
            raise TypeError(type(value))

    def pickle(self, value: Any) -> bytes:
        self.out = io.BytesIO()
        self.out.write(b"\x80\x02")
        self.put(value)
        return self.out.getvalue() + b"."


def write_zip(path: Any, value: Any, compression: int = zipfile.ZIP_STORED) -> None:
    """As torch writes since version 1.6."""
    writer = _Writer(legacy=False)
    data = writer.pickle(value)
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", b"little")
        for i, storage in enumerate(writer.storages):
            file.writestr(f"archive/data/{i}", storage.tobytes())
        file.writestr("archive/version", b"3\n")


def write_legacy(path: Any, value: Any) -> None:
    """As torch wrote before."""
    writer = _Writer(legacy=True)
    data = writer.pickle(value)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, system):
            file.write(pickle.dumps(part, 2))
        file.write(data)
        file.write(pickle.dumps([str(i) for i in range(len(writer.storages))], 2))
        for storage in writer.storages:
            file.write(struct.pack("<q", storage.size) + storage.tobytes())
