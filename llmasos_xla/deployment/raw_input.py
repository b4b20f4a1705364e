"""From what a user passes to `predict` to tensors by name: the sending side of `Served`."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

INPUT = "input"
"""The name of the tensor where a model has one input."""
TEXT = "text"
"""The name of the tensor that holds texts, of which the server makes a model's ids."""


def to_tensors(x: Any, preprocessing: Any, text: bool = False) -> dict[str, np.ndarray]:
    """Arrays by input name for raw `x`: an array, lists, text, pictures, a DataFrame, records, a dict, a `Dataset`.

    What only this side can read (pictures, a frame of pixel columns) is encoded here; all else is sent as it is and
    encoded by the server. `text` says that the model has an input for texts, of which it makes ids.
    """
    from llmasos_xla.data.table_input import TableInput

    texts = _texts(x) if text else None
    if texts is not None:
        return {TEXT: texts}
    if preprocessing is None:
        # Programs alone: arrays as they are.
        return {n: np.asarray(a) for n, a in x.items()} if isinstance(x, Mapping) else {INPUT: np.asarray(x)}
    datasets = sys.modules.get("llmasos_xla.data.dataset")
    if datasets is not None and isinstance(x, datasets.Dataset):
        x = x.take(np.arange(len(x))).x
    whole = preprocessing.input
    if isinstance(whole, TableInput):
        return _table(x, tuple(column.name for column in whole.columns))
    if not isinstance(whole, tuple):
        return {INPUT: _array(x, whole, "predict")}
    parts = dict(whole)
    if preprocessing.needed == 1 and not isinstance(x, Mapping):
        x = {whole[0][0]: x}
    if not isinstance(x, Mapping) or x.keys() - parts.keys() or set(preprocessing.wanted) - x.keys():
        # `encode` refuses it with the names that are wanted.
        preprocessing.encode(x, who="predict")
    return {name: _array(x[name], part, f"predict[{name!r}]") for name, part in parts.items() if name in x}


def _texts(x: Any) -> np.ndarray | None:
    """Texts as an array of objects; None for what is none."""
    if isinstance(x, Mapping) and x.keys() == {TEXT}:
        x = x[TEXT]
    if isinstance(x, str):
        raise TypeError("predict: a list of texts is wanted, one text came; pass [text]")
    listed = isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.ndim == 1)
    if not listed or not len(x) or not all(isinstance(one, str) for one in x):
        return None
    texts = np.empty(len(x), object)
    texts[:] = [str(one) for one in x]
    return texts


def _array(x: Any, part: Any, who: str) -> np.ndarray:
    from llmasos_xla.data.array_input import ArrayInput
    from llmasos_xla.data.readers.arrays import as_array

    pictures = hasattr(x, "getbands") or (isinstance(x, list | tuple) and len(x) > 0 and hasattr(x[0], "getbands"))
    if isinstance(x, str) or (isinstance(part, ArrayInput) and (pictures or hasattr(x, "columns"))):
        return part.encode(x, None, who)
    return as_array(x, who)


def _table(x: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    from llmasos_xla.data.readers.table import columns_of_pandas

    if hasattr(x, "columns") and hasattr(x, "iloc"):
        x = columns_of_pandas(x)
    elif isinstance(x, list | tuple) and x and all(isinstance(row, Mapping) for row in x):
        x = {name: [row.get(name) for row in x] for name in names}
    if isinstance(x, Mapping):
        # Columns that the model does not know may be there, a label for instance.
        return {name: _column(x[name]) for name in names if name in x}
    array = np.asarray(x)
    if array.dtype.kind in "biuf":
        return {INPUT: array}
    array = np.asarray(x, object)
    if array.ndim != 2 or array.shape[1] != len(names):
        raise ValueError(f"predict: x has shape {array.shape}; (rows, {len(names)}) is wanted: {', '.join(names[:12])}")
    return {name: _column(array[:, i]) for i, name in enumerate(names)}


def _column(values: Any) -> np.ndarray:
    """Numbers with NaN for what is missing, or an object array of texts with None."""
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array
    known = [v for v in array.flat if not _missing(v)]
    if all(isinstance(v, int | float | np.number) for v in known):
        return np.array([np.nan if _missing(v) else v for v in array.flat], np.float64)
    texts = np.empty(array.size, object)
    texts[:] = [None if _missing(v) else _text(v) for v in array.flat]
    return texts


def _missing(value: Any) -> bool:
    return value is None or value != value


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
