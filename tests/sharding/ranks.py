"""Ranks as real processes on this machine, and what they print."""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
HEARTBEAT = 3.0

# A sum over all ranks, which every one of them has to join.
TOTAL = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))
rows = jax.make_array_from_callback((jax.device_count(),), NamedSharding(mesh, P("d")), lambda at: jnp.ones(1))
add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "d"), mesh=mesh, in_specs=P("d"), out_specs=P()))

def total():
    return int(add(rows).addressable_data(0)[0])
"""


class Run(NamedTuple):
    """How a run ended. `text` is what it printed, both streams together."""

    code: int
    text: str

    def of(self, rank: int) -> str:
        """What that rank printed under the launcher."""
        return "\n".join(re.findall(rf"^\[{rank}\] (.*)$", self.text, re.MULTILINE))


def environment(**more: str) -> dict[str, str]:
    """This process's environment for a rank on the CPU, with no world in it."""
    ours = re.compile(r"RANK|WORLD_SIZE|MASTER_|LOCAL_|LLMASOS_|SLURM_|OMPI_|PYTEST_|NPROC")
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    # Ranks compile as this process does, and have devices of their own.
    flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", kept.get("XLA_FLAGS", ""))
    return {
        **kept,
        "XLA_FLAGS": flags.strip(),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "LLMASOS_HEARTBEAT": str(HEARTBEAT),
        "LLMASOS_START_SECONDS": "40",
        **more,
    }


def launch(arguments: Sequence[str], *options: str, more: Mapping[str, str] | None = None) -> Run:
    """`llmasos launch options arguments`."""
    command = [sys.executable, "-m", "llmasos_xla.cli", "launch", "--grace", "1", *options, *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**(more or {})),
        timeout=90,
    )
    return Run(done.returncode, done.stdout)


def start(script: pathlib.Path, *arguments: str, **more: str) -> subprocess.Popen:
    """A script by itself, as srun would start it."""
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**more),
    )


def ended(processes: Sequence[subprocess.Popen], timeout: float = 90) -> list[Run]:
    """Waits for them; kills those that do not end."""
    try:
        return [
            Run(process.wait(), text) for process in processes for text in [process.communicate(timeout=timeout)[0]]
        ]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
