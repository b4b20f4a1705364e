"""The rules by which a training set decides its preprocessing."""

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.array_input import ArrayInput, is_bytes, require_finite
from llmasos_xla.data.labels import Labels
from llmasos_xla.data.readers.content import PAIRS, TABLE, TEXT
from llmasos_xla.data.rows import Lazy
from llmasos_xla.data.table_input import TableInput
from llmasos_xla.data.text_input import TextInput

if TYPE_CHECKING:
    from llmasos_xla.data.dataset import Dataset

NORMALIZE = ("auto", "pixels", "standard", None)

Shape = tuple[int | None, ...]

# What the columns of images in CSV files are called: pixel0, pixel_12, px3, 1x1, 28x28.
_PIXEL_COLUMN = re.compile(r"(pixel|px|p)[_ ]?\d+|\d+x\d+", re.IGNORECASE)
_LEAST_PIXELS = 49
_CHUNK = 1024


def fit_input(dataset: "Dataset", input_shape: Any, tokens: bool | tuple[str, ...]) -> Any:
    """The input part of `Preprocessing.fit`."""
    if not len(dataset):
        raise ValueError(f"fit: the data set {dataset.name} has no rows")
    content = dataset.content
    if content.kind == TEXT:
        return _fit_text(dataset, input_shape)
    if content.kind == TABLE:
        return _fit_table(dataset, input_shape, bool(tokens))
    if dataset.inputs is not None:
        return _fit_inputs(dataset, input_shape, tokens)
    if isinstance(content.x, Lazy):
        return _fit_lazy(dataset, input_shape, bool(tokens))
    return _fit_array(dataset.rows().x, input_shape, dataset.normalize, bool(tokens), content.pixel_max, "x")


def fit_labels(dataset: "Dataset") -> Labels:
    """The label part of `Preprocessing.fit`."""
    if dataset.content.kind != PAIRS:
        return Labels(dataset.classes)
    # Numbers need no list of names: only text labels are worth reading every row for.
    first = dataset.take(np.arange(1)).y
    if first is None or first.dtype.kind != "O":
        return Labels()
    y = dataset.labels
    return Labels(None if y is None else tuple(sorted(set(y))))


def _fit_text(dataset: "Dataset", input_shape: Shape | None) -> TextInput:
    options = dict(dataset.text_options)
    if input_shape is not None and len(input_shape) != 1:
        raise ValueError(f"fit: {dataset.name} is text, encoded to (rows, length); the model wants {input_shape}")
    wanted = None if input_shape is None else input_shape[0]
    if wanted is not None:
        if options["max_length"] not in (None, wanted):
            raise ValueError(f"fit: max_length={options['max_length']}, but the model wants rows of {wanted} ids")
        options["max_length"] = wanted
    return TextInput.fit(dataset.rows().x, **options)


def _fit_inputs(dataset: "Dataset", shapes: Any, tokens: bool | tuple[str, ...]) -> tuple[tuple[str, ArrayInput], ...]:
    lazy, top = not dataset.in_memory, dataset.content.pixel_max
    if lazy and dataset.normalize == "standard":
        raise ValueError(
            f"fit: normalize='standard' wants all rows of several inputs at once, {dataset.name} gives one by one; "
            "standardize them there"
        )
    inputs = dataset.take(np.arange(1)).x if lazy else dataset.rows().x
    shapes = dict.fromkeys(inputs) if shapes is None else dict(shapes)
    if shapes.keys() != inputs.keys():
        raise ValueError(f"fit: the model takes the inputs {', '.join(shapes)}; the data have {', '.join(inputs)}")
    ids = set(inputs) if tokens is True else set(tokens or ())
    found = []
    for name, x in inputs.items():
        who = f"x[{name!r}]"
        if lazy:
            found.append((name, _of_one_row(x, shapes[name], dataset, name in ids, who)))
        else:
            found.append((name, _fit_array(x, shapes[name], dataset.normalize, name in ids, top, who)))
    return tuple(found)


def _fit_table(dataset: "Dataset", input_shape: Shape | None, tokens: bool) -> ArrayInput | TableInput:
    x, names = dataset.rows().x, dataset.content.columns or ()
    plain = isinstance(x, np.ndarray)
    looks = (
        plain
        and is_bytes(x)
        and x.max() > 1
        and (_image_shape(input_shape) or all(map(_PIXEL_COLUMN.fullmatch, names)) or _square(len(names)))
    )
    if dataset.normalize == "pixels" and not (plain and is_bytes(x)):
        raise ValueError(f"fit: normalize='pixels' wants whole numbers from 0 to 255; {dataset.name} holds others")
    if dataset.normalize == "pixels" or (dataset.normalize == "auto" and looks):
        shape, free = resolve(input_shape, (len(names),), dataset.name)
        return ArrayInput(shape, "uint8", free, scale=1 / dataset.content.pixel_max, columns=names)
    if tokens:
        if not plain:
            raise ValueError(
                f"fit: the model takes token ids; {dataset.name} has text columns ({', '.join(names[:8])}): text= "
                "reads one of them as text"
            )
        shape, free = resolve(input_shape, (len(names),), dataset.name)
        return ArrayInput(shape, "int32", free, columns=names)
    table = TableInput.fit(
        x,
        names,
        standard=dataset.normalize in ("auto", "standard"),
        missing=dataset.missing,
        categories=dataset.content.categories,
    )
    shape, _ = resolve(
        input_shape, table.shape, f"{dataset.name} (its {len(names)} columns as {table.shape[0]} features)"
    )
    return TableInput(table.columns, shape)


