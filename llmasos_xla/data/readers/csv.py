"""Reads CSV with pyarrow, and finds the line of whatever is wrong in it."""

import csv
import dataclasses
import functools
import gzip
import io
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import Content
from llmasos_xla.data.readers.files import existing
from llmasos_xla.data.readers.table import TableOptions, from_columns, with_labels

NULLS = ("", "?", "NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "-nan", "<NA>")


_SAMPLE = 1 << 20


@dataclasses.dataclass(frozen=True)
class CsvOptions:
    """How the text of a CSV is cut into columns."""

    header: bool | None = None
    """Whether the first line names the columns; None: it does if it has no number, or a word above a number."""
    delimiter: str | None = None
    """None: whichever of comma, semicolon and tab the first line has most of, the decimal sign left out."""
    na_values: tuple[str, ...] = ()
    """Further spellings of a missing value, next to `NULLS`."""
    encoding: str = "utf-8"
    decimal: str = "."
    """The sign before the fraction of a number."""


def from_csv(path: str | pathlib.Path, labels: np.ndarray | None, table: TableOptions, options: CsvOptions) -> Content:
    """Reads a CSV (or .csv.gz) file.

    Raises FileNotFoundError; ValueError for an empty file, a row with too few or too many values (which line, what it
    holds), a number column with a few words in it, and what `from_columns` refuses.
    """
    path = existing(path)
    start = _beginning(path, options.encoding)
    first = start.lstrip().split("\n", 1)[0]
    delimiter = options.delimiter or max((sign for sign in ",;\t" if sign != options.decimal), key=first.count)
    if len(options.decimal) != 1 or options.decimal.isalnum() or options.decimal == delimiter:
        raise ValueError(
            f"Dataset: decimal={options.decimal!r}, delimiter={delimiter!r}: decimal is the one sign before a "
            "fraction, '.' or ',', and not the delimiter"
        )
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
    cells = next(cells for cells in reader if cells)
    first_lines = reader.line_num
    sample = _rows_below(reader, whole=len(start) < _SAMPLE)
    is_number = functools.partial(_is_number, decimal=options.decimal)
    below = sample[0] if sample else []
    header = options.header if options.header is not None else _is_header(cells, below, is_number)
    names = [cell.strip() for cell in cells] if header else [str(i) for i in range(len(cells))]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(
            f"Dataset: {path}: the columns {', '.join(map(repr, repeated))} occur twice; rename one of each"
        )
    spot = _Spot(path, delimiter, len(names), first_lines if header else 0, options.encoding)
    texts = {*table.categories, *([table.text] if table.text else [])}
    bytes_only = bool(sample) and not texts and all(_is_byte(cell) for row in sample for cell in row)
    arrow = _read(path, names, spot, options, texts, bytes_only)
    if not arrow.num_rows:
        raise ValueError(f"Dataset: {path} has a header and no rows")
    columns = {name: _column(arrow.column(i), name, spot, i, name in texts, is_number) for i, name in enumerate(names)}
    if labels is not None:
        table = dataclasses.replace(table, label=False)
    return with_labels(from_columns(columns, str(path), table, spot.line), labels)


def _read(
    path: pathlib.Path, names: list[str], spot: "_Spot", options: CsvOptions, texts: set[str], bytes_only: bool
) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
    except ImportError:
        raise errors.missing_package("Dataset from CSV", "pyarrow") from None
    kept: dict[str, Any] = {name: pa.string() for name in texts}
    # Tables of pixels are large: as bytes they take an eighth of the memory of the int64 that pyarrow would guess.
    types = {name: pa.uint8() for name in names} if bytes_only else dict(kept)
    while True:
        try:
            return arrow_csv.read_csv(
                path,
                read_options=arrow_csv.ReadOptions(
                    column_names=names, skip_rows=spot.skip, block_size=1 << 23, encoding=options.encoding
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=spot.delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    null_values=[*NULLS, *options.na_values],
                    strings_can_be_null=True,
                    decimal_point=options.decimal,
                    column_types=types,
                    timestamp_parsers=[],
                ),
            )
        except pa.ArrowInvalid as error:
            if bytes_only:
                bytes_only, types = False, dict(kept)
                continue
            spot.refuse_ragged()
            if "UTF8" in str(error):
                raise _wrong_encoding(spot, "it") from None
            # Types are guessed from the first block: widen the column in which a later block holds something else.
            column = re.search(r"In CSV column #(\d+)", str(error))
            name = names[int(column.group(1))] if column else None
            if name is None or types.get(name) == pa.string():
                raise ValueError(f"Dataset: {path} is not readable as CSV: {error}") from None
            types[name] = pa.string() if types.get(name) == pa.float64() else pa.float64()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"Dataset: {path} is damaged or no CSV: {error}") from None


