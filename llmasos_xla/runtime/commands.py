"""`llmasos up`, `submit`, `tune`, `queue`, `top`, `logs` and what else there is of the queue in a shell."""

import argparse
import contextlib
import json
import re
import shlex
import sys
import time
from typing import Any

from llmasos_xla.progress import read
from llmasos_xla.runtime import client, service
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ENDED, STATES, Job
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.view import ago

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SHOWN_ENDED = 5


def up(chosen: argparse.Namespace) -> int:
    """Starts the engine: with what is said, or with what was said last time if nothing is."""
    home, said = Home(chosen.home), _options(chosen)
    last = service.remembered(home)
    before = service.running(home)
    options = said if said or chosen.local else last
    found = service.up(home, *options)
    if before is None:
        service.remember(home, options)
    what = "runs already" if before else "is up"
    room = "by Slurm" if found.get("launcher") == "slurm" else f"{found['memory'] / 2**30:.1f} GiB"
    as_before = f" (as last time: {shlex.join(options)})" if options and not said and not before else ""
    print(f"the engine {what}{as_before}: {found['devices']} devices, {room}, pid {found['pid']}")
    if found.get("page"):
        print(f"its page: {found['page']}#token={home.token.read_text()}")
    if before and options != last:
        print(f"it keeps to what it was started with, {shlex.join(last) or 'no options'}; `llmasos down` comes first")
        return 1
    return 0


