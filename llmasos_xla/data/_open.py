"""Which reader a source takes, and which options it understands."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers import arrays, audio, idx, images, npz, text
from llmasos_xla.data.readers import csv as csv_reader
from llmasos_xla.data.readers import table as tables
from llmasos_xla.data.readers.content import Content
from llmasos_xla.data.readers.files import existing

CSV, IDX, NPZ, NPY, IMAGES, AUDIO, TEXT = KINDS = ("csv", "idx", "npz", "npy", "images", "audio", "text")

_TABLE = ("label", "columns", "categories", "text")
_TAKES = {
    CSV: (*_TABLE, "header", "delimiter", "decimal", "na_values"),
    "table": _TABLE,
    IDX: (),
    NPZ: ("x_key", "y_key"),
    NPY: (),
    IMAGES: ("image_size", "channels"),
    AUDIO: ("length", "label_from"),
    TEXT: (),
    "array": (),
    "pairs": (),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `Dataset` that readers take; None is not given."""

    mode: str = "train"
    missing: str = "mean"
    encoding: str = "utf-8"
    label: str | int | bool | None = None
    columns: Sequence[str] | None = None
    categories: Sequence[str] | None = None
    header: bool | None = None
    delimiter: str | None = None
    decimal: str | None = None
    na_values: Sequence[str] | None = None
    text: str | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    length: int | None = None
    label_from: Any = None
    x_key: str | None = None
    y_key: str | None = None

    def table(self) -> tables.TableOptions:
        """Those of a table."""
        columns, categories = _names(self.columns, "columns"), _names(self.categories, "categories") or ()
        _names(self.text, "text")
        return tables.TableOptions(self.mode, self.label, columns, categories, self.text, self.missing)

    def refuse_others(self, kind: str) -> None:
        """Raises ValueError if an option was given that this kind of source does not understand."""
        optional = [f.name for f in dataclasses.fields(self) if f.default is None]
        given = [name for name in optional if getattr(self, name) is not None and name not in _TAKES[kind]]
        if given == ["label"] and self.label is False:
            return
        if given:
            belongs = sorted(k for k, names in _TAKES.items() if given[0] in names)
            raise ValueError(
                f"Dataset: {given[0]}= is an option of {' and '.join(belongs)}; this source was read as {kind}; "
                "kind= says otherwise"
            )


def open_source(source: Any, labels: Any, kind: str | None, options: Options) -> Content:
    """Reads a source, or prepares to.

    Raises ValueError for an unknown kind, and what the readers raise.
    """
    if kind is not None and kind not in KINDS:
        raise errors.unknown("Dataset", "kind=", kind, KINDS)
    if isinstance(source, Content):
        options.refuse_others(source.kind)
        return source
    if isinstance(source, str | pathlib.Path):
        return _open_path(existing(source), labels, kind, options)
    if isinstance(source, dict) and source and all(isinstance(v, str | pathlib.Path) for v in source.values()):
        options.refuse_others(TEXT)
        _refuse_labels(labels, "the files are the classes")
        return text.from_classes({str(name): existing(path) for name, path in source.items()}, options.encoding)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        options.refuse_others("table")
        return tables.from_pandas(source, _label_array(labels), options.table())
    if isinstance(source, tuple) and len(source) == 2 and labels is None and not np.isscalar(source[0]):
        source, labels = source
    if _is_pairs(source):
        options.refuse_others("pairs")
        _refuse_labels(labels, f"{type(source).__name__} gives pairs (x, y) itself")
        return arrays.from_pairs(source)
    options.refuse_others("array")
    return arrays.from_arrays(source, labels)


def _open_path(path: pathlib.Path, labels: Any, kind: str | None, options: Options) -> Content:
    kind = kind or _kind_of(path)
    options.refuse_others(kind)
    if kind == CSV:
        reading = csv_reader.CsvOptions(
            options.header, options.delimiter, _names(options.na_values, "na_values") or (), options.encoding,
            "." if options.decimal is None else options.decimal,
        )  # fmt: skip
        return csv_reader.from_csv(path, _label_array(labels), options.table(), reading)
    if kind == IDX:
        return idx.from_idx(path, labels)
    if kind == NPZ:
        return npz.from_npz(path, _label_array(labels), options.mode, options.x_key, options.y_key)
    if kind == NPY:
        return npz.from_npy(path, labels)
    if kind == IMAGES:
        return images.from_folder(path, options.image_size, options.channels, _label_array(labels))
    if kind == AUDIO:
        return audio.from_folder(path, options.length, options.label_from, _label_array(labels))
    return text.from_lines(path, _label_array(labels), options.encoding)


def _kind_of(path: pathlib.Path) -> str:
    if path.is_dir():
        return AUDIO if _folder_suffix(path) in audio.SUFFIXES else IMAGES
    suffixes = [s.lower() for s in path.suffixes]
    last = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    known = {".csv": CSV, ".tsv": CSV, ".npz": NPZ, ".npy": NPY, ".txt": TEXT, ".idx": IDX}
    if last in known:
        return known[last]
    if "ubyte" in path.name or "-idx" in path.name or ".idx" in path.name:
        return IDX
    raise ValueError(
        f"Dataset: {path} has no known suffix ({', '.join(known)}, idx files, a folder of images or audio); "
        f"say what it is with kind=: {', '.join(KINDS)}"
    )


def _folder_suffix(folder: pathlib.Path) -> str:
    media = (*images.SUFFIXES, *audio.SUFFIXES)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in media:
            return file.suffix.lower()
    raise ValueError(f"Dataset: the folder {folder} holds no images or audio ({', '.join(media)})")


def _label_array(labels: Any) -> np.ndarray | None:
    if labels is None:
        return None
    if np.ndim(labels) == 0:
        raise ValueError(
            f"Dataset: labels={labels!r}; an array with a label for each row is wanted (label= names a table's column)"
        )
    return arrays.as_array(labels, "Dataset: labels")


def _refuse_labels(labels: Any, why: str) -> None:
    if labels is not None:
        raise ValueError(f"Dataset: labels= was given, but {why}; leave it out")


def _is_pairs(source: Any) -> bool:
    plain = (
        isinstance(source, list | tuple | dict | np.ndarray) or hasattr(source, "__array__") or hasattr(source, "shape")
    )
    return not plain and hasattr(source, "__len__") and hasattr(source, "__getitem__")


def _names(names: Any, option: str) -> tuple[str, ...] | None:
    if names is None or isinstance(names, str):
        return names if names is None else (names,)
    names = tuple(names) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Dataset: {option}= wants text, got {names!r}; columns of a CSV without a header are called '0', '1', ..."
        )
    return names
