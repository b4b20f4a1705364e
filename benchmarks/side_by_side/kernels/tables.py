"""From cells to ratios, summaries, Markdown and JSON."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from side_by_side import report
from side_by_side.kernels.arena import Cell, Entry
from side_by_side.kernels.contestants import CONTESTANTS, TIMED

OURS, PEER, YARDSTICK = "ours", "torch", "lax"
# What counts as slower than PyTorch, and than plain lax, whose own lowering may be what was chosen.
_LIMIT = {PEER: 1.15, YARDSTICK: 1.05}
Group = tuple[str, str, int]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The ratios ours / another's of a group of cells.

    Attributes:
        other: whose time is divided by.
        cells: how many have both speeds.
        median: the median ratio.
        worst: the largest ratio, and the case it belongs to.
        above: the cases above the limit, worst first.
    """

    other: str
    cells: int
    median: float
    worst: tuple[float, str]
    above: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, ratios rounded."""
        worst, name = self.worst
        return {
            "against": self.other,
            "cells": self.cells,
            "median": round(self.median, 3),
            "worst": [round(worst, 3), name],
            "limit": _LIMIT[self.other],
            "above": list(self.above),
        }


def over(cell: Cell, name: str) -> float | None:
    """Ours / the other's time, as the median of the rounds' ratios."""
    ours, other = (cell.entries.get(n, Entry()).seconds for n in (OURS, name))
    return report.ratio(ours, other) if ours and other else None


def summary(cells: Iterable[Cell], other: str) -> Summary | None:
    """How ours stands against another; None where there is nothing to compare."""
    ratios = [(found, f"{c.problem.case}, {c.part.name}") for c in cells if (found := over(c, other)) is not None]
    if not ratios:
        return None
    ratios.sort(reverse=True)
    above = tuple(f"{name} {found:.2f}" for found, name in ratios if found > _LIMIT[other])
    return Summary(other, len(ratios), statistics.median(r for r, _ in ratios), ratios[0], above)


def groups(cells: Iterable[Cell]) -> dict[Group, list[Cell]]:
    """The cells by op, dtype and number of cores."""
    found: dict[Group, list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.problem.op, cell.problem.dtype, cell.threads), []).append(cell)
    return found


def failures(cells: Iterable[Cell]) -> list[str]:
    """What has no speed though its framework is there, a line each."""
    return [
        f"{name}: {cell.problem.name}, {cell.part.name}, {cell.threads} core(s): {entry.failed}"
        for cell in cells
        for name, entry in cell.entries.items()
        if entry.failed and not entry.failed.startswith("not installed")
    ]


def fine(cells: Iterable[Cell]) -> bool:
    """Whether all of ours has a speed, and nobody's values are red; a peer may lack an operation."""
    return not any(entry.failed and (name == OURS or _red(entry)) for c in cells for name, entry in c.entries.items())


def markdown(
    about: Mapping[str, Any], versions: Iterable[Mapping[str, str]], busy: float, cells: Sequence[Cell]
) -> str:
    """The whole report: the head, the summaries, a table for each group, what went wrong."""
    sections = [report.head(about, versions, busy), _summaries(cells)]
    sections += [_table(group, found) for group, found in groups(cells).items()]
    if wrong := failures(cells):
        sections.append("\n".join(["No speed:", *(f"- {line}" for line in wrong)]))
    return "\n\n".join(sections)


def document(
    about: Mapping[str, Any], versions: Mapping[str, Mapping[str, str]], busy: float, cells: Sequence[Cell]
) -> dict[str, Any]:
    """The same for JSON, with every round."""
    return {
        "machine": dict(about),
        "quiet": report.quiet(busy),
        "cores_used_by_others": round(busy, 2),
        "versions": {name: dict(found) for name, found in versions.items()},
        "summaries": [
            {"op": op, "dtype": dtype, "threads": threads, **found.to_json()}
            for (op, dtype, threads), members in groups(cells).items()
            for other in (PEER, YARDSTICK)
            if (found := summary(members, other))
        ],
        "cells": [_cell(cell) for cell in cells],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "op": cell.problem.op,
        "case": cell.problem.case,
        "dtype": cell.problem.dtype,
        "part": cell.part.name,
        "threads": cell.threads,
        "over_torch": _rounded(over(cell, PEER)),
        "over_lax": _rounded(over(cell, YARDSTICK)),
        "contestants": {name: _entry(entry) for name, entry in cell.entries.items()},
    }


def _entry(entry: Entry) -> dict[str, Any]:
    if entry.failed:
        return {"failed": entry.failed}
    return {
        "variant": entry.variant,
        "milliseconds": {name: [round(1e3 * s, 5) for s in times] for name, times in entry.variants.items() if times},
        "deviation": float(f"{entry.deviation or 0.0:.3g}"),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _summaries(cells: Sequence[Cell]) -> str:
    lines = [
        "| op | dtype | cores | against | cells | median ratio | worst | above the limit |",
        "|---|---|---:|---|---:|---:|---|---|",
    ]
    for (op, dtype, threads), members in groups(cells).items():
        for other in (PEER, YARDSTICK):
            found = summary(members, other)
            if found is None:
                continue
            above = f"{len(found.above)} above {_LIMIT[other]}" + (f": {'; '.join(found.above)}" if found.above else "")
            worst = f"{found.worst[0]:.2f} ({found.worst[1]})"
            label = CONTESTANTS[other].label
            lines.append(
                report.cells(op, dtype, str(threads), label, str(found.cells), f"{found.median:.2f}", worst, above)
            )
    return "\n".join(lines)


def _table(group: Group, cells: Sequence[Cell]) -> str:
    op, dtype, threads = group
    names = [name for name in TIMED if any(name in cell.entries for cell in cells)]
    columns = [f"{CONTESTANTS[name].label}, ms" for name in names] + ["/ PyTorch", "/ plain lax", "GF/s"]
    lines = [
        f"**{op}**, {dtype}, {threads} core(s)",
        "",
        report.cells("case", "part", *columns, "chosen"),
        "|---|---|" + "---:|" * len(columns) + "---|",
    ]
    for cell in cells:
        times = [_milliseconds(cell.entries.get(name)) for name in names]
        ours = cell.entries.get(OURS, Entry())
        ratios = [report.times(over(cell, other)) for other in (PEER, YARDSTICK)]
        speed = cell.part.flops / statistics.median(ours.seconds) / 1e9 if ours.seconds else 0.0
        shown = report.number(speed) if speed else ""
        lines.append(report.cells(cell.problem.case, cell.part.name, *times, *ratios, shown, ours.variant or ""))
    return "\n".join(lines)


def _milliseconds(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return report.number(1e3 * statistics.median(entry.seconds)) if entry.seconds else "red" if _red(entry) else "-"


def _red(entry: Entry) -> bool:
    return bool(entry.failed and entry.failed.startswith("red"))