def _fit_lazy(dataset: "Dataset", input_shape: Shape | None, tokens: bool) -> ArrayInput:
    # One row is enough for the shape; only standardizing needs all of them.
    x = np.asarray(dataset.take(np.arange(1)).x)
    fitted = _of_one_row(x, input_shape, dataset, tokens, dataset.name)
    if dataset.normalize != "standard" or tokens:
        return fitted
    chunks = (np.arange(i, min(i + _CHUNK, len(dataset))) for i in range(0, len(dataset), _CHUNK))
    mean, std = _moments(fitted.encode(dataset.take(chunk).x, who="fit: x") for chunk in chunks)
    return dataclasses.replace(fitted, mean=mean, std=std)


def _of_one_row(x: np.ndarray, wanted: Shape | None, dataset: "Dataset", tokens: bool, who: str) -> ArrayInput:
    fitted, top = _fit_array(x, wanted, None, tokens, dataset.content.pixel_max, who), dataset.content.pixel_max
    if not tokens and (dataset.normalize == "pixels" or (dataset.normalize == "auto" and x.dtype == np.uint8)):
        return ArrayInput(fitted.shape, "uint8", fitted.free, scale=1 / top)
    return fitted


def _fit_array(
    x: np.ndarray, wanted: Shape | None, normalize: str | None, tokens: bool, top: int, who: str
) -> ArrayInput:
    if x.dtype.kind == "O":
        raise TypeError(
            f"fit: {who} is text where numbers are wanted; several inputs with text: encode it to ids first"
        )
    shape, free = resolve(wanted, x.shape[1:], who)
    if tokens:
        return ArrayInput(shape, "int32", free)
    require_finite(x, f"fit: {who}")
    if normalize == "standard":
        plain = ArrayInput(shape, "uint8" if x.dtype == np.uint8 else "float32", free)
        mean, std = _moments([plain.encode(x, who=f"fit: {who}")])
        return dataclasses.replace(plain, mean=mean, std=std)
    if normalize == "pixels":
        if not is_bytes(x) or x.max() > top:
            raise ValueError(
                f"fit: normalize='pixels' wants whole numbers from 0 to {top}; {who} runs from {x.min()} to {x.max()}"
            )
        return ArrayInput(shape, "uint8", free, scale=1 / top)
    # Bytes that are all 0 or 1 are flags or a mask, not pixels.
    if (
        normalize == "auto"
        and x.size
        and x.max() > 1
        and (
            x.dtype == np.uint8
            or ((_image_shape(wanted) or _image_shape(x.shape[1:]) or _flat_square(x)) and is_bytes(x))
        )
    ):
        return ArrayInput(shape, "uint8", free, scale=1 / top)
    if x.dtype == np.uint8:
        return ArrayInput(shape, "uint8", free)
    unit = bool(x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 1)
    return ArrayInput(shape, "float32", free, unit=unit)


def resolve(wanted: Shape | None, came: tuple[int, ...], who: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a sample and its free axes: what the model wants, with lengths it leaves open taken from the data.

    Raises ValueError if the data cannot be brought to it.

    >>> resolve((None, 3), (10, 3), "x"), resolve((28, 28, 1), (784,), "x")
    (((10, 3), (0,)), ((28, 28, 1), ()))
    """
    if wanted is None:
        return came, ()
    free = tuple(axis for axis, n in enumerate(wanted) if n is None)
    candidates = [came, (*came, 1)] if free else [came]
    for shape in candidates:
        if len(shape) == len(wanted) and all(m is None or n == m for n, m in zip(shape, wanted)):
            return shape, free
    if not free:
        full = tuple(n for n in wanted if n is not None)
        ones = [tuple(n for n in s if n != 1) for s in (came, full)]
        if math.prod(full) == math.prod(came) and (ones[0] == ones[1] or min(map(len, ones)) < 2):
            return full, ()
    shown = "(" + ", ".join(["rows", *("any" if n is None else str(n) for n in wanted)]) + ")"
    raise ValueError(f"fit: the model wants {shown}, {who} has {('rows', *came)}".replace("'", ""))


def check_normalize(normalize: str | None) -> None:
    """Raises ValueError for an unknown `normalize=`."""
    if normalize not in NORMALIZE:
        raise errors.unknown("Dataset", "normalize=", normalize, map(str, NORMALIZE))


def _image_shape(shape: Shape | None) -> bool:
    if shape is None:
        return False
    if len(shape) == 3:
        return shape[-1] in (1, 3, 4)
    return len(shape) == 2 and shape[0] == shape[1] and (shape[0] or 0) ** 2 >= _LEAST_PIXELS


def _flat_square(x: np.ndarray) -> bool:
    return x.ndim == 2 and _square(x.shape[1])


def _square(columns: int) -> bool:
    return columns >= _LEAST_PIXELS and math.isqrt(columns) ** 2 == columns


def _moments(parts: Any) -> tuple[Any, Any]:
    """Mean and deviation over all axes but the last, in float64, as nested tuples."""
    count, total, squares = 0, 0.0, 0.0
    shift: Any = None
    for part in parts:
        flat = part.reshape(-1, part.shape[-1] if part.ndim > 1 else 1).astype(np.float64)
        # Sums of squares lose their digits if the mean is large beside the deviation: take a nearby value off first.
        shift = flat[0] if shift is None else shift
        flat = flat - shift
        count, total, squares = count + len(flat), total + flat.sum(axis=0), squares + (flat**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std = np.where(std > 0, std, 1.0)
    return tuple(map(float, mean + shift)), tuple(map(float, std))
