"""Reads text: lines of a file, or a file for each class."""

import gzip
import pathlib
import zlib

import numpy as np

from llmasos_xla.data.readers.content import TEXT, Content, require_as_many


def from_lines(path: pathlib.Path, labels: np.ndarray | None, encoding: str) -> Content:
    """A row for each line that is not blank."""
    lines = _lines(path, encoding)
    require_as_many(labels, len(lines), f"{path} has {len(lines)} lines")
    return Content(TEXT, np.array(lines, object), labels, str(path))


def from_classes(paths: dict[str, pathlib.Path], encoding: str) -> Content:
    """A file for each class: `{"neg": path, "pos": path}`; classes get their ids in this order."""
    texts, ids = [], []
    for i, path in enumerate(paths.values()):
        lines = _lines(path, encoding)
        texts += lines
        ids += [i] * len(lines)
    name = ", ".join(map(str, paths.values()))
    return Content(TEXT, np.array(texts, object), np.array(ids, np.int32), name, classes=tuple(paths))


def _lines(path: pathlib.Path, encoding: str) -> list[str]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"Dataset: {path}, line {line}: byte {error.object[error.start]:#x} is no {encoding}; say which it is with "
            "encoding=, for instance 'latin-1'"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"Dataset: {path} is damaged: {error}") from None
    # Not splitlines(): it also parts at form feeds and other separators that stand inside sentences.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"Dataset: {path} holds no line of text ({len(data)} bytes)")
    return lines
