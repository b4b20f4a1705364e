"""What the command does, one phase after the other, each within its share of the minutes."""

import math
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side.gpu import ops
from side_by_side.gpu.device import Clock, LostError, Processes
from side_by_side.gpu.problem import BOTH, FORWARD, PARTS, Row, Work
from side_by_side.gpu.records import Records
from side_by_side.gpu.roofline import floors
from side_by_side.gpu.warm import warming
from side_by_side.process import NoSpeedError
from side_by_side.turns import turns

# What nobody knows first, then what the roofline needs.
_PROBES = ("launch", "recurrence", "barrier", "scan", "ceilings", "product", "handing", "launches")
# Rows that are compiled together, before any of them runs.
_CHECKED, _MEASURED = 24, 6
# What may take less is called several times in a row inside of one program, until that takes so long: Python hands a
# call to the device in some tens of microseconds.
_LONG_SECONDS, _LOOP_SECONDS, _MOST_TIMES = 150e-6, 300e-6, 64
# A way that is slower than that is not called in every round.
_PATIENCE_SECONDS, _LEAST_ROUNDS = 0.3, 2
# A row's arrays, at most so many bytes, lie in memory where there is as much.
_MEMORY, _MOST_BYTES = Path("/dev/shm"), 6 << 30


class Run(NamedTuple):
    """What all phases need."""

    processes: Processes
    records: Records
    device: Sequence[Any] | None
    """For compiling ahead; None: nothing is compiled ahead."""
    tables: str
    tiny: bool
    wanted: str
    """A regular expression for the labels of rows."""
    measures: bool
    """Whether the benchmark is run too."""
    rounds: int
    seconds: float
    """How long a way is called in a round."""
    say: Callable[[str], None]


def probe(run: Run, clock: Clock) -> bool:
    """What the device takes for a launch, a barrier, a step; False if kernels cannot be launched at all."""
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in _PROBES:
        try:
            if clock.left() < 0:
                raise NoSpeedError("out of time")
            new = run.processes.ask("jax", 60, do="probe", name=name)["found"]
        except NoSpeedError as failure:
            failed[name] = str(failure)
            run.say(f"probe {name}: FAILED: {failure}")
        else:
            found |= new
            run.say(f"probe {name}: {new}")
        run.records.section("probe", {"found": found, "failed": failed})
        if "launch" in failed:
            break
    return "launch" not in failed


def check(run: Run, clock: Clock) -> bool:
    """Every case against float64, barriers again and again, and the first of the benchmark's shapes against XLA."""
    rows = ops.tests(run.tiny, run.wanted)
    ways = run.processes.ask("jax", do="ways", rows=rows)["ways"]
    # The kernels first.
    cases = sorted(zip(rows, ways), key=lambda case: case[1] != "triton")
    green, red, worst = Counter[str](), [], dict[str, float]()
    found = {"green": green, "red": red, "worst": worst, "left": len(cases), "stress": [], "large": []}
    _stress(run, found["stress"])
    if not run.measures:  # it looks at the benchmark's shapes anyway
        _large(run, found["large"])
    with warming(run.device, [(row, BOTH, None) for row, way in cases if way == "triton"], run.tables):
        while found["left"] and clock.left() > 0:
            some = cases[-found["left"] :][:_CHECKED]
            _start_checks(run, some)
            for number, (row, way) in enumerate(some):
                try:
                    answer = run.processes.ask("jax", do="check", row=row, way=way)
                except NoSpeedError as failure:
                    answer = {"failed": str(failure)}
                    if isinstance(failure, LostError):
                        _start_checks(run, some[number + 1 :])
                if "failed" in answer or answer["deviation"] > answer["limit"]:
                    red.append({"row": row, "way": way, **answer})
                    run.say(f"check {row.label}, {way}: RED: {answer}")
                else:
                    green[way] += 1
                    worst[row.dtype] = max(worst.get(row.dtype, 0.0), answer["deviation"])
            run.processes.forget()
            found["left"] -= len(some)
            run.records.section("checks", found)
    run.say(f"check: green {dict(green)}, {len(red)} red, {found['left']} left; worst deviations {worst}")
    return not red and not any(s.get("red") or "failed" in s for s in (*found["stress"], *found["large"]))


def _start_checks(run: Run, cases: Sequence[tuple[Row, str]]) -> None:
    _begin(run, "start_checks", rows=[row for row, _ in cases], ways=[way for _, way in cases])


