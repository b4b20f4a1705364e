"""Real jobs through the queue of this machine: training that can be resized, training that cannot, and plain scripts.

python benchmarks/queueing.py                 # 40 jobs on 4 slots, twice: some twenty minutes
python benchmarks/queueing.py --cycle         # one job makes room for another, five times: a minute and a half
python benchmarks/queueing.py --rounding      # one fit, interrupted and not: are the losses the same? six minutes
python benchmarks/queueing.py --quick         # 6 short ones: does it work?
python benchmarks/queueing.py --jobs 60 --scale 1 --seed 3 --out queueing.json

The jobs are those of `llmasos_xla/runtime/workload.py`, their seconds times --scale, once as they are ("planner") and
once at fixed sizes, with one priority, and none that makes room ("in turn"). Elastic jobs, and half of the others, are
fits that save themselves; a quarter of the others are fits that do not, a quarter scripts without this package. All is
measured, nothing simulated: imports, compiling, saving and starting again included. Each job has to be done once, and
those that were interrupted most are trained again, alone and undisturbed: how far apart the losses are is told. Sums
over another number of devices are rounded otherwise, and thousands of steps enlarge that; `--rounding` tells by how
much, and that an interruption by itself changes no bit.
"""

import argparse
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import machine
from side_by_side.report import cells

import llmasos_xla as lm
from llmasos_xla.progress import EXIT_SAVED, VARIABLE, read
from llmasos_xla.runtime import service
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ON_DEVICES
from llmasos_xla.runtime.launchers.holding import read_held
from llmasos_xla.runtime.store import Event, Store
from llmasos_xla.runtime.workload import CLASSES, Job, workload

_BATCH, _STEPS_AN_EPOCH, _ROUNDING_EPOCHS = 120, 20, 150
_FIT = f"""
import sys
import jax
import numpy as np
import llmasos_xla as lm

seed, epochs, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(seed)
x = rng.normal(size=({_BATCH * _STEPS_AN_EPOCH}, 16, 16, 4)).astype("float32")
y = (x[:, 4:12, 4:12].mean((1, 2)).argmax(-1)).astype("int32")
model = lm.Sequential([
    lm.layers.Conv2D(32, 3, activation="relu"), lm.layers.Conv2D(32, 3, activation="relu"),
    lm.layers.GlobalAveragePooling2D(), lm.layers.Dense(4, activation="softmax"),
])
model.compile(lm.Optimizer("sgd", 0.05), "sparse_categorical_crossentropy")
saving = {{}} if folder == "-" else {{"checkpoint": folder, "resume": True}}
history = model.fit(
    x, y, epochs=epochs, batch_size={_BATCH}, verbose=0, **saving,
    shard="data" if len(jax.devices()) > 1 else None,
)
losses = history.history["loss"]
print(f"loss {{losses[-1]!r}} of {{len(losses)}} epochs, {{len(jax.devices())}} devices")
"""
_PLAIN = """
import sys, time
end, total = time.process_time() + float(sys.argv[1]), 0
while time.process_time() < end:
    total += sum(i * i for i in range(10_000))
print("loss - plain", total % 7)
"""


def main() -> None:
    options = _options()
    found: dict[str, Any] = {"machine": machine.describe()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "fit.py").write_text(_FIT)
        (place / "plain.py").write_text(_PLAIN)
        if options.cycle:
            print(cycles(place, options))
            return
        if options.rounding:
            print(rounding(place))
            return
        pace = _pace(place)
        found["seconds_an_epoch"] = pace
        drawn = workload(options.jobs, options.devices, seed=options.seed)
        trace = [(job, _kind(i, job), max(round(job.seconds * options.scale / pace), 3)) for i, job in enumerate(drawn)]
        found["runs"] = {}
        for name in ("planner", "in turn"):
            print(f"{name} ...", file=sys.stderr, flush=True)
            found["runs"][name] = _run(place, name, trace, pace, options)
    print(table(found["runs"]))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if any(run["wrong"] for run in found["runs"].values()):
        sys.exit("some jobs were not done exactly once: " + json.dumps(found["runs"]))