def _column(
    column: Any, name: str, spot: "_Spot", position: int, as_text: bool, is_number: Callable[[str], bool]
) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if as_text or not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if pa.types.is_null(kind):
            return np.full(len(column), np.nan)
        if pa.types.is_binary(kind):
            raise _wrong_encoding(spot, f"column {name!r}")
        text = column.cast(pa.string()).to_numpy().astype(object)
        if not as_text:
            _refuse_words_among_numbers(text, name, spot, position, is_number)
        return text
    if pa.types.is_boolean(kind):
        # True and false are 1 and 0 as an input and as a label alike.
        column = column.cast(pa.uint8())
    values = column.to_numpy()
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _wrong_encoding(spot: "_Spot", what: str) -> ValueError:
    return ValueError(
        f"Dataset: {spot.path} is no {spot.encoding}: {what} holds other bytes; say which encoding it is with "
        "encoding=, for instance 'latin-1'"
    )


def _refuse_words_among_numbers(
    text: np.ndarray, name: str, spot: "_Spot", position: int, is_number: Callable[[str], bool]
) -> None:
    known = [value for value in text[:10_000] if value is not None]
    if 2 * sum(map(is_number, known)) <= len(known):
        return
    for row, value in enumerate(text):
        if value is not None and not is_number(value):
            raise ValueError(
                f"Dataset: {spot.path}: column {name!r} (number {position + 1}) holds numbers, but {spot.line(row)} "
                f"has {value!r}; mend the row, name it as missing with na_values=[{value!r}], or take "
                f"the whole column as text with categories=[{name!r}]"
            )


class _Spot:
    """Where a row stands in the file; the file is read again only to word an error."""

    def __init__(self, path: pathlib.Path, delimiter: str, width: int, skip: int, encoding: str):
        self.path, self.delimiter, self.width, self.skip, self.encoding = path, delimiter, width, skip, encoding

    def line(self, row: int) -> str:
        for index, (number, _) in enumerate(self._rows()):
            if index == row:
                return f"line {number}"
        return f"row {row}"

    def refuse_ragged(self) -> None:
        try:
            for number, cells in self._rows():
                if len(cells) != self.width:
                    shown = self.delimiter.join(cells)
                    raise ValueError(
                        f"Dataset: {self.path}, line {number}: {len(cells)} values where {self.width} are wanted: "
                        f"{shown[:120]!r}{'...' if len(shown) > 120 else ''}; mend or remove the line"
                    )
        except csv.Error as error:
            raise ValueError(f"Dataset: {self.path} is not readable as CSV: {error}") from None

    def _rows(self):
        with _open(self.path, self.encoding) as file:
            reader = csv.reader(file, delimiter=self.delimiter)
            while reader.line_num < self.skip:
                next(reader)
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield start, cells
                start = reader.line_num + 1


def _open(path: pathlib.Path, encoding: str) -> io.TextIOBase:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig" if encoding == "utf-8" else encoding, errors="replace", newline="")  # type: ignore[return-value]


def _beginning(path: pathlib.Path, encoding: str) -> str:
    try:
        with _open(path, encoding) as file:
            first = file.read(_SAMPLE)
    except (OSError, EOFError) as error:
        raise ValueError(f"Dataset: {path} is damaged: {error}") from None
    if not first.strip():
        raise ValueError(f"Dataset: {path} is empty ({path.stat().st_size} bytes)")
    if "\0" in first:
        raise ValueError(f"Dataset: {path} is no text: it holds zero bytes; kind= says what else it may be")
    return first


def _rows_below(reader: Any, whole: bool) -> list[list[str]]:
    try:
        rows = list(itertools.islice(reader, 20))
    except csv.Error:
        # A text longer than the csv module takes; pyarrow reads it all the same.
        return []
    # What was read of the file may end in the middle of a row.
    return rows if whole else rows[:-1]


def _is_header(cells: list[str], below: list[str], is_number: Callable[[str], bool]) -> bool:
    words = [not is_number(cell) and cell not in NULLS for cell in cells]
    return all(words) or any(word and is_number(cell) for word, cell in zip(words, below))


def _is_byte(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and int(cell) <= 255


def _is_number(cell: str, decimal: str) -> bool:
    try:
        float(cell if decimal == "." else cell.replace(".", "no number").replace(decimal, "."))
    except ValueError:
        return False
    return True
