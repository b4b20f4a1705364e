"""Preprocessing to JSON and back; reading checks everything, since a model file may come from anywhere."""

import math
from typing import TYPE_CHECKING, Any

from llmasos_xla.data.array_input import DTYPES, ArrayInput
from llmasos_xla.data.labels import Labels
from llmasos_xla.data.table_input import Column, TableInput
from llmasos_xla.data.text_input import LEVELS, TextInput

if TYPE_CHECKING:
    from llmasos_xla.data.preprocessing import Preprocessing

VERSION = 1
# Far above any real input, far below what would exhaust memory when it is believed.
LARGEST_AXIS = 2**31 - 1


def to_json(preprocessing: "Preprocessing") -> dict[str, Any]:
    """The plain form of a Preprocessing."""
    part = preprocessing.input
    inputs = [{"name": name, **_input(p)} for name, p in part] if isinstance(part, tuple) else _input(part)
    needed = {} if preprocessing.needed is None else {"needed": preprocessing.needed}
    return {"version": VERSION, "input": inputs, "label_names": _list(preprocessing.label_names), **needed}


def from_json(value: Any) -> "Preprocessing":
    """Raises ValueError naming the field that is wrong."""
    from llmasos_xla.data.preprocessing import Preprocessing

    # What a model wants of several inputs is said where there are several: files of before have none.
    several = isinstance(value, dict) and isinstance(value.get("input"), list)
    value = {"needed": None, **value} if several else value
    _keys(value, {"version", "input", "label_names"} | ({"needed"} if several else set()), "preprocessing")
    if value["version"] != VERSION:
        raise _wrong("version", value["version"], f"{VERSION}; a newer file needs a newer llmasos_xla")
    names = None if value["label_names"] is None else _strings(value["label_names"], "label_names")
    if isinstance(value["input"], list):
        named = []
        for i, item in enumerate(value["input"]):
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise _wrong(f"input[{i}]", item, "an object with a name")
            part = _read_input({k: v for k, v in item.items() if k != "name"}, f"input[{i}]")
            if not isinstance(part, ArrayInput):
                raise _wrong(f"input[{i}].kind", item["kind"], "array")
            named.append((item["name"], part))
        if not named or len({name for name, _ in named}) < len(named):
            raise _wrong("input", [name for name, _ in named], "one or more inputs of different names")
        needed = value["needed"]
        if needed is not None and (type(needed) is not int or not 1 <= needed <= len(named)):
            raise _wrong("needed", needed, f"a whole number from 1 to {len(named)}")
        return Preprocessing(tuple(named), Labels(names), needed)
    return Preprocessing(_read_input(value["input"], "input"), Labels(names))


def _input(part: Any) -> dict[str, Any]:
    if isinstance(part, TextInput):
        return {
            "kind": "text", "vocabulary": list(part.vocabulary), "max_length": part.max_length, "level": part.level
        }  # fmt: skip
    if isinstance(part, TableInput):
        columns = [
            {"name": c.name, "fill": c.fill, "mean": c.mean, "std": c.std, "categories": _list(c.categories)}
            for c in part.columns
        ]
        return {"kind": "table", "shape": list(part.shape), "columns": columns}
    return {
        "kind": "array", "shape": list(part.shape), "dtype": part.dtype, "free": list(part.free), "scale": part.scale,
        "mean": _list(part.mean), "std": _list(part.std), "columns": _list(part.columns), "unit": part.unit,
    }  # fmt: skip


def _read_input(value: Any, at: str) -> ArrayInput | TableInput | TextInput:
    readers = {"array": _read_array, "table": _read_table, "text": _read_text}
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in readers:
        raise _wrong(f"{at}.kind", kind, f"one of {', '.join(readers)}")
    return readers[kind](value, at)


