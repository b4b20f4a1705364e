"""Jobs as subprocesses of this machine."""

import contextlib
import json
import os
import pathlib
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from llmasos_xla.progress import ASKED, VARIABLE
from llmasos_xla.runtime.claims import Node
from llmasos_xla.runtime.gpus import UNKNOWN_SIZE
from llmasos_xla.runtime.home import Home, files
from llmasos_xla.runtime.launchers.keeper import TOKEN, born, lives, write
from llmasos_xla.runtime.launchers.protocol import LOST, Attempt
from llmasos_xla.runtime.locks import take
from llmasos_xla.sharding.processes.cores import shares
from llmasos_xla.sharding.processes.launch import package_path

ALONE_SECONDS = 60.0
"""A job that finds no engine for so long saves and ends."""


@final
class Local:
    """This machine: CPU slots, each with its share of the cores, or its GPUs.

    Args:
        home: where jobs have their folders.
        node: the machine, its devices and memory.
        alone: seconds without an engine after which a job saves and ends.
        sharing: whether jobs may have to share a GPU; then JAX takes of it what it uses, and not most of it ahead.
    """

    def __init__(self, home: Home, node: Node, *, alone: float = ALONE_SECONDS, sharing: bool = False):
        self._home, self._node, self._alone, self._sharing = home, node, alone, sharing
        self._gpus = any(node.devices)
        self._cores = shares(len(node.devices))

    def capacity(self) -> Sequence[Node]:
        """As `Launcher` has it."""
        return (self._node,)

    def start(self, attempt: Attempt) -> str:
        """As `Launcher` has it."""
        numbers = sorted(device for _, device in attempt.places)
        environment = variables(attempt, self._home, _names(numbers) if self._gpus else None)
        if self._gpus and self._sharing:
            environment |= _share(attempt, min(self._node.devices[n] for n in numbers))
        cpus = set[int]() if self._gpus else set[int]().union(*(self._cores[n] for n in numbers))
        write_order(attempt, command_of(attempt), environment, cpus=cpus, engine=self._home.lock, alone=self._alone)
        with open(attempt.folder / "keeper.log", "ab") as log:
            module = "llmasos_xla.runtime.launchers.keeper"
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", module, str(attempt.folder), attempt.token],
                {**os.environ, **package_path()},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    *((os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)),
                ],
                # Signals to the engine's group are not for it.
                setsid=True,
            )
        return json.dumps({"pid": pid, "born": born(pid)})

    def drain(self, attempt: Attempt, handle: str | None) -> None:
        """As `Launcher` has it."""
        _signal(attempt, handle, signal.SIGTERM)

    def kill(self, attempt: Attempt, handle: str | None) -> None:
        """As `Launcher` has it."""
        _signal(attempt, handle, signal.SIGKILL)
        end_marked(attempt.token)

    def poll(self, attempt: Attempt, handle: str | None) -> int | None:
        """As `Launcher` has it."""
        keeper = _keeper(handle)
        if keeper is not None:
            # The engine's own child would stay as a zombie.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(keeper["pid"], os.WNOHANG)
        if (status := exit_status(attempt)) is not None:
            return status
        return None if keeper is not None and lives(keeper) else given_up(attempt)


def given_up(attempt: Attempt) -> int | None:
    """Ends an attempt without a keeper, or whose keeper is not found; its status, None while its lock is held."""
    attempt.folder.mkdir(parents=True, exist_ok=True)
    with open(attempt.folder / "lock", "a") as lock:
        if not take(lock):
            return None
        if (status := exit_status(attempt)) is None:
            # A keeper that is still to come reads this.
            end_marked(attempt.token)
            write(attempt.folder / f"{attempt.token}.exit", {"status": LOST, "at": time.time()})
        return LOST if status is None else status


def _names(gpus: Sequence[int]) -> list[str]:
    """What CUDA calls some of the GPUs that this process sees."""
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [seen[number] if seen else str(number) for number in gpus]


def _share(attempt: Attempt, device: int) -> dict[str, str]:
    """Keeps JAX from taking most of a GPU of so many bytes ahead, and from more than its share, once that is known."""
    found = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if attempt.device_bytes is not None and device != UNKNOWN_SIZE:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{min(attempt.device_bytes / device, 1.0):.4f}"
    return found


