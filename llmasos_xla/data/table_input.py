"""Tables: columns by name, missing values filled, numbers standardized, text columns one-hot."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.arrays import as_array
from llmasos_xla.data.readers.table import columns_of_pandas, missing_in

# A column with more different texts than this is hardly a category; one-hot it would be thousands of inputs.
MOST_CATEGORIES = 256


_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Column:
    """How one column becomes features."""

    name: str
    fill: float | None = None
    """What a missing number becomes; None refuses it."""
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] | None = None
    """The texts a category column had in training: one feature each; a missing text has none of them."""

    @property
    def width(self) -> int:
        """The number of features."""
        return 1 if self.categories is None else len(self.categories)


@dataclasses.dataclass(frozen=True)
class TableInput:
    """The columns of a table in order, and the shape that a row of features takes."""

    columns: tuple[Column, ...]
    shape: tuple[int, ...]

    dtype = "float32"

    @classmethod
    def fit(
        cls,
        x: np.ndarray | dict[str, np.ndarray],
        names: tuple[str, ...],
        *,
        standard: bool = True,
        missing: str = "mean",
        categories: tuple[str, ...] = (),
    ) -> "TableInput":
        """Means, deviations, fill values and categories of a training table."""
        columns = tuple(
            _fit_column(name, values, standard, missing, name in categories)
            for name, values in _by_name(x, names).items()
        )
        return cls(columns, (sum(column.width for column in columns),))

    def encode(self, raw: Any, columns: tuple[str, ...] | None = None, who: str = "input") -> np.ndarray:
        """A DataFrame, a dict of columns, a list of records or `[rows, columns]` to float32 `[rows, *shape]`.

        Standardizing happens here, in float64: a year or a time stamp has no digits left for it in float32.
        Raises ValueError for missing columns, an unknown category, infinity, and NaN where training allowed none.
        """
        table = self._table(raw, columns, who)
        features = [_features(column, table[column.name], who) for column in self.columns]
        return np.concatenate(features, axis=1).astype(np.float32).reshape(-1, *self.shape)

    def on_device(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Everything was done in `encode`."""
        return jnp.asarray(x).astype(jnp.float32)

    def describe(self) -> str:
        """One phrase for a summary."""
        text = [c for c in self.columns if c.categories is not None]
        filled = any(c.fill is not None for c in self.columns)
        return (
            f"{len(self.columns)} columns as float32 {('rows', *self.shape)}".replace("'", "")
            + (", standardized" if any((c.mean, c.std) != (0.0, 1.0) for c in self.columns) else "")
            + (f", {len(text)} one-hot" if text else "")
            + (", missing numbers filled" if filled else "")
        )

    def _table(self, raw: Any, given: tuple[str, ...] | None, who: str) -> dict[str, np.ndarray]:
        names = tuple(column.name for column in self.columns)
        if isinstance(raw, list | tuple) and raw and all(isinstance(row, dict) for row in raw):
            raw = {name: [row.get(name) for row in raw] for name in dict.fromkeys(key for row in raw for key in row)}
        if hasattr(raw, "columns") and hasattr(raw, "iloc"):
            raw = columns_of_pandas(raw)
        if isinstance(raw, dict):
            lacking = [name for name in names if name not in raw]
            if lacking:
                raise ValueError(
                    f"{who}: the columns {', '.join(lacking)} are missing; given: {', '.join(map(str, raw))}"
                )
            return _columns({name: np.asarray(raw[name]) for name in names}, who)
        array = np.asarray(raw, object) if any(c.categories is not None for c in self.columns) else as_array(raw, who)
        if array.ndim == 1 and array.shape[0] == len(names):
            raise ValueError(f"{who}: x has shape {array.shape}, which is one row; add the batch axis with x[None]")
        order = given if given is not None and set(names) <= set(given) else names
        if array.ndim > 2:
            array = array.reshape(len(array), -1)
        if array.ndim != 2 or array.shape[1] != len(order):
            raise ValueError(
                f"{who}: x has shape {array.shape}; (rows, {len(names)}) is wanted: {', '.join(names[:12])}"
            )
        return _by_name(array, order)