def cycles(place: Path, options: Any) -> str:
    """A on three slots of four makes room for B, which is more urgent and wants two; seconds from B's submission."""
    home, rows = Home(place / "cycle").make(), []
    service.up(home, "--devices", "4", "--least-run", "0", "--no-page")
    store = Store(home.store)
    try:
        for again in range(options.again + 2):
            saved = place / f"low-{again}"
            low = lm.runtime.submit(
                place / "fit.py", 0, 100_000, saved, name="A", devices=(1, 3), sizes=(1, 3), home=home.path
            )
            while low.progress is None or low.progress.step < 5 * _STEPS_AN_EPOCH:
                time.sleep(0.02)
            arguments = [0, 100, place / f"urgent-{again}"]
            began = time.time()
            urgent = lm.runtime.submit(place / "fit.py", *arguments, name="B", priority=10, devices=2, home=home.path)
            while (told := urgent.progress) is None or told.step == 0:
                time.sleep(0.005)
            events = {job.number: {event.what: event.at for event in job.events} for job in (low, urgent)}
            gone = max(event.at for event in low.events if event.what == "queued")
            rows.append((gone - began, events[urgent.number]["running"] - began, told.at - began))
            urgent.wait()
            low.cancel()
            low.wait()
    finally:
        service.down(home)
        store.close()
    middle = [statistics.median(row[i] for row in rows) for i in range(3)]
    most = [max(row[i] for row in rows) for i in range(3)]
    what = ("A has saved and ended", "B's process runs", "B has done its first step")
    return "\n".join(f"{w}: {m:.2f} s after B came, {t:.2f} s at most" for w, m, t in zip(what, middle, most))


