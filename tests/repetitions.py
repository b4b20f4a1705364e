"""A law that takes long is held always where it is likeliest to break, and everywhere by the slow tests."""

from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest


def slow_but(quick: Collection[tuple], *axes: Iterable[Any]) -> list[Any]:
    """All combinations of the axes' values, as parameters of a test; those that are not among the quick are slow."""
    rows = list(product(*axes))
    unknown = [row for row in quick if row not in rows]
    assert not unknown, f"quick are {unknown}, which are no combinations of the axes"
    return [pytest.param(*row, marks=[] if row in quick else [pytest.mark.slow]) for row in rows]
