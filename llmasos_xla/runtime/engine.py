"""The engine: one process a home, which the supervisor lives in. `python -m llmasos_xla.runtime.engine`.

It is found by a lock on a file, which the kernel takes back when it dies, however it dies.
"""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from llmasos_xla.runtime.claims import Node, Rules
from llmasos_xla.runtime.gpus import gpu_memory
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ON_DEVICES
from llmasos_xla.runtime.launchers.keeper import born
from llmasos_xla.runtime.launchers.local import ALONE_SECONDS, Local
from llmasos_xla.runtime.launchers.protocol import Launcher
from llmasos_xla.runtime.locks import take
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.supervisor import Supervisor
from llmasos_xla.runtime.web import Page

_LOG = logging.getLogger("llmasos_xla.runtime")
_LOOK_SECONDS, _TICK_SECONDS = 0.05, 0.25
# Planning takes no more than this share of a core while nothing changes, however many jobs wait.
_PLANNING_SHARE, _LONGEST_PAUSE = 0.01, 5.0
_TROUBLE_SECONDS = 1.0
_MEMORY_SHARE = 0.9
_LOCK_SECONDS = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Runs until it is told to go down; returns the exit status."""
    options = _options(arguments)
    home = Home(options.home).make()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _owned(home) as lock:
        if lock is None:
            print(f"up: an engine of {str(home.path)!r} runs already", file=sys.stderr)
            return 1
        told: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: told.append(number))
        try:
            store = Store(home.store)
            launcher = _launcher(options, home, store)
            page = None if options.no_page else Page(home, options.host, options.port)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            print(error, file=sys.stderr)
            return 1
        nodes = launcher.capacity()
        least = {} if options.least_run is None else {"least_run": options.least_run}
        rules = Rules(sharing=options.share, **least)
        about = {
            "pid": os.getpid(),
            "born": born(os.getpid()),
            "devices": sum(len(node.devices) for node in nodes),
            "nodes": {node.name: len(node.devices) for node in nodes},
            "memory": sum(node.memory for node in nodes),
            "launcher": type(launcher).__name__.lower(),
            "since": time.time(),
            "page": page and page.url,
        }
        _tell(lock, about)
        if page is not None:
            page.start()
        gone = not _serve(store, lambda: Supervisor(home, store, launcher, rules), told, lambda: _is(lock, home.lock))
        if page is not None:
            page.stop()
        store.close()
    return int(gone)


def _serve(
    store: Store, supervise: Callable[[], Supervisor], told: list[int], there: Callable[[], bool] = lambda: True
) -> bool:
    """Runs the queue until it is told to go down; False where its folder is not `there` any more.

    Nobody could reach it then; its jobs are without an engine, and save themselves and end.
    """
    supervisor, closing, said = None, False, ""
    version, ticked, plan_at = None, 0.0, 0.0
    while True:
        try:
            if supervisor is None:
                # As if this process had been killed and another had come: what is half done is found by it.
                supervisor, closing = supervise(), False
            if told and not closing:
                closing = True
                supervisor.close()
            if closing and supervisor.idle:
                return True
            if not there():
                _LOG.error("the queue's folder is gone, or another one by now: nobody can reach this engine")
                return False
            now, seen = time.monotonic(), store.version
            if seen != version or now > ticked + _TICK_SECONDS:
                planning = seen != version or now > plan_at
                version, ticked = seen, now
                supervisor.tick(planning=planning)
                if planning:
                    took = time.monotonic() - now
                    plan_at = now + min(took / _PLANNING_SHARE, _LONGEST_PAUSE)
            said = ""
        except (OSError, sqlite3.OperationalError) as error:
            # A disk is full, or a folder away: jobs run on, and whoever makes room need not start anything again.
            if str(error) != said:
                said = str(error)
                _LOG.error("this cannot be gone on with, and is tried again each second", exc_info=error)
            supervisor, version = None, None
            time.sleep(_TROUBLE_SECONDS)
        time.sleep(_LOOK_SECONDS)


def _is(lock: IO[str], path: pathlib.Path) -> bool:
    """Whether a file is still at its path."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _launcher(options: argparse.Namespace, home: Home, store: Store) -> Launcher:
    """What runs this home's jobs."""
    handles = [json.loads(job.handle) for job in store.jobs(ON_DEVICES) if job.handle]
    if strange := [handle for handle in handles if ("slurm" in handle) != options.slurm]:
        has, do = (
            ("this machine or Ray", "`llmasos down` with the engine that has them")
            if options.slurm
            else ("Slurm", "cancel them")
        )
        raise ValueError(f"up: {has} still runs jobs of this queue, {len(strange)} of them; wait, or {do}")
    if options.slurm:
        from llmasos_xla.runtime.launchers.slurm import Request, Slurm

        request = Request(options.cores, options.gpus, tuple(options.sbatch))
        return Slurm(home, request, interval=options.slurm_interval)
    if options.ray is not None:
        from llmasos_xla.runtime.launchers.ray import Ray

        return Ray(home, options.ray, alone=options.alone)
    return Local(home, this_machine(options.devices, options.memory), alone=options.alone, sharing=options.share)


