"""Text that is a number or a date in a spelling which nobody reads as one: it must not pass for categories or words."""

import re
from collections.abc import Callable

import numpy as np

_ENOUGH = 10_000

# 1,5  1.000,50  1'000  $12.50  12 %
_NUMBER = re.compile(
    r"(?=.*\d)[-+]?[$€£¥]? ?(\d{1,3}([ ,.'\u2019\u00a0\u202f]\d{3})+|\d*)([.,]\d+)?(e[-+]?\d+)? ?[%$€£¥]?",
    re.IGNORECASE,
)
# 2024-12-31 10:30  31.12.2024  12/31/24  2024-12  10:30:00  3 days 04:05:06; three parts with points may be a version.
_DATE = re.compile(
    r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/])\d{1,2}\3(\d{2}|\d{4})|\d{1,2}\.\d{1,2}\.\d{4})([T ].*)?"
    r"|\d{4}[-/](0[1-9]|1[0-2])|\d{1,2}:\d{2}(:\d{2}.*)?|-?\d+ days?.*"
)


def refuse_lookalikes(table: dict[str, np.ndarray], columns: list[str], name: str, line: Callable[[int], str]) -> None:
    """Raises ValueError for a text column of `columns` in which more than half of the values are numbers or dates.

    `line(row)` names a row in errors.
    """
    for column in columns:
        if table[column].dtype.kind != "O":
            continue
        values = [(row, value) for row, value in enumerate(table[column][:_ENOUGH]) if value is not None]
        for pattern, what, instead in (
            (_NUMBER, "numbers", "make numbers of them first (a CSV's decimal comma is read with decimal=',')"),
            (_DATE, "dates or times", "make numbers of them, for instance days since the first"),
        ):
            found = [(row, value) for row, value in values if pattern.fullmatch(value.strip())]
            if 2 * len(found) > len(values):
                row, value = found[0]
                raise ValueError(
                    f"Dataset: {name}: the text column {column!r} holds {what}, such as {value!r} at {line(row)}: "
                    f"{instead}; categories=[{column!r}] takes them as categories, columns=[...] leaves them out"
                )
