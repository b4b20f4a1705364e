"""`llmasos top`: the queue and its machine in a terminal, every second anew."""

import contextlib
import itertools
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ENDED, ON_DEVICES
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.view import Gpu, Happened, Machine, Row, Slot, View, ago
from llmasos_xla.runtime.viewer import Viewer

_MARKS = "▁▂▃▄▅▆▇█"
_COLORS = ("cyan", "magenta", "yellow", "green", "blue", "bright_cyan", "bright_magenta", "bright_yellow")
_STATES = {
    "running": "green",
    "starting": "cyan",
    "draining": "yellow",
    "queued": "blue",
    "waiting": "bright_black",
    "done": "bright_black",
    "failed": "red",
    "cancelled": "bright_black",
}
_SPARK, _WIDE = 16, 110
_MOST_NODES, _MOST_EVENTS = 8, 6
# Between two readings that tell how busy the machine is (runtime/figures.py).
_FIRST_SECONDS = 0.25


def top(home: Home, *, every: float | int = 1.0, once: bool = False, console: Console | None = None) -> None:
    """Draws the moment again and again until q or Ctrl-C; once where the output is no terminal.

    Args:
        home: of the queue.
        every: seconds between two looks.
        once: only one.
        console: where to draw; standard output if None.

    Raises ValueError if `every` is not above 0.
    """
    if not 0 < every < math.inf:
        raise ValueError(f"top: every wants seconds above 0, {every:g} came")
    console = console or Console()
    Store(home.make().store).close()
    viewer = Viewer(home)
    with contextlib.closing(viewer):
        viewer.remember()
        viewer.look()
        if once or not console.is_terminal:
            time.sleep(_FIRST_SECONDS)
            console.print(render(viewer.look(), console.width))
            return
        drawn = render(viewer.look(), console.width, console.height)
        with _keys() as pressed, Live(drawn, console=console, screen=True, auto_refresh=False) as live:
            while not pressed(every):
                live.update(render(viewer.look(), console.width, console.height), refresh=True)


def render(view: View, width: int, height: int | None = None) -> Group:
    """The moment as rich draws it, in so many columns; and lines, if they are bounded."""
    nodes = _nodes(view.slots, view.rows, width)
    head = [*_head(view, width), Text(), *nodes, *([Text()] if nodes else [])]
    events = [_event(view, each) for each in view.events[-_MOST_EVENTS:]]
    rows = list(view.rows)
    # The table has a line above, and one below tells how many it has no room for.
    if height is not None and len(rows) > (room := max(height - len(head) - len(events) - 3, 1)):
        rows = rows[:room]
    drawn: list[Any] = [*head, _table(rows, width)]
    unseen = sum(view.counts.values()) - sum(view.counts.get(state, 0) for state in ENDED)
    unseen -= sum(row.state not in ENDED for row in view.rows)
    if more := len(view.rows) - len(rows) + unseen:
        drawn.append(Text(f"and {more} more", "bright_black"))
    if events:
        drawn += [Text(), *events]
    return Group(*drawn)