def rounding(place: Path) -> str:
    """Last losses of a fit that is told to save itself and goes on, less those of one that is left alone."""
    whole = {devices: _alone(place, ["0", str(_ROUNDING_EPOCHS), "-"], devices) for devices in (1, 2, 4)}
    head = ["on so many devices, one after the other", *(f"from {n} undisturbed" for n in whole)]
    lines = [cells(*head), "|---|" + "---:|" * len(whole)]
    for sizes in (*((n,) for n in whole), *((n,) * 4 for n in whole), (1, 2, 4, 1)):
        arguments = ["0", str(_ROUNDING_EPOCHS), "-" if len(sizes) == 1 else f"saved-{sizes}"]
        for i, devices in enumerate(sizes[:-1]):
            _alone(place, arguments, devices, told_at=_ROUNDING_EPOCHS * _STEPS_AN_EPOCH * (i + 1) // len(sizes))
        loss = _alone(place, arguments, sizes[-1])
        lines.append(cells(", ".join(map(str, sizes)), *(f"{abs(loss - other):.1e}" for other in whole.values())))
    return "\n".join(lines)


def _pace(place: Path) -> float:
    """Seconds of an epoch on one slot, compiled."""
    seconds = []
    for epochs in ("5", "35"):
        began = time.perf_counter()
        _alone(place, ["0", epochs, "-"], 1)
        seconds.append(time.perf_counter() - began)
    return (seconds[1] - seconds[0]) / 30


def _kind(i: int, job: Job) -> str:
    """What a job of the trace is."""
    if len(job.sizes) > 1 or i % 4 < 2:
        return "saves"
    return "fit" if i % 4 == 2 else "plain"


def _run(place: Path, name: str, trace: Sequence[tuple[Job, str, int]], pace: float, options: Any) -> dict[str, Any]:
    home = Home(place / name.replace(" ", "-")).make()
    service.up(home, "--devices", str(options.devices), "--least-run", str(options.least_run), "--no-page")
    elastic = name == "planner"
    store, began = Store(home.store), time.time()
    jobs = []
    try:
        for i, (job, kind, epochs) in enumerate(trace):
            time.sleep(max(began + job.arrival * options.scale - time.time(), 0.0))
            saved = str(home.path / f"saved-{i}") if kind == "saves" else "-"
            command = [place / "plain.py", epochs * pace] if kind == "plain" else [place / "fit.py", i, epochs, saved]
            sizes = job.sizes if elastic and kind == "saves" else (job.asked,)
            jobs.append(
                lm.runtime.submit(
                    *command,
                    name=job.name,
                    priority=job.priority if elastic else 0,
                    devices=(sizes[0], sizes[-1]),
                    sizes=sizes,
                    preemptible=None if elastic else False,
                    home=home.path,
                )
            )
        for job in jobs:
            job.wait()
    finally:
        service.down(home)
    events = {job.number: store.events(job.number) for job in jobs}
    found = figures([job for job, _, _ in trace], [events[job.number] for job in jobs], options.devices)
    found["failures"] = sum(job.job.failures for job in jobs)
    held = [read_held(home.job(job.number) / f"{job.job.token}") for job in jobs]
    found["largest_held_gib"] = max((each.most for each in held if each), default=0) / 2**30
    found["wrong"] = [job.name for job in jobs if job.state != "done" or len(_losses(job.logs())) != 1]
    if elastic:
        most = sorted(range(len(jobs)), key=lambda i: -_starts(events[jobs[i].number]))[: options.again]
        found["again"] = {}
        for i in (i for i in most if trace[i][1] == "saves"):
            loss = _alone(place, [str(i), str(trace[i][2]), "-"], trace[i][0].asked)
            apart = abs(loss - float(_losses(jobs[i].logs())[0]))
            found["again"][jobs[i].name] = {"starts": _starts(events[jobs[i].number]), "apart": apart}
    store.close()
    return found


def figures(trace: Sequence[Job], events: Sequence[Sequence[Event]], devices: int) -> dict[str, Any]:
    """What became of jobs, by what the queue has written down."""
    busy, last, first = 0.0, 0.0, min(each[0].at for each in events)
    waits: dict[int, list[float]] = {priority: [] for priority in CLASSES}
    took, drains = [], []
    preempted = resized = 0
    for job, mine in zip(trace, events, strict=True):
        states = [event for event in mine if event.what in (*ON_DEVICES, "queued", "done", "failed", "cancelled")]
        waited, size = 0.0, 0
        for event, after in itertools.pairwise(states):
            seconds = after.at - event.at
            if event.what == "queued":
                waited += seconds
            else:
                size = event.more.get("devices", size)
                busy += size * seconds
            if event.what == "draining":
                drains.append(seconds)
        sizes = [event.more["devices"] for event in states if event.what == "starting"]
        resized += sum(one != other for one, other in itertools.pairwise(sizes))
        preempted += sum(one == other for one, other in itertools.pairwise(sizes))
        waits[job.priority].append(waited)
        took.append(states[-1].at - states[0].at)
        last = max(last, states[-1].at)
    return {
        "jobs": len(events),
        "minutes": (last - first) / 60,
        "devices_busy": busy / devices / (last - first),
        "waited_seconds": {p: {"mean": statistics.mean(w), "most": max(w)} for p, w in waits.items() if w},
        "turnaround_seconds": statistics.mean(took),
        "interrupted": preempted + resized,
        "resized": resized,
        "drain_seconds": {"median": statistics.median(drains), "most": max(drains)} if drains else None,
    }


def table(runs: dict[str, dict[str, Any]]) -> str:
    """The runs in Markdown."""
    classes = [f"waits, priority {priority}" for priority in CLASSES]
    head = [f"{runs['planner']['jobs']} jobs", "all done in", "devices taken", *classes, "turnaround", "interrupted"]
    lines = [cells(*head), "|---|" + "---:|" * (len(head) - 1)]
    for name, run in runs.items():
        waits = [run["waited_seconds"].get(priority) for priority in CLASSES]
        told = [f"{wait['mean']:.0f} / {wait['most']:.0f} s" if wait else "-" for wait in waits]
        first = [name, f"{run['minutes']:.1f} min", f"{run['devices_busy']:.0%}".replace("%", " %")]
        lines.append(cells(*first, *told, f"{run['turnaround_seconds']:.0f} s", f"{run['interrupted']}"))
    run = runs["planner"]
    if drains := run["drain_seconds"]:
        lines.append(f"\nSaving and ending took {drains['median']:.1f} s, {drains['most']:.1f} s at most.")
    for name, again in run["again"].items():
        lines.append(f"{name}, started {again['starts']} times: loss {again['apart']:.1e} from an undisturbed run's.")
    lines.append(f"Failures: {sum(each['failures'] for each in runs.values())}.")
    return "\n".join(lines)


def _starts(events: Sequence[Event]) -> int:
    return sum(event.what == "starting" for event in events)


def _losses(log: str) -> list[str]:
    return re.findall(r"^loss (\S+)", log, re.M)


def _alone(place: Path, arguments: Sequence[str], devices: int, told_at: int | None = None) -> float:
    """The last loss of a fit without the queue; NaN of one that is told to save itself, from that step on."""
    told = place / "told"
    for old in place.glob(f"{told.name}.*"):
        old.unlink()
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "NPROC": str(4 * devices)}
    cores = set(sorted(os.sched_getaffinity(0))[:devices])
    with subprocess.Popen(
        [sys.executable, place / "fit.py", *arguments],
        cwd=place,
        env={**os.environ, **variables, VARIABLE: str(told)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        text=True,
    ) as fit:
        while told_at is not None and fit.poll() is None:
            if any(each.step >= told_at for each in read(told).values()):
                fit.terminate()
                told_at = None
            time.sleep(0.02)
        out = fit.communicate()[0]
    if fit.returncode == EXIT_SAVED:
        return math.nan
    if fit.returncode:
        raise subprocess.CalledProcessError(fit.returncode, fit.args)
    return float(_losses(out)[0])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--devices", type=int, default=4, help="slots (4)")
    parser.add_argument("--scale", type=float, default=0.012, help="of the trace's seconds (0.012: a median of 11 s)")
    parser.add_argument("--seed", type=int, default=0, help="of the trace")
    parser.add_argument("--least-run", type=float, default=5.0, help="seconds before a job makes room (5)")
    parser.add_argument("--again", type=int, default=3, help="jobs that are trained again, undisturbed (3)")
    parser.add_argument("--cycle", action="store_true", help="how soon one job has made room for another")
    parser.add_argument("--rounding", action="store_true", help="what interruptions and sizes do to a loss")
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="6 short jobs: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.scale, options.again = 6, 0.003, 1
    if min(options.jobs, options.devices, options.scale) <= 0:
        parser.error("--jobs, --devices and --scale want numbers above 0")
    return options


if __name__ == "__main__":
    main()
