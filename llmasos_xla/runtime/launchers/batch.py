"""`python -m llmasos_xla.runtime.launchers.batch FOLDER TOKEN`: what Slurm runs of an attempt, on its first node.

It is the keeper, and two things more. Slurm may begin a job anew by itself, preempted or with a node that failed, and
the first run may still be alive on a node that only cannot be reached: each run writes its number down, and one that
finds another number there ends all that it has, before which the next does not begin. And a job that saves itself
because Slurm wanted it to, not the engine, is put back into Slurm's queue from here: no engine need be there.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.runtime.jobs import Place
from llmasos_xla.runtime.launchers import keeper
from llmasos_xla.runtime.locks import take
from llmasos_xla.sharding.processes.clusters import slurm_hosts

_LOCK_SECONDS = 180.0
_REQUEUE_SECONDS = 60.0
_HANDED_ON = ("SLURM", "CUDA_", "GPU_DEVICE_", "ROCR_", "HIP_", "ZE_")


def main(folder: pathlib.Path, token: str) -> int:
    """Runs the attempt; returns its exit status, which is the one of Slurm's job."""
    exits, run = folder / f"{token}.exit", int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    before, order = where(folder, token), json.loads((folder / f"{token}.order").read_text())
    # A run that has ended in order has said so; on a node that failed it could not.
    lost = before["lost"] + (not exits.exists()) if run and before is not None else 0
    devices = int(order["environment"]["LLMASOS_DEVICES"])
    keeper.write(folder / f"{token}.where", {"run": run, "lost": lost, "places": _places(devices)})
    if not _others_have_ended(folder / "lock"):
        print("llmasos: another run of this job does not end; it is not begun a second time", flush=True)
        return keeper.NOT_WANTED
    if (folder / f"{token}.over").exists():
        print("llmasos: the engine has gone on without this run of the job", flush=True)
        return keeper.NOT_WANTED
    if run:
        exits.unlink(missing_ok=True)
    keeper.write(folder / f"{token}.order", _with_slurm(order))

    def superseded() -> bool:
        now = where(folder, token)
        return now is not None and now["run"] != run

    if (status := keeper.main(folder, token, superseded)) != 0:
        return status
    status = json.loads(exits.read_text())["status"]
    if status == EXIT_SAVED and not (folder / f"{token}.drain").exists():
        # Slurm ends this process for it; a script that ends by itself meanwhile ends its job with it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False).returncode == 0:
            time.sleep(_REQUEUE_SECONDS)
    return status


def where(folder: pathlib.Path, token: str) -> dict[str, Any] | None:
    """What the newest run of an attempt said of itself: run, lost, places; None before the first."""
    try:
        return json.loads((folder / f"{token}.where").read_text())
    except FileNotFoundError:
        return None


def _places(devices: int) -> list[Place]:
    """The devices by node: a task each, or all of the one task's."""
    nodes = slurm_hosts(os.environ["SLURM_JOB_NODELIST"])
    tasks = per_node(os.environ["SLURM_TASKS_PER_NODE"])
    counts = [devices] if sum(tasks) == 1 else tasks
    return [(node, i) for node, count in zip(nodes, counts) for i in range(count)]


def per_node(text: str) -> list[int]:
    """Reads Slurm's numbers of tasks.

    >>> per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    found = []
    for part in text.split(","):
        number, _, times = part.partition("(x")
        found += [int(number)] * int(times.rstrip(")") or 1)
    return found


def _others_have_ended(path: pathlib.Path) -> bool:
    """Waits until no other run of the job holds its lock; whether that came to be."""
    with open(path, "a") as lock:
        return take(lock, _LOCK_SECONDS)


def _with_slurm(order: dict[str, Any]) -> dict[str, Any]:
    """The order with what Slurm says of this run among the job's variables."""
    old = {name: value for name, value in order["environment"].items() if not name.startswith("SLURM")}
    new = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
    return {**order, "environment": old | new}


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
