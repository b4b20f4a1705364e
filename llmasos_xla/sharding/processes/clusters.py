"""Which process of how many this one is, read from what a launcher left in the environment."""

import dataclasses
import itertools
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

PORT = 29400
"""The coordinator's port where nobody names one."""

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place among the processes of a run, and who said so. Local numbers are None where nobody said."""

    rank: int
    size: int
    coordinator: str | None
    source: str
    local_rank: int | None = None
    local_size: int | None = None


def detect(environment: Environment | None = None) -> Place | None:
    """The first of `SOURCES` that knows, or None: a process of its own.

    Raises ValueError if a source is there and lacks something, naming the variable.

    >>> detect({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "5000"})
    Place(rank=1, size=4, coordinator='node1:5000', source='environment', local_rank=None, local_size=None)
    """
    environment = os.environ if environment is None else environment
    for find in SOURCES.values():
        place = find(environment)
        if place is not None:
            return place
    return None


def slurm_hosts(text: str) -> list[str]:
    """The hosts of a Slurm node list.

    >>> slurm_hosts("gpu[01-03,07],login1,rack[1-2]n[8-9]")
    ['gpu01', 'gpu02', 'gpu03', 'gpu07', 'login1', 'rack1n8', 'rack1n9', 'rack2n8', 'rack2n9']
    """
    hosts = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        pieces = [_numbers(p[1:-1]) if p.startswith("[") else [p] for p in re.findall(r"\[[^\]]*\]|[^\[]+", word)]
        hosts += ["".join(parts) for parts in itertools.product(*pieces)]
    return hosts


def _numbers(text: str) -> list[str]:
    out = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        out += [str(n).zfill(len(low)) for n in range(int(low), int(high or low) + 1)]
    return out


def _environment(env: Environment) -> Place | None:
    """`llmasos launch`, torchrun, and whoever sets the same variables by hand."""
    if "RANK" not in env:
        return None
    if "WORLD_SIZE" not in env:
        raise _incomplete("environment", "RANK is set, WORLD_SIZE is not", "set both, or neither for one process")
    size = _int(env, "WORLD_SIZE")
    address = None
    if size > 1:
        if "MASTER_ADDR" not in env:
            raise _incomplete(
                "environment", f"RANK and WORLD_SIZE={size} are set, MASTER_ADDR is not", "set it to rank 0's host"
            )
        port = _int(env, "MASTER_PORT", PORT)
        # torchrun keeps a store of its own on the port that it hands out.
        port += env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address = f"{env['MASTER_ADDR']}:{port}"
    return Place(
        _int(env, "RANK"), size, address, "environment", _int(env, "LOCAL_RANK"), _int(env, "LOCAL_WORLD_SIZE")
    )


def _slurm(env: Environment) -> Place | None:
    """Inside of srun. A batch script's own shell is no rank: only srun sets the step's node list."""
    if "SLURM_PROCID" not in env or "SLURM_STEP_NODELIST" not in env:
        return None
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    if name not in env:
        raise _incomplete("slurm", "SLURM_PROCID is set, SLURM_NTASKS is not", "start with srun --ntasks=N")
    host = slurm_hosts(env["SLURM_STEP_NODELIST"])[0]
    # Every rank computes the same port from what they share; steps of one job get different ones.
    number = _int(env, "SLURM_JOB_ID", 0) + 257 * _int(env, "SLURM_STEP_ID", 0)
    port = env.get("MASTER_PORT", str(61440 + number % 4000))
    return Place(_int(env, "SLURM_PROCID"), _int(env, name), f"{host}:{port}", "slurm", _int(env, "SLURM_LOCALID"))


def _ray(env: Environment) -> Place | None:
    """In a Ray worker: Ray Train's context knows rank and size, a plain actor must have been told."""
    ray = sys.modules.get("ray")
    if ray is None or not _is_ray_worker(ray):
        return None
    context = _ray_train_context()
    if context is None:
        raise _incomplete(
            "ray",
            "this is a Ray worker, and nothing says which rank of how many",
            'start the actors with runtime_env={"env_vars": {"RANK": ..., "WORLD_SIZE": ..., "MASTER_ADDR": '
            "ray.util.get_node_ip_address() of rank 0}}, or pass coordinator=, processes= and rank=; "
            "processes=1 for a worker by itself",
        )
    rank, size, local_rank, local_size = context
    if size > 1 and "MASTER_ADDR" not in env:
        raise _incomplete("ray", f"rank {rank} of {size}, and MASTER_ADDR is not set", "set it to rank 0's host")
    address = f"{env['MASTER_ADDR']}:{_int(env, 'MASTER_PORT', PORT)}" if size > 1 else None
    return Place(rank, size, address, "ray", local_rank, local_size)