def sparkline(values: Sequence[float], width: int = _SPARK) -> str:
    """Values as marks of eight heights, the lowest to the highest; each mark the mean of its share of them.

    >>> sparkline([4.0, 3.0, 2.0, 1.0, 1.0])
    '█▆▃▁▁'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [len(finite) * i // count for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _MARKS[0] * count
    return "".join(_MARKS[round((value - low) / (high - low) * (len(_MARKS) - 1))] for value in means)


def _head(view: View, width: int) -> list[Text]:
    engine, long = view.engine, 16 if width >= _WIDE else 8
    live = sum(view.counts.get(state, 0) for state in ON_DEVICES)
    waiting = sum(view.counts.get(state, 0) for state in ("queued", "waiting"))
    line = Text("llmasos  ", "bold")
    if not engine:
        line.append("no engine runs; `llmasos up` starts one" if engine is None else "the engine comes up", "yellow")
    else:
        line.append(f"engine {engine['pid']}, up {ago(view.at - engine['since'])}", "not bold")
    line.append(f"   {live} running, {waiting} waiting", "not bold")
    line.append(f"   {time.strftime('%H:%M:%S', time.localtime(view.at))}", "not bold bright_black")
    if view.machine is None:
        return [line, Text(view.why_no_machine, "bright_black", no_wrap=True, overflow="ellipsis")]
    return [line, _machine(view.machine, long), *(_gpu(i, gpu, long) for i, gpu in enumerate(view.machine.gpus))]


def _machine(machine: Machine, long: int) -> Text:
    line = Text("CPU ", no_wrap=True)
    line.append_text(_bar(machine.cpu, long))
    line.append(f" of {machine.cpus}   memory ")
    line.append_text(_bar(machine.memory / machine.memory_total if machine.memory_total else math.nan, long))
    line.append(f" of {size(machine.memory_total)}")
    if math.isfinite(machine.watts):
        line.append(f"   {machine.watts:.0f} W ({machine.watts_are})")
    return line


def _gpu(number: int, gpu: Gpu, long: int) -> Text:
    line = Text(f"GPU {number} ", no_wrap=True)
    line.append_text(_bar(gpu.use, long))
    line.append("   memory ")
    line.append_text(_bar(gpu.memory / gpu.memory_total if gpu.memory_total else math.nan, long))
    line.append(f" of {size(gpu.memory_total)}   ")
    line.append("  ".join(f"{v:.0f} {unit}" for v, unit in ((gpu.watts, "W"), (gpu.celsius, "°C")) if math.isfinite(v)))
    line.append(f"   {gpu.name}", "bright_black")
    return line


def _bar(share: float, width: int) -> Text:
    if not math.isfinite(share):
        return Text("unknown", "bright_black")
    full = round(min(max(share, 0.0), 1.0) * width)
    color = "green" if share < 0.7 else "yellow" if share < 0.9 else "red"
    return Text.assemble(("█" * full, color), ("░" * (width - full), "bright_black"), f" {share:4.0%}")


def _nodes(slots: Sequence[Slot], rows: Sequence[Row], width: int) -> list[Text]:
    """The devices of a node side by side, each with the number of its job."""
    nodes: dict[str, list[Slot]] = {}
    for slot in slots:
        nodes.setdefault(slot.node, []).append(slot)
    # The busy ones first: of many nodes those are looked for.
    order = sorted(nodes, key=lambda name: (not any(slot.jobs for slot in nodes[name]), name))
    longest = min(max(map(len, order), default=0), 20)
    digits = max((len(str(row.number)) for row in rows), default=1)
    room = max((width - longest - 10) // (digits + 3), 1)
    lines = []
    for name in order[:_MOST_NODES]:
        found = nodes[name]
        line = Text(f"{name[:20]:<{longest}} ", no_wrap=True)
        for slot in found[:room]:
            line.append(" ")
            if len(slot.jobs) > 0:
                shared = "+" if len(slot.jobs) > 1 else ""
                line.append(f"{str(slot.jobs[0]) + shared:^{digits + 2}}", f"reverse {_color(slot.jobs[0])}")
            else:
                line.append(f"{'·':^{digits + 2}}", "bright_black")
        free = sum(not slot.jobs for slot in found)
        line.append(f"  {'…' if len(found) > room else ''}{len(found) - free}/{len(found)}", "bright_black")
        lines.append(line)
    if len(order) > _MOST_NODES:
        rest = [slot for name in order[_MOST_NODES:] for slot in nodes[name]]
        busy = sum(bool(slot.jobs) for slot in rest)
        lines.append(
            Text(f"and {len(order) - _MOST_NODES} more nodes, {busy}/{len(rest)} devices busy", "bright_black")
        )
    return lines


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _table(rows: Sequence[Row], width: int) -> Table:
    """Narrow terminals lack the columns that are missed least."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bright_black", expand=True)
    wide = width >= _WIDE
    for name in ("", "name", "state", "prio", "devices", "step", "loss"):
        right = name in ("", "prio", "devices", "step", "loss")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    if wide:
        table.add_column("", no_wrap=True, min_width=_SPARK)
        table.add_column("CPUs", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("since", justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(*_cells(row, wide))
    return table


def _cells(row: Row, wide: bool) -> list[Text]:
    wanted = str(row.least) if row.least == row.most else f"{row.least}-{row.most}"
    devices = f"{len(row.places)} of {wanted}" if row.places and wanted != str(len(row.places)) else wanted
    cells = [
        Text(str(row.number), f"reverse {_color(row.number)}" if row.places else ""),
        Text(row.name if len(row.name) <= 24 else row.name[:23] + "…"),
        Text(row.state, _STATES[row.state]),
        Text(str(row.priority)),
        Text(devices),
        Text("" if row.step is None else str(row.step)),
        Text("" if row.loss is None else f"{row.loss:.4g}"),
    ]
    if wide:
        cells += [
            Text(sparkline([loss for _, loss in row.losses]), "cyan"),
            Text("" if row.cpu is None or not math.isfinite(row.cpu) else f"{row.cpu:.1f}"),
            Text("" if row.memory is None else size(row.memory)),
        ]
    return [*cells, Text(ago(row.seconds)), Text(row.reason, "bright_black")]


def _event(view: View, event: Happened) -> Text:
    line = Text(time.strftime("%H:%M:%S ", time.localtime(event.at)), "bright_black", no_wrap=True, overflow="ellipsis")
    return line.append(f"{event.job} {event.name} ", "default").append(event.what, "default")


def size(count: float | int) -> str:
    """So many bytes, in the unit that suits; empty of NaN.

    >>> size(3 * 2**29), size(700)
    ('1.5 GiB', '700 B')
    """
    if not math.isfinite(count):
        return ""
    for unit, large in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= large:
            return f"{count / large:.{1 if count < 10 * large else 0}f} {unit}"
    return f"{count:.0f} B"


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits so many seconds for q, and says whether it came; without a keyboard it only waits."""
    if not sys.stdin.isatty():
        yield lambda seconds: time.sleep(seconds)
        return
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def pressed(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([file], [], [], left)[0]:
                read = os.read(file, 64)
                # Nothing is read of a terminal that was closed.
                if not read or b"q" in read.lower():
                    return True
        return False

    tty.setcbreak(file)
    try:
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
