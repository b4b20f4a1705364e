"""Rows as Parquet files in a folder."""

import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from llmasos_xla.errors import missing_package
from llmasos_xla.storage.atomic import atomically


def write_parquet(path: str | os.PathLike, table: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes columns [rows] to a Parquet file, whole or not at all; `about` goes into its metadata."""
    arrow, parquet = _arrow()
    columns = arrow.table({name: np.asarray(column) for name, column in table.items()})
    columns = columns.replace_schema_metadata({key.encode(): value.encode() for key, value in about.items()})
    atomically(pathlib.Path(path), lambda temporary: parquet.write_table(columns, temporary))


@final
class ParquetLog:
    """A folder of files of so many rows each, which `pyarrow.parquet.read_table(folder)` and pandas read as one table.

    A Parquet file is readable once it is closed, so that a long one would be lost with its process: of many small ones
    it is the rows since the last one. Several processes may write into one folder.

    Args:
        folder: is made if it is not there.
        columns: their names.
        about: text about them, for the files' metadata.
        rows: how many go into one file.

    Raises ImportError if pyarrow is missing, OSError if the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, columns: Sequence[str], about: Mapping[str, str], *, rows: int = 300):
        _arrow()
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns, self._about, self._size = tuple(columns), dict(about), rows
        self._rows: list[list[float]] = []
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{time.monotonic_ns() % 10**6:06}"
        self._files = 0

    def add(self, row: Mapping[str, float]) -> None:
        """Adds a row; writes a file if that makes it full."""
        self._rows.append([row.get(name, np.nan) for name in self._columns])
        if len(self._rows) >= self._size:
            self.flush()

    def flush(self) -> None:
        """Writes what has come since the last file."""
        if not self._rows:
            return
        table = np.asarray(self._rows, np.float64)
        path = self.folder / f"{self._name}-{self._files:05}.parquet"
        write_parquet(path, {name: table[:, i] for i, name in enumerate(self._columns)}, self._about)
        self._files += 1
        self._rows.clear()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("a log of the monitor", "pyarrow") from error
    return pyarrow, pyarrow.parquet
