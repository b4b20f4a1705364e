"""What was found, for readers: Markdown, and its place in benchmarks/README.md."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmasos_xla.kernels._triton.tuned import TOLERATED
from side_by_side.report import cells, number, ratio

BEGIN, END = "<!-- gpu: from here written by gpu.py -->", "<!-- gpu: to here -->"
NOTHING = "Not yet run on a GPU.\n"

# XLA alone, as this package or a user of JAX writes it; then everybody who may take part, in the order of the columns.
_XLA = ("xla", "lax", "associative", "scan", "scan-8")
_WAYS = (*_XLA, "jax.experimental.rnn", "torch", "torch float16")
# Who was checked.
_BY = {"triton": "kernels", "ours": "what runs where there is none"}


def update(readme: Path, devices: Iterable[dict[str, Any]]) -> None:
    """Puts the tables of all devices between the marks.

    Raises:
        ValueError: if the marks are not there.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: expects the lines {BEGIN!r} and {END!r}, once each")
    before, rest = text.split(BEGIN)
    body = "\n".join(markdown(content) for content in devices) or NOTHING
    readme.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{rest.split(END)[1]}")


def markdown(content: dict[str, Any]) -> str:
    """All that is known of a device."""
    parts = [_head(content), _probe(content), _checks(content)]
    rows = content.get("rows", [])
    for op in dict.fromkeys(r["row"][0] for r in rows):
        parts.append(_rows(op, [r for r in rows if r["row"][0] == op]))
    left = content.get("left_out", {}).get("rows", [])
    if left:
        parts.append(f"Not measured, the time was over: {', '.join(left)}.\n")
    return "\n".join(part for part in parts if part)


def verdict(content: dict[str, Any]) -> str:
    """How the public functions' choice does against each of the others, and the rule: never slower than XLA alone."""
    figures = [
        (f"{' '.join(r['row'][1:])}, {part}", r["row"][0], found["ways"])
        for r in content.get("rows", []) for part, found in r.get("parts", {}).items()
        if found["ways"].get("ours", {}).get("seconds")
    ]  # fmt: skip
    lines, slower, held = [cells("op", "against", "figures", "median", "least"), "|---|---|---:|---:|---|"], [], 0
    for op in dict.fromkeys(figure[1] for figure in figures):
        for way in _WAYS:
            ratios = {name: r for name, o, ways in figures if o == op and (r := _times_faster(ways, way)) is not None}
            if ratios:
                least = min(ratios, key=ratios.__getitem__)
                middle = f"{statistics.median(ratios.values()):.2f}"
                lines.append(cells(op, way, str(len(ratios)), middle, f"{ratios[least]:.2f} ({least})"))
    for name, op, ways in figures:
        found = [r for way in _XLA if (r := _times_faster(ways, way)) is not None]
        held += bool(found)
        if found and min(found) < 1 / TOLERATED:
            slower.append(f"{op} {name}: {1 / min(found):.2f}")
    said = f"BROKEN in {len(slower)} of {held} figures: {', '.join(slower)}" if slower else f"holds in {held} figures"
    rule = f"Rule: the default choice takes at most {TOLERATED} times as long as XLA alone: {said}."
    return "\n".join(["Times faster:", "", *lines, "", rule, ""])


def _times_faster(ways: dict[str, Any], way: str) -> float | None:
    """The median over the rounds of another way's time by ours."""
    seconds = ways.get(way, {}).get("seconds")
    return ratio(seconds, ways["ours"]["seconds"]) if seconds else None


