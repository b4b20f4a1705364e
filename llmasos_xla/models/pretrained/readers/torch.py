"""Files of torch.save (.pt, .pth, .th, .bin), without torch and without executing what they hold.

Since version 1.6 such a file is a zip of one pickle and a file for each storage; before, it was pickles one after
the other and then the storages. A tensor is a window on a storage, by offset, sizes and strides; so it is here.
"""

import os
import pathlib
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from llmasos_xla.models.pretrained.readers import pickled
from llmasos_xla.storage.views import Arrays, mapped, window

STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
}
DTYPES: dict[str, np.dtype] = {
    "float32": STORAGES["FloatStorage"],
    "float64": STORAGES["DoubleStorage"],
    "float16": STORAGES["HalfStorage"],
    "bfloat16": STORAGES["BFloat16Storage"],
    "int64": STORAGES["LongStorage"],
    "int32": STORAGES["IntStorage"],
    "int16": STORAGES["ShortStorage"],
    "int8": STORAGES["CharStorage"],
    "uint8": STORAGES["ByteStorage"],
    "bool": STORAGES["BoolStorage"],
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Where a training script's file has the weights among other things, in the order in which they are looked for."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MOST_PICKLE_BYTES = 256 << 20
_DEEPEST, _MOST_ENTRIES = 16, 1 << 20


class _Storage:
    """A run of bytes, which an old file tells only after the tensors on it."""

    def __init__(self, dtype: np.dtype, values: int, memory: np.ndarray | None):
        self.dtype, self.values, self.memory = dtype, values, memory


class _Tensor:
    """A window on a storage."""

    def __init__(self, storage: Any, offset: Any, sizes: Any, strides: Any, dtype: np.dtype | None = None):
        whole = isinstance(storage, _Storage) and all(type(n) is int for n in (offset, *sizes, *strides))
        if not whole:
            raise ValueError("a tensor has no storage, or sizes that are no whole numbers")
        self.storage, self.offset, self.sizes, self.strides = storage, offset, tuple(sizes), tuple(strides)
        self.dtype = dtype or storage.dtype

    def array(self) -> np.ndarray:
        """The array."""
        assert self.storage.memory is not None
        return window(self.storage.memory, self.dtype, self.sizes, self.offset * self.dtype.itemsize, self.strides)


class _Kind:
    """A class of storages or a dtype, which is named and never called."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def __call__(self, *arguments: Any) -> Any:
        """Refuses."""
        raise pickled.RefusedError("it makes a storage where only a stored one may stand")


def _tensor(storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, sizes, strides)


def _tensor_of_dtype(storage: Any, offset: Any, sizes: Any, strides: Any, _: Any, __: Any, kind: Any, *___: Any) -> Any:
    return _Tensor(storage, offset, sizes, strides, kind.dtype)


def _nothing(*_: Any) -> None:
    """What is no array and does no harm: a number of NumPy's beside the weights, a device."""


KNOWN: dict[str, pickled.Known] = {
    "collections OrderedDict": lambda *pairs: dict(*pairs),
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils _rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch Size": lambda *sizes: tuple(*sizes),
    "torch device": _nothing,
    "numpy.core.multiarray scalar": _nothing,
    "numpy._core.multiarray scalar": _nothing,
    "numpy dtype": _nothing,
    "_codecs encode": _nothing,
    "torch.storage UntypedStorage": _Kind(np.dtype(np.uint8)),
    **{f"torch {name}": _Kind(dtype) for name, dtype in {**STORAGES, **DTYPES}.items()},
}
"""All that a file may name."""


def looks_like(start: bytes) -> bool:
    """Whether a file that starts so may be one."""
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and struct.pack("<Q", _MAGIC % 2**64)[:6] in start[:16])