def _is_ray_worker(ray: Any) -> bool:
    return bool(ray.is_initialized()) and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _ray_train_context() -> tuple[int, int, int, int] | None:
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        context = train.get_context()
        return (
            context.get_world_rank(), context.get_world_size(), context.get_local_rank(), context.get_local_world_size()
        )  # fmt: skip
    except RuntimeError:
        # Ray Train's way to say that this worker is none of its own.
        return None


def _kubernetes(env: Environment) -> Place | None:
    """An indexed Job: its index is the rank, WORLD_SIZE its completions, MASTER_ADDR the address of pod 0."""
    if "JOB_COMPLETION_INDEX" not in env:
        return None
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR") if name not in env]
    if missing:
        job = re.sub(r"-\d+$", "", env.get("HOSTNAME", "JOB-0"))
        raise _incomplete(
            "kubernetes",
            f"an indexed Job (JOB_COMPLETION_INDEX={env['JOB_COMPLETION_INDEX']}) without {' and '.join(missing)}",
            "set in its container: WORLD_SIZE to spec.completions, MASTER_ADDR to pod 0's name under the headless "
            f"service that is the pods' subdomain ({job}-0.SERVICE)",
        )
    address = f"{env['MASTER_ADDR']}:{_int(env, 'MASTER_PORT', PORT)}"
    return Place(_int(env, "JOB_COMPLETION_INDEX"), _int(env, "WORLD_SIZE"), address, "kubernetes")


def _tpu(env: Environment) -> Place | None:
    """A TPU pod, by JAX's own detection."""
    from jax._src import cloud_tpu_init, clusters

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return None
    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present():
            size = cluster.get_process_count()
            address = cluster.get_coordinator_address(300, env.get("JAX_COORDINATOR_PORT")) if size > 1 else None
            return Place(cluster.get_process_id(), size, address, "tpu", 0, 1)
    return None


def _openmpi(env: Environment) -> Place | None:
    """Inside of mpirun; Open MPI 5 names no host, so that ranks on several need MASTER_ADDR."""
    if "OMPI_COMM_WORLD_RANK" not in env:
        return None
    rank, size = _int(env, "OMPI_COMM_WORLD_RANK"), _int(env, "OMPI_COMM_WORLD_SIZE")
    local_rank, local_size = _int(env, "OMPI_COMM_WORLD_LOCAL_RANK"), _int(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    job = env.get("PMIX_NAMESPACE", env.get("OMPI_MCA_orte_hnp_uri", "").partition(";")[0])
    port = _int(env, "MASTER_PORT", 61440 + zlib.crc32(job.encode()) % 4000)
    launcher = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", env.get("OMPI_MCA_orte_hnp_uri", ""))
    if "MASTER_ADDR" in env:
        host = env["MASTER_ADDR"]
    elif size == local_size:
        host = "127.0.0.1"
    elif launcher:
        host = next(name for name in launcher.groups() if name)
    else:
        raise _incomplete(
            "openmpi",
            f"rank {rank} of {size} on several hosts, and Open MPI does not say where rank 0 is",
            "start with mpirun -x MASTER_ADDR=HOST_OF_RANK_0",
        )
    return Place(rank, size, f"{host}:{port}", "openmpi", local_rank, local_size)


SOURCES: dict[str, Callable[[Environment], Place | None]] = {
    "environment": _environment,
    "slurm": _slurm,
    "ray": _ray,
    "kubernetes": _kubernetes,
    "tpu": _tpu,
    "openmpi": _openmpi,
}
"""Who is asked, in this order."""


def _int(env: Environment, name: str, default: Any = None) -> Any:
    if name not in env:
        return default
    if not re.fullmatch(r"\d+", env[name].strip()):
        raise ValueError(f"initialize: {name} wants a whole number, got {env[name]!r}")
    return int(env[name])


def _incomplete(source: str, found: str, remedy: str) -> ValueError:
    return ValueError(f"initialize: {source}: {found}; {remedy}")