def _head(content: dict[str, Any]) -> str:
    about = content["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    driver = f", driver {about['driver']}" if about.get("driver") else ""
    return f"#### {about['name']}\n\n{about['date']}{driver}, `{about['command']}`\\\n{versions}\n"


def _probe(content: dict[str, Any]) -> str:
    probe = content.get("probe")
    if probe is None:
        return ""
    found, lines = probe["found"], ["| what | takes |", "|---|---|"]
    for name, failure in probe["failed"].items():
        lines.append(cells(name, f"failed: {_short(failure)}"))
    times = {
        "a launch inside of a program": found.get("launch_seconds"), "a call from Python": found.get("call_seconds"),
        "a product of 16 x 64 x 64 that waits for the one before": found.get("product"),
    }  # fmt: skip
    lines += [cells(what, _microseconds(value)) for what, value in times.items() if value is not None]
    for what, name in (
        ("a barrier of n programs", "barrier"), ("the same, all multiprocessors taken by such groups", "barrier_full"),
        ("handing a state of 16 x 16 n over among n programs", "handing"),
    ):  # fmt: skip
        if found.get(name):
            lines.append(cells(what, ", ".join(f"{n}: {_microseconds(s)}" for n, s in found[name].items())))
    for part, ways in found.get("recurrence", {}).items():
        said = f"kernels {_microseconds(ways['triton'])}, XLA {_microseconds(ways['xla'])}"
        lines.append(cells(f"{found['recurrence_of']}, {part}", f"{said}; {ways['deviation']:.1e} apart"))
    if found.get("scan_step"):
        said = ", ".join(f"unroll {n}: {_microseconds(s)}" for n, s in found["scan_step"].items())
        lines.append(cells("a step of `lax.scan`, LSTM of 256 units, 16 rows, bfloat16", said))
    if found.get("bandwidth"):
        rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in found["rates"].items())
        lines.append(cells("a copy; products of 8192^3", f"{found['bandwidth'] / 1e9:.0f} GB/s; {rates}"))
    return "\n".join(lines) + "\n"


def _checks(content: dict[str, Any]) -> str:
    checks = content.get("checks")
    if checks is None:
        return ""
    worst = ", ".join(f"{dtype} {value:.1e}" for dtype, value in checks["worst"].items())
    green = " and ".join(f"{count} of {_BY[way]}" for way, count in checks["green"].items()) or "none"
    lines = [
        f"Checks: green are {green}, red {len(checks['red'])}; largest deviations from float64: {worst or 'none'}."
    ]
    if checks["left"]:
        lines.append(f"{checks['left']} were left when the time was over.")
    for entry in checks["red"]:
        lines.append(f"RED: {' '.join(entry['row'])}: {_short(entry.get('failed')) or entry['deviation']}.")
    for entry in checks["stress"]:
        said = (
            _short(entry.get("failed"))
            or entry.get("skipped")
            or entry["differ"]
            or f"{entry['times']} times the same bits"
        )
        lines.append(f"Again and again, {' '.join(entry['row'])}: {said}.")
    return "\n".join(lines) + "\n"


def _rows(op: str, rows: Sequence[dict[str, Any]]) -> str:
    present = {way for r in rows for part in r.get("parts", {}).values() for way in part["ways"]}
    ways = [way for way in _WAYS if way in present]
    lines = [cells(op, "part", "ms", "spread", "runs", "of the roofline", *(f"{way} /" for way in ways))]
    lines.append("|---|---|---:|---:|---|---:|" + "---:|" * len(ways))
    for r in rows:
        name = f"{r['row'][1]} {r['row'][2]}"
        if "failed" in r:
            lines.append(cells(name, f"failed: {_short(r['failed'])}", *[""] * (4 + len(ways))))
        for part, found in r.get("parts", {}).items():
            lines.append(_line(name, part, r["chosen"]["implementation"], found, ways))
    return "\n".join(lines) + "\n"


def _line(name: str, part: str, chosen: str, found: dict[str, Any], ways: Sequence[str]) -> str:
    ours = found["ways"].get("ours", {})
    if not ours.get("seconds"):
        return cells(
            name, part, "RED" if ours.get("red") else "-", "", chosen, _short(ours.get("failed")), *[""] * len(ways)
        )
    times = ours["seconds"]
    median = statistics.median(times)
    bounds = found["floors"]
    limit = max(bounds, key=bounds.__getitem__, default=None)
    share = f"{bounds[limit] / median:.0%} ({limit})" if limit else ""
    others = []
    for way in ways:
        entry = found["ways"].get(way, {})
        if entry.get("seconds"):
            others.append(f"{ratio(entry['seconds'], times):.2f}")
        else:
            others.append("red" if entry.get("red") else "")
    spread = (max(times) - min(times)) / median
    return cells(name, part, number(median * 1e3), f"{spread:.0%}", chosen, share, *others)


def _short(text: str | None) -> str:
    """The first line; the results have all of it."""
    return (text or "").split("\n")[0][:200]


def _microseconds(seconds: float) -> str:
    return f"{number(seconds * 1e6)} µs"
