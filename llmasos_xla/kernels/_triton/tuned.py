"""What was measured fastest on a GPU: `kernels/tuned/<device>.json`, written by `benchmarks/tune.py`.

A table holds, by op and class of shapes, an entry of names and numbers: the sizes that a kernel is launched with, or
how long Triton and XLA took. A class is named by words, of which some are sizes: "lstm b=16 n=1 u=768 16-bit". A class
that is not in the table gets the entry of the nearest one: the same words, and no size more than twice or half as
large. On a GPU without a table every op has its own heuristic.
"""

import contextlib
import contextvars
import functools
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp

Entry = Mapping[str, Any]
Ops = Mapping[str, Mapping[str, Entry]]
Sizes = TypeVar("Sizes", bound=tuple)

FOLDER = pathlib.Path(__file__).parent.parent / "tuned"
FORMAT = 1
UNMEASURED = "sizes by the cost model; not measured on this device"

# How much slower than XLA, as measured, a kernel may be and still run: measuring again differs by as much.
TOLERATED = 1.05


class Table(NamedTuple):
    """What is known of one GPU."""

    date: str
    ops: Ops
    path: pathlib.Path | None = None


class _Trial(NamedTuple):
    ops: Ops
    asked: list[tuple[str, str]]


_TRIAL: contextvars.ContextVar[_Trial | None] = contextvars.ContextVar("entries in trial", default=None)


def slug(device: str) -> str:
    """The device's name, fit for a file name.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")


def lookup(device: str, op: str, key: str) -> dict[str, Any] | None:
    """The entry of that class of shapes, or of the nearest, or None where nothing near was measured.

    >>> lookup("a GPU that nobody has", "rnn forward", "lstm b=16 n=1 u=768 16-bit") is None
    True
    """
    return next(entries(device, op, key), None)


def entries(device: str, op: str, key: str) -> Iterator[dict[str, Any]]:
    """All entries that are near enough, the nearest first."""
    trial = _TRIAL.get()
    if trial is not None:
        trial.asked.append((op, key))
    known = _ops(device).get(op, {})
    far = {other: distance for other in known if (distance := _distance(key, other)) is not None}
    for other in sorted(far, key=far.__getitem__):
        yield dict(known[other])


def pick(options: Sequence[Sizes], device: str, op: str, key: str) -> Sizes | None:
    """Of what a kernel can be launched with, the sizes that were measured best, or None where nothing near was.

    An entry of which there is no such option, since it does not fit here, is passed over.

    Raises:
        ValueError: if the table names sizes that the kernel does not have.
    """
    for entry in entries(device, op, key):
        if not options:
            return None
        _refuse_strangers(device, op, entry, type(options[0]))
        for option in options:
            if all(getattr(option, name) == value for name, value in entry.items()):
                return option
    return None


def replaced(default: Sizes, device: str, op: str, key: str) -> Sizes:
    """The sizes of a heuristic with those in the place of them that were measured best.

    Raises:
        ValueError: if the table names sizes that the kernel does not have.
    """
    entry = lookup(device, op, key)
    if entry is None:
        return default
    _refuse_strangers(device, op, entry, type(default))
    return default._replace(**entry)  # pyright: ignore[reportAttributeAccessIssue]


def slower(device: str, op: str, key: str) -> str | None:
    """Why XLA is the better choice for that class of shapes, as far as was measured, or None.

    The entry is of seconds: {"triton": 2.1e-3, "xla": 1.3e-3}.
    """
    entry = lookup(device, op, key)
    if entry is None:
        return None
    ratio = entry["triton"] / entry["xla"]
    return f"takes {ratio:.2f} times as long as XLA; {origin(device)}" if ratio > TOLERATED else None


def origin(device: str, measured: bool = True) -> str:
    """Where a kernel's sizes on that GPU come from, in the words of `explain`: its table if they are `measured`."""
    table = _table(device)
    return f"tuned on {device}, {table.date}" if measured and table is not None else UNMEASURED


def numbers(dtype: Any, wide: str) -> str:
    """The word of a class for its dtype: both 16-bit ones have the same instructions; `wide` is that of the others."""
    return "16-bit" if jnp.dtype(dtype).itemsize == 2 else wide


@contextlib.contextmanager
def trying(ops: Ops | None = None) -> Iterator[list[tuple[str, str]]]:
    """Takes these entries for the table of every GPU, and tells which ones were asked for, by op and key.

    >>> with trying({"toy": {"n=8": {"block": 4}}}) as asked:
    ...     lookup("any GPU", "toy", "n=16"), asked
    ({'block': 4}, [('toy', 'n=16')])
    """
    trial = _Trial(ops or {}, [])
    token = _TRIAL.set(trial)
    try:
        yield trial.asked
    finally:
        _TRIAL.reset(token)


def read(path: pathlib.Path) -> Table:
    """The table in a file.

    Raises:
        ValueError: if it is damaged, or was written for another version of this package.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise _bad(path, f"has format {found}, this version reads {FORMAT}")
    date, ops = content.get("date"), content.get("ops")
    if not isinstance(date, str) or not isinstance(ops, dict) or not _two_levels(ops):
        raise _bad(path, "lacks its date, or its entries by op and class of shapes")
    return Table(date, ops, path)


def _ops(device: str) -> Ops:
    trial = _TRIAL.get()
    if trial is not None:
        return trial.ops
    table = _table(device)
    return {} if table is None else table.ops


def _table(device: str) -> Table | None:
    return _read(FOLDER / f"{slug(device)}.json")


@functools.cache
def _read(path: pathlib.Path) -> Table | None:
    return read(path) if path.exists() else None


def _two_levels(ops: dict[str, Any]) -> bool:
    return all(
        isinstance(keys, dict) and all(isinstance(entry, dict) for entry in keys.values()) for keys in ops.values()
    )


def _refuse_strangers(device: str, op: str, entry: Entry, kind: type) -> None:
    names = kind._fields  # pyright: ignore[reportAttributeAccessIssue]
    strange = sorted(entry.keys() - set(names))
    if strange:
        path = FOLDER / f"{slug(device)}.json"
        raise _bad(path, f'"{op}" has {", ".join(strange)}, its kernel has {", ".join(names)}')


def _bad(path: pathlib.Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}; measure again with `python benchmarks/tune.py`, or delete the file")


def _distance(key: str, other: str) -> float | None:
    """How far two classes are apart, in powers of two of all sizes; None if too far.

    >>> _distance("gru b=24 u=64", "gru b=12 u=64"), _distance("gru b=24", "gru b=64"), _distance("gru b=2", "rnn b=2")
    (1.0, None, None)
    """
    if key == other:
        return 0.0
    (words, sizes), (other_words, other_sizes) = _parsed(key), _parsed(other)
    if words != other_words:
        return None
    apart = [abs(math.log2(a / b)) for a, b in zip(sizes, other_sizes)]
    return sum(apart) if max(apart, default=0.0) <= 1 else None


@functools.cache
def _parsed(key: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of a class without its sizes, and these."""
    pairs = [word.partition("=") for word in key.split()]
    words = tuple(name if number.isdigit() else name + sign + number for name, sign, number in pairs)
    return words, tuple(int(number) for _, _, number in pairs if number.isdigit())