def _read_array(value: dict, at: str) -> ArrayInput:
    _keys(value, {"kind", "shape", "dtype", "free", "scale", "mean", "std", "columns", "unit"}, at)
    shape = _shape(value["shape"], f"{at}.shape")
    if value["dtype"] not in DTYPES:
        raise _wrong(f"{at}.dtype", value["dtype"], f"one of {', '.join(DTYPES)}")
    free = _shape(value["free"], f"{at}.free")
    if len(set(free)) < len(free) or any(axis >= len(shape) for axis in free):
        raise _wrong(f"{at}.free", value["free"], f"different axes below {len(shape)}")
    scale = None if value["scale"] is None else _number(value["scale"], f"{at}.scale")
    if scale is not None and scale <= 0:
        raise _wrong(f"{at}.scale", scale, "a number above 0")
    mean, std = (None if value[k] is None else _numbers(value[k], f"{at}.{k}") for k in ("mean", "std"))
    if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)) or (std and min(std) <= 0):
        raise _wrong(f"{at}.std", value["std"], "as many numbers above 0 as mean has")
    if mean and len(mean) not in (1, shape[-1] if shape else 1, math.prod(shape)):
        raise _wrong(f"{at}.mean", value["mean"], f"1 or {shape[-1] if shape else 1} numbers")
    columns = None if value["columns"] is None else _strings(value["columns"], f"{at}.columns")
    if not isinstance(value["unit"], bool):
        raise _wrong(f"{at}.unit", value["unit"], "true or false")
    return ArrayInput(shape, value["dtype"], free, scale, mean, std, columns, value["unit"])


def _read_table(value: dict, at: str) -> TableInput:
    _keys(value, {"kind", "shape", "columns"}, at)
    if not isinstance(value["columns"], list) or not value["columns"]:
        raise _wrong(f"{at}.columns", value["columns"], "a list of columns")
    columns = tuple(_column(c, f"{at}.columns[{i}]") for i, c in enumerate(value["columns"]))
    shape = _shape(value["shape"], f"{at}.shape")
    width = sum(column.width for column in columns)
    if math.prod(shape) != width:
        raise _wrong(f"{at}.shape", value["shape"], f"a shape of {width} features, as the columns give")
    return TableInput(columns, shape)


def _column(value: Any, at: str) -> Column:
    _keys(value, {"name", "fill", "mean", "std", "categories"}, at)
    _strings([value["name"]], f"{at}.name")
    fill = None if value["fill"] is None else _number(value["fill"], f"{at}.fill")
    mean, std = _number(value["mean"], f"{at}.mean"), _number(value["std"], f"{at}.std")
    if std <= 0:
        raise _wrong(f"{at}.std", std, "a number above 0")
    categories = None if value["categories"] is None else _strings(value["categories"], f"{at}.categories")
    return Column(value["name"], fill, mean, std, categories)


def _read_text(value: dict, at: str) -> TextInput:
    _keys(value, {"kind", "vocabulary", "max_length", "level"}, at)
    if value["level"] not in LEVELS:
        raise _wrong(f"{at}.level", value["level"], f"one of {', '.join(LEVELS)}")
    (length,) = _shape([value["max_length"]], f"{at}.max_length")
    if not length:
        raise _wrong(f"{at}.max_length", length, "a whole number above 0")
    return TextInput(_strings(value["vocabulary"], f"{at}.vocabulary"), length, value["level"])


def _keys(value: Any, keys: set[str], at: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(at, value, f"an object with {', '.join(sorted(keys))}")
    if value.keys() != keys:
        raise ValueError(
            f"preprocessing: {at} lacks {sorted(keys - value.keys())} and has {sorted(map(str, value.keys() - keys))} "
            "left over; the file is damaged or from another version"
        )


def _shape(value: Any, at: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= LARGEST_AXIS for n in value):
        raise _wrong(at, value, "whole numbers from 0")
    return tuple(value)


def _number(value: Any, at: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _wrong(at, value, "a finite number")
    return float(value)


def _numbers(value: Any, at: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong(at, value, "a list of numbers")
    return tuple(_number(v, f"{at}[{i}]") for i, v in enumerate(value))


def _strings(value: Any, at: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise _wrong(at, value, "a list of strings")
    if len(set(value)) < len(value):
        raise _wrong(at, value, "different strings")
    return tuple(value)


def _list(value: tuple | None) -> list | None:
    return None if value is None else list(value)


def _wrong(at: str, value: Any, wanted: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"preprocessing: {at} is {shown[:80]}{'...' if len(shown) > 80 else ''}; {wanted} is wanted")
