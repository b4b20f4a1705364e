"""Named columns become inputs and labels: which column is the label, what is text, what is missing."""

import dataclasses
import decimal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import TABLE, TEXT, Content, require_as_many
from llmasos_xla.data.readers.lookalikes import refuse_lookalikes
from llmasos_xla.data.rows import count

LABEL_NAMES = ("label", "target", "class", "y", "category")
MISSING = ("mean", "median", "zero", "drop", "error")


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How a table is read; `Dataset` says what each means."""

    mode: str = "train"
    label: str | int | bool | None = None
    columns: tuple[str, ...] | None = None
    categories: tuple[str, ...] = ()
    text: str | None = None
    missing: str = "mean"


def from_columns(
    table: dict[str, np.ndarray], name: str, options: TableOptions, line: Callable[[int], str] = "row {}".format
) -> Content:
    """Splits columns into inputs and labels.

    `table` maps a name to `[rows]`: bool, int64, uint8 or float64 with NaN where a number is missing, or an object
    array of str with None where text is missing. `line(row)` names a row in errors.

    Raises ValueError for an unknown column, no rows, missing labels, and whatever `missing="error"` forbids.
    """
    label = _label_column(list(table), name, options)
    features = _feature_columns(list(table), label, name, options)
    if not len(next(iter(table.values()))):
        raise ValueError(f"Dataset: {name} has a header ({_list(list(table))}) and no rows")
    if options.missing == "drop":
        table, line = _drop_missing(table, [*features, *([label] if label else [])], name, line)
    y = None if label is None else _labels(table[label], label, name, line)
    if not features:
        raise ValueError(f"Dataset: {name} has the label column {label!r} and no other column to learn from")
    if options.text is None:
        refuse_lookalikes(table, [f for f in features if f not in options.categories], name, line)
    text = options.text if options.text is not None else _only_text_column(table, features, options)
    if text is not None:
        gaps = np.flatnonzero(missing_in(table[text]))
        if len(gaps):
            raise ValueError(
                f"Dataset: {name}: {len(gaps)} rows have no text in {text!r}, the first at {line(int(gaps[0]))}"
            )
        return Content(TEXT, table[text], y, name)
    if options.missing == "error":
        _refuse_missing(table, features, name, line)
    _refuse_infinite(table, features, name, line)
    chosen = {column: table[column] for column in features}
    categories = tuple(name for name in options.categories if name in features)
    plain = not categories and all(column.dtype.kind != "O" for column in chosen.values())
    return Content(TABLE, _matrix(chosen) if plain else chosen, y, name, tuple(features), categories=categories)


def missing_in(column: np.ndarray) -> np.ndarray:
    """`[rows]` bool: NaN in numbers, None in text."""
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind == "O":
        return np.fromiter((value is None for value in column), bool, len(column))
    return np.zeros(len(column), bool)


def from_pandas(frame: Any, labels: np.ndarray | None, options: TableOptions) -> Content:
    """A pandas DataFrame (or anything with `.columns` and columns that have `.to_numpy()`)."""
    if labels is not None:
        options = dataclasses.replace(options, label=False)
    table = columns_of_pandas(frame)
    # Text that the user made pandas' "category" is said to be categories, whatever it looks like.
    said = [str(n) for n in frame.columns if table[str(n)].dtype.kind == "O" and str(frame[n].dtype) == "category"]
    options = dataclasses.replace(options, categories=(*options.categories, *said))
    content = from_columns(table, "DataFrame", options, line=lambda i: f"row {i}")
    return with_labels(content, labels)


def with_labels(content: Content, labels: np.ndarray | None) -> Content:
    """The content with labels that came separately."""
    if labels is None:
        return content
    rows = count(content.x)
    require_as_many(labels, rows, f"{content.name} has {rows} rows")
    return dataclasses.replace(content, y=labels)


def columns_of_pandas(frame: Any) -> dict[str, np.ndarray]:
    """The columns of a DataFrame in the form that `from_columns` takes."""
    return {str(name): _column(frame[name]) for name in frame.columns}


def _column(series: Any) -> np.ndarray:
    values = series.to_numpy()
    if values.dtype.kind in "iub":
        return values
    gaps = series.isna().to_numpy()
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if values.dtype.kind in "mM":
        values = series.astype(str).to_numpy()
    if all(isinstance(v, int | float | np.number | decimal.Decimal) for v in values[~gaps]):
        return series.astype("float64").to_numpy(na_value=np.nan)
    text = np.array([str(v) for v in values], object)
    text[gaps] = None
    return text


def _label_column(names: list[str], source: str, options: TableOptions) -> str | None:
    label = options.label
    if label is False:
        return None
    if label is None or label is True:
        found = [name for wanted in LABEL_NAMES for name in names if name.strip().lower() == wanted]
        if found:
            return found[0]
        without = ", or label=False if there are none" if options.mode == "test" else ""
        raise ValueError(
            f"Dataset: {source} has no column named {', '.join(LABEL_NAMES)}: say which holds the labels with "
            f"label='name' or label=-1 for the last{without}. Columns: {_list(names)}"
        )
    if isinstance(label, int):
        if not -len(names) <= label < len(names):
            raise ValueError(f"Dataset: label={label}, but {source} has {len(names)} columns: {_list(names)}")
        return names[label]
    if label not in names:
        raise errors.unknown("Dataset", f"label column of {source}", label, names)
    return label


def _feature_columns(names: list[str], label: str | None, source: str, options: TableOptions) -> list[str]:
    asked = [*(options.columns or ()), *options.categories, *([options.text] if options.text else [])]
    for name in asked:
        if name not in names:
            raise errors.unknown("Dataset", f"column of {source}", name, names)
    if options.text is not None:
        return [options.text]
    chosen = options.columns if options.columns is not None else names
    return [name for name in chosen if name != label]


def _only_text_column(table: dict[str, np.ndarray], features: list[str], options: TableOptions) -> str | None:
    # A single text column is text to read rather than a category if most of its values occur once.
    if len(features) != 1 or features[0] in options.categories or table[features[0]].dtype.kind != "O":
        return None
    values = table[features[0]]
    return features[0] if len(set(values)) > len(values) / 2 else None


def _labels(column: np.ndarray, label: str, name: str, line: Callable[[int], str]) -> np.ndarray:
    gaps = np.flatnonzero(missing_in(column))
    if len(gaps):
        raise ValueError(
            f"Dataset: {name}: the label column {label!r} is missing in {len(gaps)} rows, the first at "
            f"{line(int(gaps[0]))}; fill them in, or leave those rows out with missing='drop'"
        )
    # Bytes would wrap around in the user's own arithmetic.
    return column.astype(np.int64) if column.dtype == np.uint8 else column


def _drop_missing(
    table: dict[str, np.ndarray], names: list[str], source: str, line: Callable[[int], str]
) -> tuple[dict[str, np.ndarray], Callable[[int], str]]:
    keep = np.flatnonzero(~np.any([missing_in(table[name]) for name in names], axis=0))
    if not len(keep):
        raise ValueError(f"Dataset: missing='drop' leaves no row of {source}: every row lacks some value")
    return {n: _whole(c[keep]) for n, c in table.items()}, lambda i: line(int(keep[i]))


def _whole(column: np.ndarray) -> np.ndarray:
    # A column of integers with gaps was read as floats; without the gaps it is integers again, as labels need.
    if column.dtype.kind == "f" and np.all(column == np.round(column)) and np.all(np.abs(column) < 2**53):
        return column.astype(np.int64)
    return column


def _refuse_missing(table: dict[str, np.ndarray], features: list[str], source: str, line: Callable[[int], str]) -> None:
    gaps = {name: np.flatnonzero(missing_in(table[name])) for name in features}
    gaps = {name: rows for name, rows in gaps.items() if len(rows)}
    if gaps:
        name, rows = next(iter(gaps.items()))
        raise ValueError(
            f"Dataset: {source}: {sum(map(len, gaps.values()))} values are missing in {_list(list(gaps))}, the "
            f"first in {name!r} at {line(int(rows[0]))}; "
            "missing='mean', 'median' or 'zero' fills them, 'drop' leaves the rows out"
        )


def _refuse_infinite(
    table: dict[str, np.ndarray], features: list[str], source: str, line: Callable[[int], str]
) -> None:
    for name in features:
        if table[name].dtype.kind == "f" and len(rows := np.flatnonzero(np.isinf(table[name]))):
            raise ValueError(
                f"Dataset: {source}: {len(rows)} infinite values in column {name!r}, the first at "
                f"{line(int(rows[0]))}; mend or remove them"
            )


def _matrix(columns: dict[str, np.ndarray]) -> np.ndarray:
    arrays = list(columns.values())
    byte = all(a.dtype == np.uint8 or (a.dtype.kind in "iu" and a.min() >= 0 and a.max() <= 255) for a in arrays)
    dtype = np.uint8 if byte else np.float64
    # Rows of the transpose are contiguous: writing 784 columns one by one into [rows, columns] is several times slower.
    by_column = np.empty((len(arrays), len(arrays[0])), dtype)
    for out, array in zip(by_column, arrays):
        out[:] = array
    return np.ascontiguousarray(by_column.T)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:12])) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
