"""From results to ratios, to Markdown and to JSON."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from side_by_side.arena import Result
from side_by_side.contestants import CONTESTANTS
from side_by_side.rows import ROWS

YARDSTICK = "jax"
# Above this many cores' worth of other work a table is called provisional.
_QUIET = 0.2


def ratio(result: Result, other: Result) -> float:
    """The median over the rounds of result's time / other's time: both of a round met the same weather."""
    return statistics.median(a / b for a, b in zip(result.steps, other.steps))


def fastest_peer(results: Mapping[str, Result]) -> str | None:
    """The peer framework with the smallest median step."""
    peers = [n for n, r in results.items() if CONTESTANTS[n].peer and not r.failed]
    return min(peers, key=lambda name: statistics.median(results[name].steps), default=None)


def markdown(machine: Mapping[str, Any], tables: Mapping[str, Mapping[str, Result]]) -> str:
    """The whole report."""
    return "\n\n".join([_head(machine, tables), *(_table(row, results) for row, results in tables.items())])


def document(machine: Mapping[str, Any], tables: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
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
                    **({"failed": r.failed} if r.failed else _numbers(r, results, peer)),
                    "versions": r.versions,
                }
                for name, r in results.items()
            },
        }
    return {"machine": dict(machine), "quiet": _others(tables) <= _QUIET, "rows": rows}


def _numbers(result: Result, results: Mapping[str, Result], peer: str | None) -> dict[str, Any]:
    return {
        "step_ms": [round(ms, 4) for ms in result.steps],
        "epoch_seconds": [round(s, 4) for s in result.epochs],
        "compile_seconds": round(result.compile_seconds or 0.0, 2),
        "loss": round(result.loss or 0.0, 4),
        "cores_used_by_others": [round(cores, 2) for cores in result.others],
        "over_yardstick": _over(result, results.get(YARDSTICK)),
        "over_fastest_peer": _over(result, results[peer] if peer else None),
    }


def _over(result: Result, other: Result | None) -> float | None:
    return None if other is None or other.failed else round(ratio(result, other), 3)


def _head(machine: Mapping[str, Any], tables: Mapping[str, Mapping[str, Result]]) -> str:
    versions: dict[str, set[str]] = {}
    for results in tables.values():
        for result in results.values():
            for package, version in result.versions.items():
                versions.setdefault(package, set()).add(version)
    listed = ", ".join(f"{package} {'/'.join(sorted(found))}" for package, found in versions.items())
    busy = _others(tables)
    verdict = "quiet machine" if busy <= _QUIET else "PROVISIONAL, the machine was shared"
    return (
        f"{machine['cpu']}, {machine['cores']} of {machine['cores_in_machine']} cores, {machine['system']}, "
        f"{machine['date']}\n{listed}\n{machine['rounds']} rounds; other processes kept {busy:.1f} cores busy in the "
        f"median round: {verdict}"
    )


def _others(tables: Mapping[str, Mapping[str, Result]]) -> float:
    values = [cores for results in tables.values() for r in results.values() for cores in r.others]
    return statistics.median(values) if values else float("nan")


def _table(row_name: str, results: Mapping[str, Result]) -> str:
    row, peer = ROWS[row_name], fastest_peer(results)
    lines = [
        f"**{row_name}**: {row.about}, {row.steps} steps an epoch",
        "",
        "| contestant | step, ms | min..max | epoch, s | / JAX by hand | / fastest peer | compile, s | loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(name, result, results, peer) for name, result in results.items()]
    return "\n".join(lines)


def _line(name: str, result: Result, results: Mapping[str, Result], peer: str | None) -> str:
    label = CONTESTANTS[name].label + (" (fastest peer)" if name == peer else "")
    if result.failed:
        return _cells(label, result.failed, *[""] * 6)
    numbers = _numbers(result, results, peer)
    return _cells(
        label,
        _milliseconds(statistics.median(result.steps)),
        f"{_milliseconds(min(result.steps))}..{_milliseconds(max(result.steps))}",
        f"{statistics.median(result.epochs):.3g}",
        _times(numbers["over_yardstick"]),
        _times(numbers["over_fastest_peer"]),
        f"{result.compile_seconds:.1f}",
        f"{result.loss:.2f}",
    )


def _cells(*values: str) -> str:
    # A reason may hold a bar, which would end its cell.
    return "| " + " | ".join(value.replace("|", "/") for value in values) + " |"


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def order(names: Sequence[str]) -> list[str]:
    """The names in the table's order."""
    return [name for name in CONTESTANTS if name in names]