def this_machine(devices: int | None = None, memory: int | None = None) -> Node:
    """This machine as a node: its GPUs, or a slot for each core, or so many slots; and the memory for jobs."""
    if devices is not None and devices < 1:
        raise ValueError(f"up: a machine has at least one device, --devices {devices} came")
    if memory is None:
        memory = int(_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # Their memory is their own: a node's devices of 0 bytes are slots for processes.
    if gpus := () if os.environ.get("JAX_PLATFORMS", "").startswith("cpu") else gpu_memory():
        if devices is not None and devices > len(gpus):
            raise ValueError(
                f"up: this machine has {len(gpus)} GPUs, --devices {devices} came; with JAX_PLATFORMS=cpu its cores "
                "are the devices"
            )
        return Node("local", gpus[:devices], memory)
    return Node("local", (0,) * (devices or len(os.sched_getaffinity(0))), memory)


@contextlib.contextmanager
def _owned(home: Home) -> Iterator[IO[str] | None]:
    """The lock's file, locked; None if another process has it."""
    with open(home.lock, "a+") as lock:
        # Those who only look hold it for an instant, so one look is not enough.
        if not take(lock, _LOCK_SECONDS, every=0.01):
            yield None
            return
        try:
            yield lock
        finally:
            lock.truncate(0)


def _tell(lock: IO[str], about: dict[str, Any]) -> None:
    lock.truncate(0)
    lock.write(json.dumps(about))
    lock.flush()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llmasos_xla.runtime.engine", description="Runs the queue.")
    parser.add_argument("--home", help="the folder of the queue")
    parser.add_argument("--devices", type=int, help="slots of this machine")
    parser.add_argument("--memory", type=int, help="bytes of it that jobs may have")
    parser.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster whose machines are used instead of this one")
    parser.add_argument("--least-run", type=float, help="seconds that a job runs before it may have to make room")
    parser.add_argument("--share", action="store_true", help="jobs whose bytes are known may share a GPU")
    parser.add_argument("--slurm", action="store_true", help="Slurm's nodes instead of this machine")
    parser.add_argument("--cores", type=int, default=1, help="of each device there")
    parser.add_argument("--gpus", action="store_true", help="devices there are GPUs")
    parser.add_argument("--sbatch", action="append", default=[], help="an option for sbatch; may come again")
    parser.add_argument("--slurm-interval", type=float, default=2.0, help="seconds between two looks at Slurm's queue")
    parser.add_argument("--alone", type=float, default=ALONE_SECONDS, help="seconds a job goes on without an engine")
    parser.add_argument("--host", default="127.0.0.1", help="the address that the page is at")
    parser.add_argument("--port", type=int, default=0, help="of the page; 0 takes a free one")
    parser.add_argument("--no-page", action="store_true", help="have no page")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
