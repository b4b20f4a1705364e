"""What was found, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from side_by_side import report
from side_by_side.sharding.layouts import Layout
from side_by_side.sharding.models import KINDS
from side_by_side.sharding.speed import Result

SHARED = (
    "All layouts use the same {cores} cores: with N processes each has an Nth of them, with N devices in one process "
    "all share one pool of threads. The batch is the same too, so each layout does the same work on the same cores. "
    "`/ one device` is the median over the rounds of the two times of a round; above 1.00 is what dividing costs "
    "(messages, smaller products, waiting), not what a machine for each process would gain."
)


def speed(kind: str, results: Mapping[Layout, Result], cores: int, tiny: bool) -> str:
    """Step times of one model."""
    alone = next(iter(results.values()))
    lines = [
        f"**{kind}**: {'a tiny model' if tiny else _about(kind)}; {cores} cores in all",
        "",
        "| layout | step, ms | min..max | / one device |",
        "|---|---:|---:|---:|",
    ]
    for layout, result in results.items():
        if result.failed:
            lines.append(report.cells(str(layout), result.failed, "", ""))
            continue
        over = None if alone.failed else report.ratio(result.steps, alone.steps)
        lines.append(report.cells(str(layout), *_median(result.steps), report.times(over)))
    return "\n".join(lines)


def saves(found: Sequence[Mapping[str, Any]]) -> str:
    """How long checkpoints hold a fit up."""
    lines = [
        "**Checkpoints** of an MLP with Adam on one device, written in the background",
        "",
        "| state, MB | step, ms | steps a save | held up, ms | min..max | in steps | step with saves / without |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        if "failed" in row:
            lines.append(report.cells(f"{row['megabytes']:g}", row["failed"], *[""] * 5))
            continue
        step = 1e3 * statistics.median(row["plain"])
        held = [1e3 * seconds for one in row["held_up"] for seconds in one]
        lines.append(
            report.cells(
                f"{row['bytes'] / 1e6:.1f}",
                report.number(step),
                str(row["every"]),
                *_median(held),
                report.number(statistics.median(held) / step),
                report.times(report.ratio(row["saving"], row["plain"])),
            )
        )
    return "\n".join(lines)


def wire(found: Sequence[Mapping[str, Any]], devices: int) -> str:
    """Bytes that a step sends."""
    lines = [
        f"**Bytes that a device sends in a step**, on {devices} virtual devices: those of the messages in the compiled "
        "program, and by formula",
        "",
        "| model | layout | compiled, MB | by formula, MB | compiled / formula |",
        "|---|---|---:|---:|---:|",
    ]
    for row in found:
        name = report.cells(row["model"], f"{row['strategy']} {devices}")
        formula = sum(row["formula"].values())
        if "failed" in row:
            lines.append(f"{name} {row['failed']} | {formula / 1e6:.3f} | |")
            continue
        compiled = sum(row["compiled"].values())
        ratio = f"{compiled / formula:.2f}" if formula else "not in the formula"
        lines.append(f"{name} {compiled / 1e6:.3f} | {formula / 1e6:.3f} | {ratio} |")
    return "\n".join(lines)


def others(speeds: Mapping[str, Mapping[Layout, Result]]) -> list[float]:
    """How many cores other processes kept busy, each time."""
    return [cores for results in speeds.values() for result in results.values() for cores in result.others]


def document(found: Mapping[str, Any]) -> dict[str, Any]:
    """All of it for JSON, with every round."""
    speeds = {
        kind: {str(layout): vars(result) for layout, result in results.items()}
        for kind, results in found["speed"].items()
    }
    return {**found, "speed": speeds}


def _about(kind: str) -> str:
    return f"{KINDS[kind].about}, batch {KINDS[kind].batch}"


def _median(values: Sequence[float]) -> tuple[str, str]:
    return report.number(statistics.median(values)), f"{report.number(min(values))}..{report.number(max(values))}"