def read(path: str | os.PathLike) -> Arrays:
    """The arrays of one file, as windows on it.

    A file of several parts gives those of its state dict (`WRAPPERS`); nested tables are joined by dots; a beginning
    that all names share because of how the model was wrapped is left out (`PREFIXES`).

    Raises ValueError for a damaged file, and for one that names anything but tensors, with that name.
    """
    name = pathlib.Path(path).name
    memory = mapped(path)
    try:
        value = _zipped(path, memory) if memory[:4].tobytes() == b"PK\x03\x04" else _plain(memory)
        tensors = dict(_tensors(_weights(value), "", 0, [0]))
        if not tensors:
            raise ValueError("it holds no tensors")
        return Arrays("torch", {key: tensor.array() for key, tensor in _unwrapped(tensors).items()})
    except pickled.RefusedError as error:
        raise ValueError(f"pretrained: {name!r} is refused: {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise ValueError(f"pretrained: the torch file {name!r} is damaged or cut off: {error}") from error


def _zipped(path: str | os.PathLike, memory: np.ndarray) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            entries = {entry.filename: entry for entry in file.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, OSError) as error:
        raise ValueError(f"its zip is damaged: {error}") from error
    main = next((n for n in entries if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)), None)
    if main is None:
        raise ValueError(f"it is a zip without data.pkl: {', '.join(sorted(entries)[:5])[:200]}")
    root = main.removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise pickled.RefusedError("it is a TorchScript program, not weights; save torch.save(model.state_dict(), ...)")
    order = entries.get(f"{root}byteorder")
    if order is not None and _entry(memory, order).tobytes() != b"little":
        raise pickled.RefusedError("its numbers are not little-endian; save it on such a machine, or as safetensors")

    def storage(about: Any) -> _Storage:
        found = _storage(about)
        key = f"{root}data/{about[2]}"
        if key not in entries:
            raise ValueError(f"its zip lacks {key[:80]!r}")
        found.memory = _entry(memory, entries[key])
        return _checked(found)

    data = _entry(memory, entries[main])
    if data.size > _MOST_PICKLE_BYTES:
        raise ValueError(f"its pickle has {data.size} bytes")
    return pickled.load(pickled.Stream(data), KNOWN, storage)


def _entry(memory: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickled.RefusedError("its zip is compressed, which torch.save never does; unpack it and zip it with -0")
    at = entry.header_offset
    header = memory[at : at + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"its zip is damaged at byte {at}")
    name, extra = struct.unpack("<HH", header[26:30])
    first = at + 30 + name + extra
    if first + entry.file_size > memory.size:
        raise ValueError(f"{entry.filename[:80]!r} ends behind the file")
    return memory[first : first + entry.file_size]


def _plain(memory: np.ndarray) -> Any:
    stream = pickled.Stream(memory)
    if pickled.load(stream, {}) != _MAGIC:
        raise ValueError("it does not begin as torch's files do")
    if (protocol := pickled.load(stream, {})) != _PROTOCOL:
        raise ValueError(f"its protocol is {str(protocol)[:40]}, known is {_PROTOCOL}")
    system = pickled.load(stream, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise pickled.RefusedError("its numbers are not little-endian; save it on such a machine, or as safetensors")
    storages: dict[str, _Storage] = {}

    def storage(about: Any) -> _Storage:
        found = _storage(about)
        if len(about) > 5 and about[5] is not None:
            raise pickled.RefusedError("its storages are views of each other, which torch wrote before version 0.4")
        return storages.setdefault(about[2], found)

    value = pickled.load(stream, KNOWN, storage)
    keys = pickled.load(stream, {})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    at = stream.at
    for key in keys:
        found = storages[key]
        head = memory[at : at + 8]
        if head.size < 8 or int(head.copy().view("<i8")[0]) != found.values:
            raise ValueError(f"the storage {key[:40]!r} has not the {found.values} values that its tensors say")
        last = at + 8 + found.values * found.dtype.itemsize
        found.memory = memory[at + 8 : last]
        _checked(found)
        at = last
    return value


def _storage(about: Any) -> _Storage:
    what, kind, key, _, values = tuple(about)[:5]
    if what != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str):
        raise ValueError("a storage is described otherwise than torch does")
    if type(values) is not int or values < 0:
        raise ValueError(f"a storage has {str(values)[:40]} values")
    return _Storage(kind.dtype, values, None)


def _checked(storage: _Storage) -> _Storage:
    assert storage.memory is not None
    if storage.values * storage.dtype.itemsize > storage.memory.size:
        raise ValueError(f"a storage of {storage.values} values has {storage.memory.size} bytes")
    return storage


def _weights(value: Any) -> Any:
    """The part of a file that is the model's weights."""
    # Not for ever: a damaged file's tables may hold each other.
    for _ in range(_DEEPEST):
        if isinstance(value, dict):
            value = next((value[k] for k in WRAPPERS if isinstance(value.get(k), dict) and value[k]), value)
    return value


def _tensors(value: Any, name: str, depth: int, seen: list[int]) -> Iterator[tuple[str, _Tensor]]:
    seen[0] += 1
    # Containers that hold each other over and over unfold without end.
    if depth > _DEEPEST or seen[0] > _MOST_ENTRIES:
        raise ValueError("its tables are nested too deep")
    if isinstance(value, _Tensor):
        yield name or "tensor", value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key), depth + 1, seen)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{i}" if name else str(i), depth + 1, seen)


def _unwrapped(tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
