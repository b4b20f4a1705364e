"""The script that Slurm gets for an attempt: pure text."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping

from llmasos_xla.runtime.launchers.protocol import Attempt
from llmasos_xla.sharding.processes.launch import package_path

NICE_STEP = 100
"""Points of Slurm's priority that one point of ours is worth."""
_MOST_NICE = 1_000_000
_AHEAD_SECONDS = 10
_LONGEST_AHEAD = 65535


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of Slurm for every job.

    Attributes:
        cores: of each device that is a slot for a CPU process, or that go with a GPU.
        gpus: whether a device is a GPU.
        options: more for sbatch, such as "--partition=long"; they come last, and so win.
    """

    cores: int = 1
    gpus: bool = False
    options: tuple[str, ...] = ()

    def __post_init__(self):
        if self.cores < 1:
            raise ValueError(f"up: a device has at least 1 core, {self.cores} came")
        if wrong := [option for option in self.options if not option.startswith("-") or "\n" in option]:
            raise ValueError(
                f"up: an option of sbatch begins with -, {wrong[0]!r} came; write --sbatch=--partition=long"
            )


def script(attempt: Attempt, request: Request, *, nice: int) -> str:
    """An sbatch script that runs an attempt; its processes get their variables from the job's folder."""
    count, spec = len(attempt.places), attempt.spec
    ranks = count if spec.layout == "processes" else 1
    cores = request.cores * count // ranks
    options = [
        f"--job-name={spec.name}",
        # By which it is found again, should nobody live to write down its number.
        f"--comment={attempt.token}",
        f"--ntasks={ranks}",
        f"--cpus-per-task={cores}",
        *(["--nodes=1"] if ranks == 1 else []),
        *([f"--gpus-per-task={count // ranks}"] if request.gpus else []),
        *([f"--mem-per-cpu={_mebibytes(spec.memory, ranks * cores)}M"] if spec.memory is not None else []),
        f"--nice={nice}",
        "--requeue",
        # Ahead of a time limit, to the keeper, which hands it on; Slurm sends it at preemption, too, if told to.
        f"--signal=B:TERM@{min(int(spec.grace) + _AHEAD_SECONDS, _LONGEST_AHEAD)}",
        "--open-mode=append",
        f"--output={_escaped(str(attempt.folder / 'log'))}",
        f"--chdir={attempt.folder}",
        *request.options,
    ]
    path = package_path()
    lines = ["#!/bin/sh"]
    lines += [f"#SBATCH {_quoted(option)}" for option in options]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in path.items()]
    module = "llmasos_xla.runtime.launchers.batch"
    command = [sys.executable, "-P", "-m", module, str(attempt.folder), attempt.token]
    return "\n".join([*lines, f"exec {shlex.join(command)}", ""])


def niceness(priorities: Mapping[str, int]) -> dict[str, int]:
    """Slurm's --nice of jobs that wait: the first of them has 0, so that nobody else's job gains by it.

    Nobody but an operator may raise a priority in Slurm; anybody may lower one.

    >>> niceness({"11": 5, "12": 0})
    {'11': 0, '12': 500}
    """
    top = max(priorities.values(), default=0)
    return {name: min((top - priority) * NICE_STEP, _MOST_NICE) for name, priority in priorities.items()}


def _mebibytes(whole: int, parts: int) -> int:
    return max(-(-whole // (parts * 2**20)), 1)


def _escaped(path: str) -> str:
    # A file's name is a pattern there: %j is the job.
    return path.replace("\\", "\\\\").replace("%", "%%")


def _quoted(option: str) -> str:
    return f'"{option}"' if " " in option or "#" in option else option
