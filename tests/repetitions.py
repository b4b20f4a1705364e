"""A law that takes long is held always where it is likeliest to break, and everywhere by the thorough or slow tests."""

from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest


def thorough_but(quick: Collection, cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters of a test, named by what they are; those that are not among the quick are thorough."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    kept = [case if isinstance(case, tuple) else (case,) for case in quick]
    unknown = [case for case in kept if case not in cases]
    assert not unknown, f"quick are {unknown}, which are none of the cases"
    return [pytest.param(*case, marks=[] if case in kept else [pytest.mark.thorough]) for case in cases]


def slow_but(quick: Collection[tuple], *axes: Iterable[Any]) -> list[Any]:
    """All combinations of the axes' values, as parameters of a test; those that are not among the quick are slow."""
    rows = list(product(*axes))
    unknown = [row for row in quick if row not in rows]
    assert not unknown, f"quick are {unknown}, which are no combinations of the axes"
    return [pytest.param(*row, marks=[] if row in quick else [pytest.mark.slow]) for row in rows]
