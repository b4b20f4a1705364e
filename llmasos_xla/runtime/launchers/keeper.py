"""`python -m llmasos_xla.runtime.launchers.keeper FOLDER TOKEN`: the parent of one attempt of a job.

It outlives the engine that started it, so that an engine that is killed and started again finds its jobs running: it
holds the job's lock for as long as anything of the attempt lives, and leaves behind a file that says how it ended. A
job has one lock, and an engine that gives an attempt up writes that file itself, with the lock in its hands: so no job
runs twice at a time, whoever was killed in between. Without an engine for a while the keeper asks the job to save and
to end: nobody else would.

Where something else started it, as an actor of Ray's, it is told the process to watch, and ends with it at once.
"""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.runtime.launchers.holding import Holding
from llmasos_xla.runtime.locks import is_free, take

NOT_WANTED = 3
"""It ends with this where another attempt has taken its place."""
_SUBREAPER, _DEATH_SIGNAL = 36, 1
_POLL_SECONDS = 0.05
_TERMINATED = 128 + signal.SIGTERM
_ENGINE_SECONDS = 1.0
TOKEN = "LLMASOS_ATTEMPT"
"""The variable by which processes of an attempt are known."""


def main(folder: pathlib.Path, token: str, superseded: Callable[[], bool] = lambda: False) -> int:
    """Runs the attempt; returns the keeper's own exit status, 0 whatever became of the attempt.

    Once the attempt is `superseded` by another run of it, this one is killed and leaves no word behind.
    """
    order = json.loads((folder / f"{token}.order").read_text())
    terminated: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(time.monotonic()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the job starts and leaves alone becomes this process's child, and is ended with it.
    _prctl(_SUBREAPER, 1)
    lock = open(folder / "lock", "a")  # noqa: SIM115
    if not take(lock):
        return NOT_WANTED
    if (folder / f"{token}.exit").exists():
        # It was given up before it began.
        return NOT_WANTED
    if made := order["environment"].get("LLMASOS_JOB_FOLDER"):
        os.makedirs(made, exist_ok=True)
    write(folder / f"{token}.keeper", {"pid": os.getpid(), "born": born(os.getpid())})
    with open(folder / "log", "ab", buffering=0) as log:
        status = _run(order, folder / token, log, terminated, superseded)
    if superseded():
        return NOT_WANTED
    if status is None:
        return 1
    _leave_word(folder / f"{token}.exit", {"status": status, "at": time.time()})
    return 0


def _leave_word(path: pathlib.Path, value: Any) -> None:
    """Writes down how it ended once the disk has room; until then nobody runs the job, whose lock is held."""
    while True:
        try:
            return write(path, value)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            time.sleep(_ENGINE_SECONDS)


def _run(
    order: dict[str, Any],
    beginning: pathlib.Path,
    log: IO[bytes],
    terminated: list[float],
    superseded: Callable[[], bool],
) -> int | None:
    """How the job ended; None where it was ended with the process that is watched, and nobody knows how far it was."""
    try:
        holding, child = Holding(beginning), _start(order, beginning.name, log)
    except OSError as error:
        log.write(f"llmasos: {order['command'][0]!r} cannot be run: {error}\n".encode())
        return 127
    told_at: float | None = None
    alone_since: float | None = None
    looked, status = 0.0, None
    told, others = set[int](), list[int]()
    while True:
        status = _ended(child, status, others)
        # A shell dies of the signal and hands it on to nobody: what it has started may still save itself.
        if status is not None and (told_at is None or status != _TERMINATED or not _children()):
            break
        now = time.monotonic()
        if order.get("watched") and not lives(order["watched"]):
            _end_all()
            return None
        if now > looked + _ENGINE_SECONDS:
            looked = now
            alone_since = (alone_since or now) if order["engine"] and is_free(order["engine"]) else None
            if alone_since is not None and now > alone_since + order["alone"] and not terminated:
                terminated.append(now)
            if superseded():
                _kill_children()
            holding.look()
        if terminated and told_at is None:
            told_at = now
        for pid in () if told_at is None else [child] if status is None else _children():
            if pid not in told:
                told.add(pid)
                os.kill(pid, signal.SIGTERM)
        if told_at is not None and now > told_at + order["grace"]:
            _kill_children()
        time.sleep(_POLL_SECONDS)
    _end_all()
    return EXIT_SAVED if status == _TERMINATED and EXIT_SAVED in others else status


def _start(order: dict[str, Any], token: str, log: IO[bytes]) -> int:
    """The job's first process, in a session of its own; it dies with this one."""
    mine = os.getpid()
    environment = {**order["environment"], TOKEN: token}
    # exec's errors come back through a pipe that exec closes.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _prctl(_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != mine:
                os._exit(1)
            os.chdir(order["folder"])
            if order["cpus"]:
                os.sched_setaffinity(0, order["cpus"])
            nothing = os.open(os.devnull, os.O_RDONLY)
            for target, source in ((0, nothing), (1, log.fileno()), (2, log.fileno())):
                os.dup2(source, target)
            os.execvpe(order["command"][0], order["command"], environment)
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, "rb") as pipe:
        failed = pipe.read()
    if failed:
        os.waitpid(child, 0)
        raise OSError(int(failed), os.strerror(int(failed)))
    return child


def _ended(child: int, status: int | None, others: list[int]) -> int | None:
    """The child's exit status, once it has ended; those of others that became children are added to `others`."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            if found[0] == child:
                status = code if code >= 0 else 128 - code
            else:
                others.append(code)
    return status


def _end_all() -> None:
    """Kills all descendants: those of the dead become children of this process, until none is left."""
    while _kill_children():
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _kill_children() -> bool:
    """Kills the children of this process; whether there were any."""
    children = _children()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return bool(children)


def _children() -> list[int]:
    """The children of this process; until it has waited for them their numbers are nobody else's."""
    return [int(pid) for pid in pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: with its number, nobody else's. None of one that lives no more."""
    try:
        told = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie is dead, if nobody has waited for it yet.
    return None if told[0] in "ZX" else told[19]


def lives(process: Mapping[str, Any]) -> bool:
    """Whether a process lives, known by its number and when it was born."""
    return process["born"] is not None and born(process["pid"]) == process["born"]


def write(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