def _stress(run: Run, found: list[dict[str, Any]]) -> None:
    """Kernels whose programs wait for each other, run again and again."""
    for row in ops.stress(run.tiny, run.wanted):
        try:
            answer = run.processes.ask("jax", 300, do="stress", row=row, times=2 if run.tiny else 200)
        except NoSpeedError as failure:
            answer = {"failed": str(failure)}
        found.append({"row": row, **answer})
        run.say(f"stress {row.label}: {answer}")
    run.processes.forget()


def _large(run: Run, found: list[dict[str, Any]]) -> None:
    """The first of the benchmark's shapes against XLA in float32."""
    rows = ops.bench(run.tiny, run.wanted)[: 2 if run.tiny else 6]
    once = dict.fromkeys(PARTS, 1)
    for row in rows:
        _begin(run, "start_row", row=row, counts=once, ways=["ours"])
    for row in rows:
        try:
            verdict = run.processes.ask("jax", do="judged", row=row, ways=["ours"], folder=None)["verdicts"]["ours"]
            limit = run.processes.ask("jax", do="work", row=row)["limit"]
            entries = {part: _entry(said, limit) for part, said in verdict.items()}
            answer = {"deviations": verdict, "red": any("failed" in entry for entry in entries.values())}
        except NoSpeedError as failure:
            answer = {"failed": str(failure), "red": True}
        found.append({"row": row, **answer})
        run.say(f"large {row.label}: {answer}")
    run.processes.forget()


def bench(run: Run, clock: Clock) -> bool:
    """Measures the rows in the order of worth until the time is over; False if something was red."""
    rows, fine = ops.bench(run.tiny, run.wanted), True
    jobs = [(row, part, None) for row in rows for part in PARTS]
    done, compiling = 0, 0.0
    with warming(run.device, jobs, run.tables):
        while done < len(rows) and clock.left() > compiling:
            some = rows[done : done + _MEASURED]
            prepared = {row: plan for row in some if (plan := _planned(run, row)) is not None}
            before = clock.left()
            _prepare(run, prepared)
            compiling = before - clock.left()
            for number, (row, plan) in enumerate(prepared.items()):
                if clock.left() < 0:
                    break
                done = rows.index(row) + 1
                try:
                    fine &= _measure(run, row, plan)
                except NoSpeedError as failure:
                    fine = False
                    run.say(f"{row.label}: FAILED: {failure}")
                    run.records.entry("rows", row, {"failed": str(failure)})
                    if isinstance(failure, LostError):
                        _prepare(run, dict([*prepared.items()][number + 1 :]))
            else:
                done = rows.index(some[-1]) + 1
            run.processes.forget()
    left = [row.label for row in rows[done:]]
    run.records.section("left_out", {"rows": left})
    if left:
        run.say(f"bench: out of time, not measured: {', '.join(left)}")
    return fine


class _Plan(NamedTuple):
    answer: dict[str, Any]
    counts: dict[str, int]
    floors: dict[str, dict[str, float]]


def _planned(run: Run, row: Row) -> _Plan | None:
    try:
        answer = run.processes.ask("jax", do="work", row=row)
    except NoSpeedError as failure:
        run.say(f"{row.label}: FAILED: {failure}")
        run.records.entry("rows", row, {"failed": str(failure)})
        return None
    return _Plan(answer, *counted(run, row, answer["work"]))


def counted(run: Run, row: Row, work: dict[str, Any]) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """How many times in a row each part is called, and what bounds it."""
    bounds = {part: floors(Work(*values), row.dtype, run.records.probed) for part, values in work.items()}
    if run.tiny:
        return {FORWARD: 2, BOTH: 1}, bounds
    least = {part: max(found.values(), default=_LONG_SECONDS) for part, found in bounds.items()}
    return {
        p: 1 if s >= _LONG_SECONDS else min(_MOST_TIMES, math.ceil(_LOOP_SECONDS / s)) for p, s in least.items()
    }, bounds


def _prepare(run: Run, plans: dict[Row, _Plan]) -> None:
    for row, plan in plans.items():
        try:
            run.processes.ask("jax", do="start_row", row=row, counts=plan.counts, ways=plan.answer["ways"])
        except NoSpeedError as failure:
            run.say(f"{row.label}: FAILED: {failure}")
    _begin(run)


