"""The ops: each a module.

`TESTS` and `BENCH` are cases by row, `TINY` rows of tests that stand for a benchmark where nothing may take long. With
`problem(row, case)` it makes a problem of a case, with `trials(row, case)` it says what tuning may try. `CHOICE` is the
table that keeps whether the kernels are faster than XLA.
"""

import importlib
import importlib.util
import itertools
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from side_by_side.gpu.problem import PARTS, Problem, Row, Trial

NAMES = ("rnn", "conv", "scan")


def _there(name: str) -> bool:
    return importlib.util.find_spec(f"llmasos_xla.kernels.{name}") is not None


OPS: dict[str, ModuleType] = {
    name: importlib.import_module(f"side_by_side.gpu.ops.{name}") for name in NAMES if _there(name)
}


def tests(tiny: bool, wanted: str) -> list[Row]:
    """What is checked against float64, one of each op in turns; `wanted` is a regular expression for their labels."""
    return _in_turns(wanted, (op.TINY if tiny else op.TESTS for op in OPS.values()))


def stress(tiny: bool, wanted: str) -> list[Row]:
    """What is run again and again, since programs wait for each other."""
    return _in_turns(wanted, (op.TINY[:1] if tiny else op.STRESS for op in OPS.values()))


def bench(tiny: bool, wanted: str) -> list[Row]:
    """What is measured, one of each op in turns, in the order of worth."""
    return _in_turns(wanted, (op.TINY if tiny else op.BENCH for op in OPS.values()))


def _in_turns(wanted: str, lists: Iterable[Iterable[Row]]) -> list[Row]:
    rows = [row for turn in itertools.zip_longest(*lists) for row in turn if row is not None]
    return [row for row in rows if re.search(wanted, row.label)]


def problem(row: Row) -> Problem:
    """The problem of that name."""
    return OPS[row.op].problem(row, _case(row))


def trials(row: Row) -> list[Trial]:
    """What tuning may try for it."""
    return sorted(OPS[row.op].trials(row, _case(row)), key=lambda t: PARTS.index(t.part))


def _case(row: Row) -> Any:
    op = OPS[row.op]
    return {**op.TESTS, **op.BENCH}[row]