def _columns(table: dict[str, np.ndarray], who: str) -> dict[str, np.ndarray]:
    """The columns as `[rows]`, of equal length."""
    for name, column in table.items():
        if column.ndim == 0:
            raise ValueError(
                f"{who}: the column {name!r} is a single value ({column.item()!r}); a list of values is wanted, one a "
                "row; a single row goes as [row]"
            )
        if column.size != len(column):
            raise ValueError(f"{who}: the column {name!r} has shape {column.shape}; one value a row is wanted: (rows,)")
    sizes = {name: len(column) for name, column in table.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{who}: the columns have different numbers of rows: {sizes}")
    return {name: column.reshape(-1) for name, column in table.items()}


def _by_name(x: np.ndarray | dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return x if isinstance(x, dict) else {name: x[:, i] for i, name in enumerate(names)}


def _fit_column(name: str, values: np.ndarray, standard: bool, missing: str, category: bool) -> Column:
    gaps = missing_in(values)
    known = values[~gaps]
    if values.dtype.kind == "O" or category:
        found = tuple(sorted(set(map(_text, known))))
        if len(found) > MOST_CATEGORIES:
            raise ValueError(
                f"fit: the text column {name!r} has {len(found)} different values ({', '.join(found[:4])}, ...); "
                f"at most {MOST_CATEGORIES} make sense as categories: leave it out with columns=[...], or read it with "
                f"text={name!r}"
            )
        return Column(name, categories=found)
    known = known.astype(np.float64)
    if not len(known):
        raise ValueError(f"fit: every value of the column {name!r} is missing; leave it out with columns=[...]")
    with np.errstate(over="ignore"):
        mean, std = float(known.mean()), float(known.std())
    if not math.isfinite(mean) or not math.isfinite(std):
        raise ValueError(
            f"fit: the column {name!r} holds {known[np.abs(known).argmax()]:.4g}, too large to standardize"
        )
    fill = {"mean": mean, "median": float(np.median(known)), "zero": 0.0}.get(missing)
    # A constant column says nothing: it becomes 0 instead of a division by 0.
    return Column(name, fill, mean, std if std > 0 else 1.0) if standard else Column(name, fill)


def _features(column: Column, values: np.ndarray, who: str) -> np.ndarray:
    if column.categories is not None:
        return _one_hot(column, values, who)
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        bad = next(v for v in values if not _is_number(v))
        raise ValueError(f"{who}: the column {column.name!r} holds numbers, {bad!r} came") from None
    gaps = np.isnan(numbers)
    if np.isinf(numbers).any():
        raise ValueError(f"{who}: infinity in column {column.name!r}, first in row {int(np.argmax(np.isinf(numbers)))}")
    if gaps.any():
        if column.fill is None:
            raise ValueError(
                f"{who}: {int(gaps.sum())} values are missing in column {column.name!r}, the first in row "
                f"{int(np.argmax(gaps))}; the training set was read with none to fill: complete the rows"
            )
        numbers = np.where(gaps, column.fill, numbers)
    with np.errstate(over="ignore"):
        scaled = (numbers - column.mean) / column.std
    if not np.abs(scaled).max(initial=0) <= _LARGEST:
        row = int(np.argmax(~(np.abs(scaled) <= _LARGEST)))
        raise ValueError(f"{who}: {numbers[row]:.4g} in column {column.name!r}, row {row}, is too large for float32")
    return scaled[:, None]


def _one_hot(column: Column, values: np.ndarray, who: str) -> np.ndarray:
    place = {name: i for i, name in enumerate(column.categories or ())}
    out = np.zeros((len(values), len(place)), np.float64)
    for row, value in enumerate(values):
        if value is None or value != value:
            continue
        if (name := _text(value)) not in place:
            raise errors.unknown(f"{who}, row {row}", f"value of column {column.name!r}", name, place)
        out[row, place[name]] = 1
    return out


def _text(value: Any) -> str:
    # 3.0 and 3 are one category: a column of integers with gaps is read as floats.
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return value is None
    return True