def _measure(run: Run, row: Row, plan: _Plan) -> bool:
    """Holds all ways against the reference, then times those that are green, in turns."""
    answer, limit = plan.answer, plan.answer["limit"]
    peers = _peers(row, answer)
    with tempfile.TemporaryDirectory(dir=_place()) as folder:
        told = folder if peers else None
        judged = run.processes.ask("jax", do="judged", row=row, ways=answer["ways"], folder=told)
        verdicts, how = judged["verdicts"], {}
        for name, dtype in peers.items():
            verdicts[name], how[name] = dict.fromkeys(PARTS, judged["missing"]), {}
            if judged["missing"] is None:
                verdicts[name], how[name] = _judged_peer(run, name, dtype, plan, folder, len(answer["names"]))
    if isinstance(answer["torch"], str):
        verdicts["torch"] = dict.fromkeys(PARTS, answer["torch"])
    parts: dict[str, Any] = {}
    for part in PARTS:
        entries = {way: _entry(verdict.get(part), limit) for way, verdict in verdicts.items()}
        for name, said in how.items():
            entries[name]["how"] = said.get(part)
        _take_turns(run, row, part, plan, {way for way, e in entries.items() if "failed" not in e}, entries)
        parts[part] = {"times": plan.counts[part], "floors": plan.floors[part], "ways": entries}
    run.records.entry("rows", row, {"chosen": answer["chosen"], "limit": limit, "parts": parts})
    run.say(f"{row.label}: {_in_short(parts)}")
    return not any(e.get("red") for part in parts.values() for e in part["ways"].values())


def _place() -> Path | None:
    """Where files lie in memory, or None for the usual folder."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _MOST_BYTES else None


def _entry(verdict: Any, limit: float) -> dict[str, Any]:
    if isinstance(verdict, float) and verdict <= limit:
        return {"deviation": verdict, "seconds": []}
    if isinstance(verdict, float):
        return {"red": True, "failed": f"deviates by {verdict:.2g}, at most {limit:g}"}
    return {"failed": verdict}


def _peers(row: Row, answer: dict[str, Any]) -> dict[str, str]:
    """PyTorch in the row's dtype, and for bfloat16 in float16 too, where cuDNN is faster."""
    if isinstance(answer["torch"], str):
        return {}
    return {"torch": row.dtype, **({"torch float16": "float16"} if row.dtype == "bfloat16" else {})}


def _judged_peer(run: Run, name: str, dtype: str, plan: _Plan, folder: str, arrays: int) -> tuple[Any, Any]:
    answer = plan.answer
    try:
        said = run.processes.ask(
            "torch", do="judged", name=name, dtype=dtype, told_of=answer["torch"], names=answer["names"],
            folder=folder, results=len(list(Path(folder).glob("cotangent*"))), counts=plan.counts,
        )  # fmt: skip
    except NoSpeedError as failure:
        return dict.fromkeys(PARTS, str(failure)), {}
    return said["verdicts"], said["how"]


def _take_turns(run: Run, row: Row, part: str, plan: _Plan, green: set[str], entries: dict[str, Any]) -> None:
    """Each way once a round; who begins moves on."""
    here = [way for way in plan.answer["ways"] if way in green]
    peers = [name for name in ("torch", "torch float16") if name in green]
    common = {"part": part, "seconds": run.seconds}
    for number in range(run.rounds):
        found = run.processes.ask("jax", do="timed", row=row, ways=turns(here, number), **common)["seconds"]
        if number + 1 >= _LEAST_ROUNDS:
            here = [way for way in here if found[way] * plan.counts[part] < _PATIENCE_SECONDS]
        for name in peers:
            try:
                found[name] = run.processes.ask("torch", do="timed", name=name, **common)["seconds"]
            except NoSpeedError as failure:
                entries[name] = {"failed": str(failure)}
                peers = [p for p in peers if p != name]
        for way, seconds in found.items():
            entries[way]["seconds"].append(seconds)


def _in_short(parts: dict[str, Any]) -> str:
    said = []
    for part, found in parts.items():
        times = [
            f"{way} {statistics.median(e['seconds']) * 1e3:.3f}" if e.get("seconds") else f"{way} -"
            for way, e in found["ways"].items()
        ]
        said.append(f"{part}, ms: {', '.join(times)}")
    return "; ".join(said)


def _begin(run: Run, what: str | None = None, **request: Any) -> None:
    """Begins something that compiles, if it is told, and waits; what fails is said where it is asked for."""
    try:
        if what is not None:
            run.processes.ask("jax", do=what, **request)
        run.processes.ask("jax", 400, do="wait")
    except NoSpeedError as failure:
        run.say(f"compiling: FAILED: {failure}")
