"""A plan as a table, like a quote."""

import math
from typing import Any

_HEAD = ("layout", "weights", "optimizer", "activations", "peak", "FLOPs", "sent by axis", "step")


def text(plan: Any) -> str:
    """The table of a `Plan`."""
    head = [*_HEAD, f"{plan.unit}/s", ""]
    rows = [head]
    for row in plan.rows:
        parts = row.memory.parts
        sent = ", ".join(f"{axes} {size(n)}" for axes, n in sorted(row.sent.items(), key=lambda item: -item[1]) if n)
        rows.append(
            [
                layout(row.spec),
                size(parts.get("weights", 0)),
                size(parts.get("optimizer", 0)),
                size(max(row.memory.activations, 0)) if row.compiled else "?",
                size(row.memory.peak) if row.compiled else f"> {size(row.memory.peak)}",
                number(row.flops),
                sent or "-",
                duration(row.seconds),
                number(row.per_second),
                verdict(row),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    compiled = sum(row.compiled for row in plan.rows)
    about = (
        f"{plan.topology}; batch of {plan.batch_size}; {size(plan.memory)} a device may be used; bytes and FLOPs are "
        f"those of one device and one step\n{compiled} of {len(plan.rows)} layouts compiled, the others by formula; "
        f"predicted, not measured; planned in {duration(plan.seconds)}"
    )
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], about])


def layout(spec: Any) -> str:
    """The layout in few words.

    >>> from llmasos_xla.sharding.mesh import MeshSpec
    >>> layout(MeshSpec(data=2, tensor=4)), layout(MeshSpec())
    ('data 2 x tensor 4', 'one device')
    """
    return " x ".join(f"{axis} {n}" for axis, n in spec.sizes.items() if n > 1) or "one device"


def verdict(row: Any) -> str:
    """Fits, may fit, or why not."""
    if row.fits:
        return "fits" if row.compiled else "may fit (formula)"
    return row.why if row.compiled else f"{row.why} (formula)"


def size(count: int | float) -> str:
    """Bytes in words.

    >>> size(3 << 30), size(512)
    ('3.0 GiB', '512 B')
    """
    count, unit = _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def number(count: int | float) -> str:
    """A large number in words.

    >>> number(2.5e12), number(1234.0)
    ('2.5 T', '1.23 k')
    """
    if not math.isfinite(count):
        return "?"
    count, unit = _scaled(count, 1000, ("", " k", " M", " G", " T", " P"))
    return f"{count:.3g}{unit}"


def _scaled(count: int | float, step: int, units: tuple[str, ...]) -> tuple[int | float, str]:
    for unit in units[:-1]:
        if abs(count) < step:
            return count, unit
        count /= step
    return count, units[-1]


def duration(seconds: int | float) -> str:
    """A time in words.

    >>> duration(0.0123), duration(75)
    ('12.3 ms', '75 s')
    """
    if not math.isfinite(seconds):
        return "?"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
