"""Several ranks on this machine: started, listened to, and ended together."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.sharding.processes.cores import shares
from llmasos_xla.sharding.processes.preflight import gpu_count
from llmasos_xla.sharding.processes.watch import PEER_FAILED

LAUNCHED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LLMASOS_RUN"),
    *("LLMASOS_PARENT", "LLMASOS_HEARTBEAT", "JAX_NUM_CPU_DEVICES", "JAX_LOCAL_DEVICE_IDS"),
)
"""Variables by which a process knows which of the launched ones it is; LLMASOS_RUN is always among them."""
# Ranks that watch each other end by themselves, with the reason, ahead of being asked to; rank 0 after the others.
_HEAD_START_SECONDS = 3.0
_LAST_LINES = 12


@dataclasses.dataclass
class _Rank:
    """One process, and how it ended: `status` is its exit code, negative for a signal."""

    number: int
    process: subprocess.Popen
    lines: collections.deque[str]
    readers: list[threading.Thread]
    log: IO[str] | None
    status: int | None = None
    ended_at: float = 0.0
    asked_to_end: bool = False
    stopped: bool = False


def launch(
    arguments: Sequence[str],
    processes: int,
    *,
    devices_per_process: int | None = None,
    heartbeat: float | int | None = None,
    grace: float | int = 10.0,
    logs: str | os.PathLike | None = None,
) -> int:
    """Runs a script in `processes` ranks on this machine; returns the exit code for all of them.

    0 if all ended with 0; 75 if all ended with 0 or 75, and one with 75; else the code of the rank that failed first,
    128 + N if signal N ended it. SIGTERM and SIGINT go on to every rank. When one fails the others are ended: SIGTERM,
    and SIGKILL after `grace` seconds.

    Args:
        arguments: the script and its own arguments, or "-m", a module and its arguments.
        processes: how many ranks. They divide the cores and the GPUs among them.
        devices_per_process: virtual CPU devices of each rank.
        heartbeat: see `initialize`.
        grace: seconds between SIGTERM and SIGKILL for the ranks of a run in which one has failed.
        logs: a folder that gets the output of each rank as `rank-N.log`, too.
    """
    if processes < 1:
        raise ValueError(f"launch: -n wants a whole number >= 1, got {processes}")
    gpus = 0 if os.environ.get("JAX_PLATFORMS", "").startswith("cpu") else gpu_count()
    if 0 < gpus < processes:
        raise ValueError(
            f"launch: -n {processes} ranks for {gpus} GPUs; choose -n {gpus} or less, or JAX_PLATFORMS=cpu"
        )
    port, run = _free_port(), secrets.token_hex(8)
    cores = shares(processes)
    lock = threading.Lock()
    ranks: list[_Rank] = []
    failed = True
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def forward(number: int, _: Any) -> None:
        for rank in ranks:
            _signal(rank, number)

    for number in before:
        signal.signal(number, forward)
    try:
        for number in range(processes):
            environment = _environment(number, processes, port, run)
            if devices_per_process:
                environment["JAX_NUM_CPU_DEVICES"] = str(devices_per_process)
            if heartbeat:
                environment["LLMASOS_HEARTBEAT"] = str(heartbeat)
            if gpus and processes > 1:
                each = gpus // processes
                mine = range(number * each, (number + 1) * each)
                environment.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, mine)))
            ranks.append(_start(number, arguments, environment, cores[number], logs, lock))
        first = _wait(ranks, grace)
        failed = first is not None
    finally:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.kill()
                rank.process.wait()
            if failed:
                # What a killed rank has left behind, such as workers that read data.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(rank.process.pid, signal.SIGKILL)
            for thread in rank.readers:
                thread.join(2.0)
            if rank.log:
                rank.log.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if first is not None:
        _report(first)
        return _exit_code(first)
    return EXIT_SAVED if any(rank.status == EXIT_SAVED for rank in ranks) else 0


def _start(
    number: int, arguments: Sequence[str], environment: dict[str, str], cpus: set[int], logs: Any, lock: Any
) -> _Rank:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "llmasos_xla.sharding.processes.worker", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # Of its own, so that Ctrl-C in the terminal reaches a rank once: from here.
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )
    # It has one thread yet; those that it starts inherit this.
    os.sched_setaffinity(process.pid, cpus)
    log = None
    if logs is not None:
        pathlib.Path(logs).mkdir(parents=True, exist_ok=True)
        log = open(pathlib.Path(logs) / f"rank-{number}.log", "w", buffering=1)  # noqa: SIM115
    rank = _Rank(number, process, collections.deque(maxlen=_LAST_LINES), [], log)
    for source, name in ((process.stdout, "stdout"), (process.stderr, "stderr")):
        assert source is not None
        thread = threading.Thread(target=_listen, args=(rank, source, name, lock), daemon=True)
        thread.start()
        rank.readers.append(thread)
    return rank


def _listen(rank: _Rank, source: IO[str], name: str, lock: Any) -> None:
    with source:
        for line in source:
            line = line if line.endswith("\n") else line + "\n"
            with lock:
                rank.lines.append(line)
                if rank.log:
                    rank.log.write(line)
                # Whoever read this is gone (`| head`); the ranks must not wait for it.
                with contextlib.suppress(BrokenPipeError):
                    sink = getattr(sys, name)
                    sink.write(f"[{rank.number}] {line}")
                    sink.flush()


def _wait(ranks: list[_Rank], grace: float) -> _Rank | None:
    """Until all have ended; returns the rank that failed first, if one did."""
    failed_at = None
    while any(rank.status is None for rank in ranks):
        time.sleep(0.02)
        now = time.monotonic()
        for rank in ranks:
            if rank.status is None and (status := rank.process.poll()) is not None:
                rank.status, rank.ended_at = status, now
                if status not in (0, EXIT_SAVED) and failed_at is None:
                    failed_at = now
        for rank in ranks:
            if failed_at is None or rank.status is not None:
                continue
            if not rank.asked_to_end and now > failed_at + _HEAD_START_SECONDS:
                rank.asked_to_end, rank.stopped = True, _is_stopped(rank.process.pid)
                _signal(rank, signal.SIGTERM)
            if now > failed_at + _HEAD_START_SECONDS + grace:
                _signal(rank, signal.SIGKILL)
    failed = [rank for rank in ranks if rank.status not in (0, EXIT_SAVED)]
    # Those that ended because of another come after it, whoever was seen first; behind a rank that failed by itself
    # that is one that had to be ended, since it was waited for in vain.
    return min(failed, key=lambda r: (r.status == PEER_FAILED, r.asked_to_end, r.ended_at), default=None)


def _is_stopped(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def _report(rank: _Rank) -> None:
    how = f"exit code {rank.status}"
    if rank.asked_to_end:
        how = f"the others ended, it did not{' (it was stopped)' if rank.stopped else ''}, and was ended from here"
    elif rank.status is not None and rank.status < 0:
        how = f"killed by {signal.Signals(-rank.status).name}"
    lines = "".join(f"    {line}" for line in rank.lines) or "    (none)\n"
    sys.stderr.write(f"llmasos launch: rank {rank.number} failed first: {how}. Its last lines:\n{lines}")
    sys.stderr.flush()


def _exit_code(rank: _Rank) -> int:
    assert rank.status is not None
    return rank.status if rank.status >= 0 else 128 - rank.status


def _environment(number: int, processes: int, port: int, run: str) -> dict[str, str]:
    environment = os.environ | {
        "RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LLMASOS_RUN": run,
        "LLMASOS_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    return environment | package_path()


def package_path(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable by which a Python with that environment finds this very package; none if it is installed."""
    root = str(pathlib.Path(__file__).parents[3])
    if root == sysconfig.get_path("purelib"):
        return {}
    there = environment.get("PYTHONPATH", "")
    return {"PYTHONPATH": there if root in there.split(os.pathsep) else os.pathsep.join(filter(None, (there, root)))}


def _signal(rank: _Rank, number: int) -> None:
    if rank.process.poll() is None:
        rank.process.send_signal(number)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return door.getsockname()[1]
