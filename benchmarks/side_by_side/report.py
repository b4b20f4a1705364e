"""What every comparison's report is made of: ratios, cells of tables, the head."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Above this many cores' worth of other work a report is called provisional.
_QUIET = 0.2


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of time / other time: both of a round met the same weather."""
    return statistics.median(a / b for a, b in zip(times, others))


def quiet(busy: float) -> bool:
    """Whether other processes left the machine alone; `busy` is the number of cores they used."""
    return busy <= _QUIET


def head(about: Mapping[str, Any], versions: Iterable[Mapping[str, str]], busy: float) -> str:
    """Machine, versions, and whether the machine was quiet: three lines."""
    found: dict[str, set[str]] = {}
    for packages in versions:
        for package, version in packages.items():
            found.setdefault(package, set()).add(version)
    listed = ", ".join(f"{package} {'/'.join(sorted(several))}" for package, several in found.items())
    verdict = "quiet machine" if quiet(busy) else "PROVISIONAL, the machine was shared"
    return (
        f"{about['cpu']}, {about['cores']} of {about['cores_in_machine']} cores, {about['system']}, {about['date']}\n"
        f"{listed}\n"
        f"{about['rounds']} rounds; other processes kept {busy:.1f} cores busy: {verdict}"
    )


def cells(*values: str) -> str:
    """A line of a table."""
    # A reason may hold a bar, which would end its cell.
    return "| " + " | ".join(value.replace("|", "/") for value in values) + " |"


def number(value: float) -> str:
    """Three digits.

    >>> number(1.2345), number(12345.6)
    ('1.23', '12346')
    """
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times(value: float | None) -> str:
    """A ratio, or nothing."""
    return "" if value is None else f"{value:.2f}"
