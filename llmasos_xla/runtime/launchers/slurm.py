"""Jobs of a Slurm cluster: an attempt is a job there, and when and where it runs is Slurm's to decide.

The home has to lie where all nodes see it, and this Python, too. Slurm is asked by `squeue` for all jobs at once; how
one ended its keeper writes down in the job's folder, so that no accounting is needed.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, final

from llmasos_xla.progress import ASKED
from llmasos_xla.runtime.claims import Node
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.launchers.batch import where
from llmasos_xla.runtime.launchers.keeper import write
from llmasos_xla.runtime.launchers.local import command_of, environment_of, write_order
from llmasos_xla.runtime.launchers.protocol import LOST, TAKEN, Attempt, Told
from llmasos_xla.runtime.launchers.sbatch import Request, niceness, script
from llmasos_xla.runtime.locks import take

_ASK_SECONDS = 60.0
_AFTER_GRACE = 30.0
# What squeue calls states in which nothing of a job runs, nor ever will; all others may.
_OVER = {
    "BOOT_FAIL": 126, "CANCELLED": 143, "COMPLETED": 126, "DEADLINE": 143, "FAILED": 126, "NODE_FAIL": 126,
    "OUT_OF_MEMORY": 137, "PREEMPTED": 143, "TIMEOUT": 143,
}  # fmt: skip
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD")
_FIELDS = ("JobID", "State", "Reason", "Nice", "Comment")


class _Seen(NamedTuple):
    """A job as squeue tells it."""

    number: str
    state: str
    why: str
    nice: int


@final
class Slurm:
    """The cluster whose commands are in PATH; see `Queueing`.

    Args:
        home: where jobs have their folders; all nodes see it under this name.
        request: what is asked for with every job.
        interval: seconds between two looks at Slurm's queue.

    Raises RuntimeError if Slurm does not answer.
    """

    def __init__(self, home: Home, request: Request | None = None, *, interval: float | int = 2.0):
        self._home, self._request, self._interval = home, request or Request(), interval
        self._jobs: dict[str, _Seen] | None = None
        self._idle: dict[str, int] = {}
        self._looked = -interval
        self._waiting: dict[str, Attempt] = {}
        try:
            self._nodes()
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeError(
                f"up: Slurm does not answer: {_said(error)}; is {'sinfo'!r} in PATH and it up?"
            ) from None

    def capacity(self) -> Sequence[Node]:
        """As `Launcher` has it: the nodes that are up, by devices of so many cores or GPUs."""
        return tuple(Node(name, (0,) * whole, 0) for name, (_, whole) in self._nodes().items())

    def start(self, attempt: Attempt) -> str:
        """As `Launcher` has it: hands it to Slurm."""
        environment = environment_of(attempt, self._home)
        # Submitted by another job's fit, it may have this from there; memory is Slurm's to grant.
        environment.pop(ASKED, None)
        if not self._request.gpus and attempt.spec.layout == "devices":
            count = len(attempt.places)
            environment |= {"JAX_NUM_CPU_DEVICES": str(count), "NPROC": str(max(4 * count, os.cpu_count() or 1))}
        write_order(attempt, self._command(attempt), environment)
        path = attempt.folder / f"{attempt.token}.sbatch"
        nice = niceness({each.token: each.spec.priority for each in (*self._waiting.values(), attempt)})
        path.write_text(script(attempt, self._request, nice=nice[attempt.token]))
        try:
            number = _ask("sbatch", "--parsable", str(path)).strip().partition(";")[0]
        except (OSError, subprocess.SubprocessError) as error:
            _tell(attempt, f"sbatch: {_said(error)}")
            raise OSError(f"sbatch: {_said(error)}") from error
        self._waiting[attempt.token] = attempt
        return json.dumps({"slurm": number})

    def drain(self, attempt: Attempt, handle: str | None) -> None:
        """As `Launcher` has it."""
        # The keeper is not to put it back itself, and whoever polls knows how long it has had.
        attempt.folder.mkdir(parents=True, exist_ok=True)
        write(attempt.folder / f"{attempt.token}.drain", {"at": time.time()})
        if (number := self._number(attempt, handle)) is not None:
            self._end(number, "TERM")

    def kill(self, attempt: Attempt, handle: str | None) -> None:
        """As `Launcher` has it."""
        attempt.folder.mkdir(parents=True, exist_ok=True)
        write(attempt.folder / f"{attempt.token}.drain", {"at": 0.0})
        if (number := self._number(attempt, handle)) is not None:
            self._end(number, "KILL")

    def poll(self, attempt: Attempt, handle: str | None) -> int | None:
        """As `Launcher` has it. None, too, while Slurm does not answer."""
        jobs = self._look()
        if jobs is None:
            return None
        seen = jobs.get(attempt.token)
        self._waiting.pop(attempt.token, None)
        if seen is not None and seen.state not in _OVER:
            if seen.state in _WAITING:
                self._waiting[attempt.token] = attempt
            self._overdue(attempt, seen)
            return None
        if seen is None and handle is not None and self._submitted_since_look(attempt):
            self._waiting[attempt.token] = attempt
            return None
        exits = attempt.folder / f"{attempt.token}.exit"
        attempt.folder.mkdir(parents=True, exist_ok=True)
        with open(attempt.folder / "lock", "a") as lock:
            if not take(lock):
                # Its node cannot be reached by Slurm and is alive: something runs.
                return None
            if (status := _status(exits)) is None:
                status = self._without_a_word(attempt, handle, seen)
                # A keeper that is still to come reads this.
                write(exits, {"status": status, "at": time.time()})
            # Should somebody requeue it in Slurm now, it shall not run beside the attempt that follows.
            (attempt.folder / f"{attempt.token}.over").touch()
        return status

    def choose(self, attempt: Attempt, *, runs: bool) -> int:
        """As `Queueing` has it: as many as are idle now, less what others of this queue wait for; or the least."""
        legal = attempt.spec.legal
        if len(legal) == 1:
            return legal[0]
        self._look()
        idle = dict(self._idle)
        if runs:
            for node, _ in attempt.places:
                idle[node] = idle.get(node, 0) + 1
        promised = sum(len(each.places) for token, each in self._waiting.items() if token != attempt.token)
        together = sum(idle.values()) if attempt.spec.layout == "processes" else max(idle.values(), default=0)
        return max((size for size in legal if size <= together - promised), default=legal[0])

    def told(self, attempt: Attempt, handle: str | None) -> Told:
        """As `Queueing` has it."""
        seen, run = (self._jobs or {}).get(attempt.token), where(attempt.folder, attempt.token)
        lost = 0 if run is None else run["lost"]
        if seen is None or seen.state in _WAITING or run is None:
            why = "begins" if seen is None or seen.state == "RUNNING" else seen.why
            return Told((), f"in Slurm's queue: {why}", lost)
        return Told(tuple((node, number) for node, number in run["places"]), "", lost)

    def _command(self, attempt: Attempt) -> list[str]:
        if attempt.spec.layout == "devices":
            return command_of(attempt)
        # srun says to each rank who it is, where `llmasos launch` says so on one machine.
        count = str(len(attempt.places))
        command = [part.replace("{devices}", count) for part in attempt.spec.command]
        if command[0] == sys.executable:
            command[:1] = [sys.executable, "-P", "-m", "llmasos_xla.sharding.processes.worker"]
        cores = f"--cpus-per-task={self._request.cores}"
        # 75 is no bad exit, but srun would end the others at the first; ranks of ours watch each other.
        parent = [sys.executable, "-P", "-m", "llmasos_xla.runtime.launchers.ranks"]
        return [*parent, "srun", f"--ntasks={count}", cores, "--kill-on-bad-exit=0", "--label", *command]

    def _look(self) -> dict[str, _Seen] | None:
        """All jobs of this user by their comment, none older than the interval; None while Slurm does not answer."""
        now = time.monotonic()
        if now < self._looked + self._interval:
            return self._jobs
        self._looked = now
        try:
            found = _ask("squeue", "--me", "--noheader", "--states=all", "-O", ",".join(f"{n}:|" for n in _FIELDS))
            self._idle = {name: idle for name, (idle, _) in self._nodes().items()}
        except (OSError, subprocess.SubprocessError):
            self._jobs = None
            return None
        self._jobs = {}
        for line in found.splitlines():
            number, state, why, nice, comment = (part.strip() for part in line.split("|")[: len(_FIELDS)])
            self._jobs[comment] = _Seen(number, state, why, int(nice))
        self._rank()
        return self._jobs

    def _rank(self) -> None:
        """Has the jobs that wait wait in our order."""
        jobs = self._jobs or {}
        for token, nice in niceness({token: each.spec.priority for token, each in self._waiting.items()}).items():
            seen = jobs.get(token)
            if seen is not None and seen.state == "PENDING" and seen.nice != nice:
                _do("scontrol", "update", f"JobId={seen.number}", f"Nice={nice}")

    def _nodes(self) -> dict[str, tuple[int, int]]:
        """Devices by node of the partition: idle, and all."""
        partition = [option for option in self._request.options if re.match(r"(-p|--partition)", option)]
        fields = ("NodeList", "CPUsState", "Gres", "GresUsed", "Partition")
        text = _ask(
            "sinfo", "--noheader", "--Node", "--responding", *partition, "-O", ",".join(f"{n}:|" for n in fields)
        )
        found = {}
        for line in text.splitlines():
            name, cpus, gres, used, of = (part.strip() for part in line.split("|")[: len(fields)])
            # Where none is asked for, jobs go to the one with the star.
            if not partition and not of.endswith("*"):
                continue
            _, idle, _, whole = map(int, cpus.split("/"))
            devices = idle // self._request.cores, whole // self._request.cores
            if self._request.gpus:
                whole_gpus = _gpus(gres)
                devices = min(devices[0], whole_gpus - _gpus(used)), min(devices[1], whole_gpus)
            found[name] = devices
        return found

    def _number(self, attempt: Attempt, handle: str | None) -> str | None:
        if handle is not None:
            return json.loads(handle)["slurm"]
        self._looked = -self._interval
        seen = (self._look() or {}).get(attempt.token)
        return None if seen is None else seen.number

    def _end(self, number: str, signal: str) -> None:
        # One that waits is taken out; should it begin in between, the signal finds it.
        _do("scancel", "--quiet", "--state=PENDING", number)
        _do("scancel", "--quiet", "--batch", f"--signal={signal}", number)
        if signal == "KILL":
            _do("scancel", "--quiet", number)

    def _overdue(self, attempt: Attempt, seen: _Seen) -> None:
        """Ends what was asked to, waits again, or does not end in its time."""
        with contextlib.suppress(FileNotFoundError):
            asked = json.loads((attempt.folder / f"{attempt.token}.drain").read_text())["at"]
            if seen.state == "PENDING" or time.time() > asked + attempt.spec.grace + _AFTER_GRACE:
                self._end(seen.number, "KILL")

    def _submitted_since_look(self, attempt: Attempt) -> bool:
        path = attempt.folder / f"{attempt.token}.sbatch"
        return path.exists() and time.time() - path.stat().st_mtime < 2 * self._interval + 1.0

    def _without_a_word(self, attempt: Attempt, handle: str | None, seen: _Seen | None) -> int:
        """The status of one that Slurm is done with, whose keeper has written none."""
        if seen is None and handle is None:
            return LOST
        state = self._accounted(handle) if seen is None else seen.state
        asked = (attempt.folder / f"{attempt.token}.drain").exists()
        if state == "CANCELLED" and not asked:
            return TAKEN
        if not asked:
            _tell(attempt, f"Slurm says of the job: {state or 'nothing, it is forgotten there'}")
        return _OVER.get(state, 126)

    def _accounted(self, handle: str | None) -> str:
        """The state of a job that squeue has forgotten, where Slurm keeps accounts; else nothing."""
        if handle is None:
            return ""
        try:
            lines = _ask("sacct", "-X", "-n", "-P", "-o", "State", "-j", json.loads(handle)["slurm"]).split()
        except (OSError, subprocess.SubprocessError):
            return ""
        return lines[0] if lines else ""


def _ask(*command: str) -> str:
    # In no language but C, and without what the environment has sbatch do besides.
    environment = {
        n: v for n, v in os.environ.items() if not re.match(r"(SBATCH|SQUEUE|SINFO|SCANCEL)_|SLURM_(?!CONF)", n)
    }
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=_ASK_SECONDS,
        stdin=subprocess.DEVNULL,
        env={**environment, "LC_ALL": "C"},
    ).stdout


def _do(*command: str) -> None:
    """Asks for what is as well if it comes too late; who looks again sees what has become of it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _ask(*command)


def _said(error: Exception) -> str:
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _tell(attempt: Attempt, what: str) -> None:
    with open(attempt.folder / "log", "a") as log:
        log.write(f"llmasos: {what}\n")


def _status(exits: pathlib.Path) -> int | None:
    try:
        return json.loads(exits.read_text())["status"]
    except FileNotFoundError:
        return None


def _gpus(text: str) -> int:
    """Counts those of Slurm's list of resources.

    >>> _gpus("gpu:a100:4(S:0-1),license:2"), _gpus("(null)")
    (4, 0)
    """
    return sum(int(found) for found in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", text))
