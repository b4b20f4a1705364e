"""Reads what is in memory already: arrays, another framework's tensors, pandas frames, indexables of pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmasos_xla.data.readers.content import ARRAY, PAIRS, TEXT, Content
from llmasos_xla.data.rows import count


def as_array(value: Any, who: str) -> np.ndarray:
    """`np.asarray` for NumPy, jax, torch and nested lists, with errors that name the array.

    Raises TypeError for what is no array, ValueError for rows of different lengths.

    >>> as_array([[1, 2], [3, 4]], "x").shape
    (2, 2)
    """
    if isinstance(value, dict):
        names = ", ".join(map(str, value)) or "nothing"
        raise TypeError(f"{who}: an array is wanted, a dict of {names} came; pass one of its arrays, or join them")
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise ValueError(f"{who}: {type(value).__name__} cannot be read as an array: {error}") from None
        raise ValueError(
            f"{who}: the rows have different shapes ({_shapes(value)}); an array needs one shape: pad or crop them"
        ) from None
    if array.dtype.kind == "V" and array.dtype.names is None:
        array = array.astype(np.float32)
    if array.dtype.kind == "O" and array.size and all(isinstance(v, str) for v in array.flat):
        return array
    if array.dtype.kind in "US":
        return array.astype(str).astype(object)
    if array.dtype.kind not in "buif":
        kinds = sorted({type(v).__name__ for v in array.flat}) if array.dtype.kind == "O" else [array.dtype.name]
        raise TypeError(
            f"{who}: numbers or text are wanted, {type(value).__name__} of {', '.join(kinds[:4])} came; "
            "convert it to one dtype first"
        )
    return array


def from_arrays(x: Any, y: Any, name: str = "arrays") -> Content:
    """Inputs (an array, a list of str, or a dict of arrays by input name) with labels or None."""
    inputs: Any
    if isinstance(x, dict):
        inputs = {key: as_array(value, f"Dataset: x[{key!r}]") for key, value in x.items()}
        if not inputs:
            raise ValueError("Dataset: x is an empty dict; arrays by input name are wanted")
        sizes = {key: len(value) if value.ndim else 0 for key, value in inputs.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"Dataset: the inputs have different numbers of rows: {sizes}")
    else:
        inputs = as_array(x, "Dataset: x")
        if inputs.ndim == 0:
            raise ValueError(f"Dataset: x is a single value ({x!r}); rows are wanted: an array [rows, ...]")
    labels = None if y is None else as_array(y, "Dataset: y")
    if labels is not None and labels.ndim == 0:
        raise ValueError(f"Dataset: y is a single value ({y!r}); one label a row is wanted")
    if labels is not None and len(labels) != count(inputs):
        raise ValueError(
            f"Dataset: x has {count(inputs)} rows and y has {len(labels)}; they must be equally many "
            f"(x {_describe(inputs)}, y {labels.shape})"
        )
    is_text = isinstance(inputs, np.ndarray) and inputs.dtype.kind == "O"
    if is_text and inputs.ndim != 1:
        raise ValueError(f"Dataset: x is text of shape {inputs.shape}; one string a row is wanted: [rows]")
    return Content(TEXT if is_text else ARRAY, inputs, labels, name)


class Pairs:
    """Any object with `len` and `[i] -> (x, y)`, read row by row when asked."""

    # Another library's object: nobody promised that two threads may read it at once.
    threads = 1

    def __init__(self, source: Any):
        self._source = source
        first = source[0] if len(source) else None
        x = first[0] if isinstance(first, tuple | list) and first else None
        self.inputs: tuple[str, ...] | None = tuple(map(str, x)) if isinstance(x, Mapping) else None
        """The names of several inputs, where x are dicts."""

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Reads rows one at a time and stacks them."""
        pairs = [self._source[int(i)] for i in indices]
        for i, pair in zip(indices, pairs):
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise TypeError(
                    f"Dataset: {type(self._source).__name__}[{i}] gave {type(pair).__name__}; a pair (x, y) is wanted"
                )
        labels = [y for _, y in pairs]
        return (
            self._stacked([x for x, _ in pairs], indices),
            None if any(y is None for y in labels) else as_array(labels, "Dataset: y"),
        )

    def _stacked(self, rows: list[Any], indices: np.ndarray) -> Any:
        if self.inputs is None:
            return as_array([np.asarray(x) for x in rows], "Dataset: x")
        for i, x in zip(indices, rows):
            if not isinstance(x, Mapping) or x.keys() != set(self.inputs):
                came = f"a dict of {', '.join(map(str, x))}" if isinstance(x, Mapping) else type(x).__name__
                raise ValueError(
                    f"Dataset: row {i} gave {came} for x, the first row a dict of {', '.join(self.inputs)}; all rows "
                    "are to be alike"
                )
        return {name: as_array([np.asarray(x[name]) for x in rows], f"Dataset: x[{name!r}]") for name in self.inputs}


def from_pairs(source: Any) -> Content:
    """An indexable of pairs, for instance a PyTorch `Dataset`."""
    return Content(PAIRS, Pairs(source), None, type(source).__name__)


def _shapes(value: Any) -> str:
    shapes = []
    for row in value:
        try:
            shape = str(np.shape(row))
        except ValueError:
            shape = "ragged"
        if shape not in shapes:
            shapes.append(shape)
    return ", ".join(shapes[:4]) + (", ..." if len(shapes) > 4 else "")


def _describe(x: Any) -> str:
    return str({k: v.shape for k, v in x.items()} if isinstance(x, dict) else x.shape)