def variables(attempt: Attempt, home: Home, gpus: Sequence[str] | None) -> dict[str, str]:
    """`environment_of` for devices that the planner gave; `gpus` are their names, None on a processor."""
    count = len(attempt.places)
    found = environment_of(attempt, home)
    # What another job's fit, which has submitted this one, was told is not for this one.
    found.pop(ASKED, None)
    if attempt.spec.memory is None:
        found[ASKED] = "1"
    if gpus is not None:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    elif attempt.spec.layout == "devices":
        # With threads enough for the messages of several devices in one process (sharding/threads.py).
        found |= {"JAX_NUM_CPU_DEVICES": str(count), "NPROC": str(max(4 * count, os.cpu_count() or 1))}
    return found


def environment_of(attempt: Attempt, home: Home) -> dict[str, str]:
    """The variables of a job's processes, whatever runs them: what it was submitted with, and what it is told."""
    told = attempt.spec.environment or os.environ
    return {
        **told,
        **package_path(told),
        "PYTHONUNBUFFERED": "1",
        "LLMASOS_HOME": str(home.path),
        "LLMASOS_JOB": str(attempt.job),
        "LLMASOS_JOB_NAME": attempt.spec.name,
        "LLMASOS_JOB_FOLDER": str(files(attempt.folder)),
        "LLMASOS_JOB_LAYOUT": attempt.spec.layout,
        "LLMASOS_DEVICES": str(len(attempt.places)),
        VARIABLE: str(attempt.folder / attempt.token),
    }


def command_of(attempt: Attempt) -> list[str]:
    """What is run: the job's command, for so many devices."""
    count = str(len(attempt.places))
    command = [part.replace("{devices}", count) for part in attempt.spec.command]
    if attempt.spec.layout == "processes":
        script = command[1:] if command[0] == sys.executable else command
        return [sys.executable, "-m", "llmasos_xla", "launch", "-n", count, *script]
    return command


def write_order(
    attempt: Attempt,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    cpus: Iterable[int] = (),
    engine: pathlib.Path | None = None,
    alone: float = 0.0,
    **more: Any,
) -> None:
    """Writes down in the attempt's folder, which is made, what its keeper is to run.

    Args:
        attempt: which.
        command: its program and arguments.
        environment: its variables, all of them.
        cpus: those that it is bound to; none are all.
        engine: the lock by which the keeper knows whether an engine is there; None where none need be.
        alone: seconds without it after which the keeper has the job end.
        more: for the launcher itself.
    """
    attempt.folder.mkdir(parents=True, exist_ok=True)
    order = {
        "engine": None if engine is None else str(engine),
        "alone": alone,
        "grace": attempt.spec.grace,
        "command": list(command),
        "folder": attempt.spec.folder,
        "environment": dict(environment),
        "cpus": sorted(cpus),
    }
    write(attempt.folder / f"{attempt.token}.order", {**order, **more})


def new_token() -> str:
    """A name for an attempt."""
    return secrets.token_hex(8)


def exit_status(attempt: Attempt) -> int | None:
    """What its keeper has written down, if it has."""
    try:
        return json.loads((attempt.folder / f"{attempt.token}.exit").read_text())["status"]
    except FileNotFoundError:
        return None


def _keeper(handle: str | None) -> dict[str, Any] | None:
    """The process of a handle; none in one of another launcher, which ran here before."""
    found = None if handle is None else json.loads(handle)
    return found if found and "pid" in found else None


def _signal(attempt: Attempt, handle: str | None, number: int) -> None:
    keeper = _keeper(handle)
    if keeper is None:
        with contextlib.suppress(FileNotFoundError):
            keeper = json.loads((attempt.folder / f"{attempt.token}.keeper").read_text())
    if keeper is not None and lives(keeper):
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper["pid"], number)


def end_marked(token: str) -> None:
    """Kills on this machine what an attempt has left behind: processes that have its token in their environment."""
    mark = f"{TOKEN}={token}".encode()
    for _ in range(100):
        found = [pid for pid in _pids() if mark in _environment_of(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment_of(pid: int) -> list[bytes]:
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        # Gone, or somebody else's.
        return []
