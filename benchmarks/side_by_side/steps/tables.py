"""From results to ratios, to Markdown and to JSON."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from side_by_side import report
from side_by_side.steps.arena import Result
from side_by_side.steps.contestants import CONTESTANTS
from side_by_side.steps.rows import ROWS

YARDSTICK = "jax"
Tables = Mapping[str, Mapping[str, Result]]


def fastest_peer(results: Mapping[str, Result]) -> str | None:
    """The peer framework with the smallest median step."""
    peers = [n for n, r in results.items() if CONTESTANTS[n].peer and not r.failed]
    return min(peers, key=lambda name: statistics.median(results[name].steps), default=None)


def markdown(about: Mapping[str, Any], tables: Tables) -> str:
    """The whole report."""
    versions = [result.versions for results in tables.values() for result in results.values()]
    return "\n\n".join(
        [report.head(about, versions, _others(tables)), *(_table(row, results) for row, results in tables.items())]
    )


def document(about: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """The same for JSON, with every round."""
    rows = {}
    for row_name, results in tables.items():
        peer = fastest_peer(results)
        rows[row_name] = {
            "batch": ROWS[row_name].batch,
            "steps_per_epoch": ROWS[row_name].steps,
            "fastest_peer": peer,
            "contestants": {
                name: {
                    **({"failed": r.failed} if r.failed else _numbers(row_name, r, results, peer)),
                    "versions": r.versions,
                }
                for name, r in results.items()
            },
        }
    return {"machine": dict(about), "quiet": report.quiet(_others(tables)), "rows": rows}


def order(names: Sequence[str]) -> list[str]:
    """The names in the table's order."""
    return [name for name in CONTESTANTS if name in names]


def _numbers(row_name: str, result: Result, results: Mapping[str, Result], peer: str | None) -> dict[str, Any]:
    return {
        "step_ms": [round(ms, 4) for ms in result.steps],
        "epoch_seconds": [round(s, 4) for s in result.epochs],
        "compile_seconds": round(result.compile_seconds or 0.0, 2),
        _score_name(row_name): float(f"{result.score or 0.0:.4g}"),
        "cores_used_by_others": [round(cores, 2) for cores in result.others],
        "over_yardstick": _over(result, results.get(YARDSTICK)),
        "over_fastest_peer": _over(result, results[peer] if peer else None),
    }


def _over(result: Result, other: Result | None) -> float | None:
    return None if other is None or other.failed else round(report.ratio(result.steps, other.steps), 3)


def _others(tables: Tables) -> float:
    values = [cores for results in tables.values() for r in results.values() for cores in r.others]
    return statistics.median(values) if values else float("nan")


def _score_name(row_name: str) -> str:
    return "loss" if ROWS[row_name].trains else "deviation"


def _table(row_name: str, results: Mapping[str, Result]) -> str:
    row, peer = ROWS[row_name], fastest_peer(results)
    lines = [
        f"**{row_name}**: {row.about}, {row.steps} steps an epoch",
        "",
        "| contestant | step, ms | min..max | epoch, s | / JAX by hand | / fastest peer | compile, s "
        f"| {_score_name(row_name)} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(row_name, name, result, results, peer) for name, result in results.items()]
    return "\n".join(lines)


def _line(row_name: str, name: str, result: Result, results: Mapping[str, Result], peer: str | None) -> str:
    label = CONTESTANTS[name].label + (" (fastest peer)" if name == peer else "")
    if result.failed:
        return report.cells(label, result.failed, *[""] * 6)
    numbers = _numbers(row_name, result, results, peer)
    return report.cells(
        label,
        report.number(statistics.median(result.steps)),
        f"{report.number(min(result.steps))}..{report.number(max(result.steps))}",
        f"{statistics.median(result.epochs):.3g}",
        report.times(numbers["over_yardstick"]),
        report.times(numbers["over_fastest_peer"]),
        f"{result.compile_seconds:.1f}",
        f"{result.score:.2g}",
    )