def _options(chosen: argparse.Namespace) -> list[str]:
    """What was said about the engine, in its own options."""
    if chosen.ray is not None and (chosen.devices, chosen.memory) != (None, None):
        raise ValueError("up: --devices and --memory are of this machine; with --ray the cluster says what there is")
    if (chosen.ray is not None) + chosen.slurm + chosen.local > 1:
        raise ValueError("up: one of --local, --slurm and --ray")
    if not chosen.slurm and (chosen.sbatch or chosen.gpus or chosen.cores is not None):
        raise ValueError("up: --cores, --gpus and --sbatch are about Slurm; say --slurm, too")
    options = []
    for name in ("devices", "memory", "least_run", "ray", "host", "port", "cores"):
        if (value := getattr(chosen, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    if chosen.share and (chosen.slurm or chosen.ray is not None):
        raise ValueError("up: --share is about GPUs of this machine; Slurm and Ray share their own")
    for name in ("no_page", "share", "slurm", "gpus"):
        options += [f"--{name.replace('_', '-')}"] * getattr(chosen, name)
    return options + [f"--sbatch={option}" for option in chosen.sbatch]


def down(chosen: argparse.Namespace) -> int:
    """Ends the engine; jobs save and wait for the next."""
    print("the engine is down" if service.down(Home(chosen.home), timeout=chosen.timeout) else "no engine runs")
    return 0


def submit(chosen: argparse.Namespace) -> int:
    """Puts a script or a command into the queue."""
    job = client.submit(
        [chosen.what, *chosen.arguments],
        after=[_number(chosen.home, each) for each in chosen.after or ()],
        preemptible=chosen.preemptible,
        stuck_after=chosen.stuck_after,
        **_job(chosen),
    )
    print(f"job {job.number} {job.name}")
    return 0


def tune(chosen: argparse.Namespace) -> int:
    """Searches for a script's parameters."""
    from llmasos_xla.runtime.space import read
    from llmasos_xla.runtime.tuning import tune

    study = tune(
        [chosen.what, *chosen.arguments],
        dict(map(read, chosen.space)),
        metric=chosen.metric,
        direction="maximize" if chosen.maximize else "minimize",
        trials=chosen.trials,
        at_once=chosen.at_once,
        seed=chosen.seed,
        **_job(chosen),
    )
    found = " ".join(f"--{name} {value}" for name, value in study.best_params.items())
    print(f"{study.name}: {study.best_value:.6g} by trial {study.best.number}: {found}")
    return 0


def _job(chosen: argparse.Namespace) -> dict[str, Any]:
    """What is said of a job, or of each of a search's."""
    said = {
        name: getattr(chosen, name) for name in ("name", "priority", "devices", "sizes", "memory", "retries", "grace")
    }
    return {**said, "layout": "processes" if chosen.processes else "devices", "home": chosen.home}


def queue(chosen: argparse.Namespace) -> int:
    """Shows the jobs."""
    home = Home(chosen.home).make()
    with contextlib.closing(Store(home.store)) as store:
        found = store.jobs(STATES if chosen.all else tuple(s for s in STATES if s not in ENDED))
        if not chosen.all:
            found = store.jobs(ENDED)[-_SHOWN_ENDED:] + found
    if chosen.json:
        print(json.dumps([_as_json(job, home) for job in found], indent=1))
        return 0
    rows = [
        ("number", "name", "state", "priority", "devices", "step", "since", "why"),
        *(_row(job, home) for job in found),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if (engine := service.running(home)) is None:
        print("no engine runs; `llmasos up` starts one")
    elif engine.get("page"):
        print(f"the engine's page: {engine['page']}")
    return 0


def top(chosen: argparse.Namespace) -> int:
    """Shows jobs, devices and the machine until q."""
    from llmasos_xla.runtime.top import top

    top(Home(chosen.home), every=chosen.every, once=chosen.once)
    return 0


def logs(chosen: argparse.Namespace) -> int:
    """Prints what a job has printed."""
    job = client.Submitted(_number(chosen.home, chosen.job), Home(chosen.home))
    if chosen.follow:
        for line in client.follow(job):
            sys.stdout.write(line)
            sys.stdout.flush()
    else:
        sys.stdout.write(job.logs())
    return 0


def priority(chosen: argparse.Namespace) -> int:
    """Gives a job another priority."""
    with contextlib.closing(Store(Home(chosen.home).make().store)) as store:
        job = store.job(chosen.job)
        if not store.prioritize(job.number, chosen.priority):
            print(f"job {job.number} {job.spec.name} has ended: {job.state}")
            return 1
    print(f"job {job.number} {job.spec.name} has priority {chosen.priority}, {job.spec.priority} before")
    return 0


def cancel(chosen: argparse.Namespace) -> int:
    """Ends a job."""
    with contextlib.closing(Store(Home(chosen.home).make().store)) as store:
        job = store.job(chosen.job)
        if job.ended:
            print(f"job {job.number} {job.spec.name} has ended: {job.state}")
            return 1
        job = store.ask(job.number, "cancel")
    print(f"job {job.number} {job.spec.name} {'is cancelled' if job.ended else 'is told to end'}")
    return 0


def forget(chosen: argparse.Namespace) -> int:
    """Takes jobs that have ended out of the records."""
    if bool(chosen.jobs) == (chosen.older is not None):
        raise ValueError("forget: say which jobs, or --older DAYS for all that ended longer ago")
    home = Home(chosen.home).make()
    with contextlib.closing(Store(home.store)) as store:
        if chosen.older is None:
            found = [store.job(which) for which in chosen.jobs]
        else:
            before = time.time() - chosen.older * 86400
            found = [job for job in store.jobs(ENDED) if job.changed < before]
    count, status = 0, 0
    for number in {job.number: None for job in found}:
        try:
            count += client.Submitted(number, home).forget()
        except RuntimeError as error:
            print(str(error).removeprefix("forget: "))
            found, status = [job for job in found if job.number != number], 1
    many = len({job.number for job in found})
    print(f"{many} job{'s are' if many != 1 else ' is'} forgotten, {count / 1e6:.1f} MB")
    return status


def devices(text: str) -> tuple[int, int]:
    """Reads "4" or "1-4"."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of devices; write 4, or 1-4")
    return int(found[1]), int(found[2] or found[1])


def sizes(text: str) -> tuple[int, ...]:
    """Reads "1,2,4"."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of devices; write 1,2,4")
    return tuple(map(int, text.split(",")))


def size(text: str) -> int:
    """Reads bytes: "2000000000", "2G", "512Mi".

    >>> size("2G"), size("1.5Ki")
    (2000000000, 1536)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write 2000000000, 2G or 512Mi")
    return int(float(found[1]) * _UNITS[found[2]])


def _number(home: str | None, which: str) -> int:
    with contextlib.closing(Store(Home(home).make().store)) as store:
        return store.job(which).number


def _as_json(job: Job, home: Home) -> dict[str, object]:
    steps = read(home.job(job.number) / f"{job.token}")
    return {
        "number": job.number,
        "name": job.spec.name,
        "state": job.state,
        "priority": job.spec.priority,
        "devices": [list(place) for place in job.places] if job.size else [],
        "wanted": list(job.spec.legal),
        "step": max((each.step for each in steps.values()), default=None),
        "loss": next((each.loss for each in steps.values()), None),
        "submitted": job.submitted,
        "changed": job.changed,
        "attempt": job.attempt,
        "failures": job.failures,
        "status": job.status,
        "reason": job.reason,
        "user": job.spec.user,
    }


def _row(job: Job, home: Home) -> tuple[str, ...]:
    found = _as_json(job, home)
    least, most = job.spec.legal[0], job.spec.legal[-1]
    wanted = str(least) if least == most else f"{least}-{most}"
    having = f"{job.size} of {wanted}" if job.size else wanted
    step = "" if found["step"] is None else str(found["step"])
    since = ago(time.time() - job.changed)
    return str(job.number), job.spec.name, job.state, str(job.spec.priority), having, step, since, job.reason
