"""The ops: each a module.

`TESTS` and `BENCH` are cases by row, `TINY` rows of tests that stand for a benchmark where nothing may take long. With
`problem(row, case)` it makes a problem of a case, with `trials(row, case)` it says what tuning may try. `CHOICE` is the
table that keeps whether the kernels are faster than XLA.
"""

import importlib
import importlib.util
import itertools
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from side_by_side.gpu.problem import Problem, Row, Trial

NAMES = ("rnn", "conv", "scan")


def _there(name: str) -> bool:
    return importlib.util.find_spec(f"llmasos_xla.kernels.{name}") is not None


OPS: dict[str, ModuleType] = {
    name: importlib.import_module(f"side_by_side.gpu.ops.{name}") for name in NAMES if _there(name)
}


def tests() -> list[Row]:
    """What is checked against float64, one of each op in turns."""
    return _in_turns([*op.TESTS] for op in OPS.values())


def bench(tiny: bool = False) -> list[Row]:
    """What is measured, one of each op in turns, in the order of worth."""
    return _in_turns([*op.TINY] if tiny else [*op.BENCH] for op in OPS.values())


def _in_turns(lists: Iterable[list[Row]]) -> list[Row]:
    return [row for turn in itertools.zip_longest(*lists) for row in turn if row is not None]


def problem(row: Row) -> Problem:
    """The problem of that name."""
    return OPS[row.op].problem(row, _case(row))


def trials(row: Row) -> list[Trial]:
    """What tuning may try for it."""
    return list(OPS[row.op].trials(row, _case(row)))


def _case(row: Row) -> Any:
    op = OPS[row.op]
    return {**op.TESTS, **op.BENCH}[row]
