"""initialize: this process becomes one of those that run a program together."""

import contextlib
import math
import os
import socket
from collections.abc import Iterator, Sequence

import jax
from jax._src import xla_bridge

from llmasos_xla.sharding import threads
from llmasos_xla.sharding.processes import clusters, gloo, preflight
from llmasos_xla.sharding.processes.clusters import Place
from llmasos_xla.sharding.processes.hub import Hub
from llmasos_xla.sharding.processes.join import Joined, join, split
from llmasos_xla.sharding.processes.relay import relay
from llmasos_xla.sharding.processes.watch import Watch
from llmasos_xla.sharding.processes.world import World, enter, entered, world

# JAX's own watch stays behind ours: its text names no cause.
_JAX_LATER_SECONDS = 10
# Ranks that have ended wait for the others, which may still be writing a report.
_JAX_SHUTDOWN_SECONDS = 24 * 3600
_NO_PROXY = "no_grpc_proxy"


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    rank: int | None = None,
    *,
    local_devices: int | Sequence[int] | None = None,
    heartbeat: float | int | None = None,
    script: str | None = None,
) -> World:
    """Joins this process to the others of its run; to be called ahead of anything that touches a device.

    Without arguments the world is found from what the launcher set: `llmasos launch` and torchrun (RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT), Slurm's srun, a Ray worker, an indexed Job of Kubernetes (WORLD_SIZE and MASTER_ADDR set
    besides), a TPU pod, mpirun. With none of them the process is a world of one. A second call returns the same World.

    All ranks first meet at rank 0 and compare versions, code, clocks and devices, so that what would hang is an error.
    Then each watches the others: if one fails, the rest print its name and reason and end with exit code 76, within
    `heartbeat` seconds.

    Args:
        coordinator: "host:port" of rank 0; the next free port is taken as well, by JAX.
        processes: how many there are.
        rank: this one's number.
        local_devices: the GPUs of this process by number. None: the host's GPUs are divided among its processes.
        heartbeat: seconds without a sign of life after which a rank is given up; rank 0's counts. None:
            LLMASOS_HEARTBEAT, or 20.
        script: the program, where it is not the one that Python was started with.

    Raises:
        ValueError: if the arguments and what is found do not say which rank of how many this is.
        RuntimeError: if JAX has started its devices already.
        PreflightError: if the ranks cannot start together.

    >>> initialize(processes=1).size
    1
    """
    if entered() and (coordinator, processes, rank) == (None, None, None):
        return world()
    place = _place(coordinator, processes, rank)
    if entered():
        return _again(place)
    if place.size == 1:
        return enter(World(0, 1, place.local_rank or 0, socket.gethostname(), None, place.source))
    if xla_bridge.backends_are_initialized() or jax.distributed.is_initialized():
        raise RuntimeError(
            f"initialize: rank {place.rank} of {place.size}: JAX has already started"
            f"{' its devices' if xla_bridge.backends_are_initialized() else ' its distributed service'}; call "
            "llmasos_xla.initialize() ahead of the first array, jax.devices(), model or import that makes one, and "
            "instead of jax.distributed.initialize()"
        )
    beat = _heartbeat(heartbeat)
    limit = _number("LLMASOS_START_SECONDS", 300.0)
    skip = os.environ.get(preflight.SKIP, "")
    preflight.skipped(skip)
    assert place.coordinator is not None
    host, port = split(place.coordinator, clusters.PORT)
    mine = _local_devices(local_devices, place.local_rank, place.local_size)
    facts = preflight.facts(script, mine)
    facts |= {"rank": place.rank, "size": place.size, "run": os.environ.get("LLMASOS_RUN", "")}
    hub = None
    if place.rank == 0:
        hub = Hub(port, place.size, facts["run"], limit, beat, lambda rows: preflight.faults(rows, skip))
    try:
        joined = join(host, port, facts, limit, hub and hub.token)
    except preflight.PreflightError:
        if hub is not None:
            hub.close()
        raise
    local_rank = joined.local_rank if place.local_rank is None else place.local_rank
    local_size = joined.local_size if place.local_size is None else place.local_size
    here = World(place.rank, place.size, local_rank, facts["host"], f"{host}:{port}", place.source)
    Watch(here, joined, hub)
    threads.enough(max(jax.config.jax_num_cpu_devices, 1))  # pyright: ignore[reportAttributeAccessIssue]
    gloo.advertise(joined.address)
    _start_jax(here, joined, mine or _local_devices(local_devices, local_rank, local_size), limit)
    return enter(here)


def _place(coordinator: str | None, processes: int | None, rank: int | None) -> Place:
    if processes == 1 and rank in (None, 0):
        return Place(0, 1, None, "arguments")
    if processes is not None and processes < 1:
        raise ValueError(f"initialize: processes wants a whole number >= 1, got {processes}")
    if None not in (coordinator, processes, rank):
        found = None
    else:
        found = clusters.detect()
    if found is None and (coordinator, processes, rank) == (None, None, None):
        return Place(0, 1, None, "none")
    address = coordinator or (found and found.coordinator) or os.environ.get("JAX_COORDINATOR_ADDRESS")
    size = processes if processes is not None else found and found.size
    number = rank if rank is not None else found and found.rank
    if number is None or size is None or (address is None and size > 1):
        missing = [n for n, v in (("coordinator", address), ("processes", size), ("rank", number)) if v is None]
        raise ValueError(
            f"initialize: neither given nor found: {', '.join(missing)} (asked: {', '.join(clusters.SOURCES)}); give "
            "all of coordinator, processes and rank, or start with llmasos launch"
        )
    if number < 0:
        raise ValueError(f"initialize: rank wants a whole number >= 0, got {number}")
    source = "arguments" if found is None else found.source
    return Place(number, size, address, source, found and found.local_rank, found and found.local_size)


def _again(place: Place) -> World:
    here = world()
    if (place.rank, place.size) != (here.rank, here.size):
        raise RuntimeError(
            f"initialize: this process already is rank {here.rank} of {here.size} (by {here.source}), and was now "
            f"asked to be rank {place.rank} of {place.size}; call it once, or without arguments"
        )
    return here


def _start_jax(here: World, joined: Joined, local_devices: list[int] | None, limit: float) -> None:
    later = math.ceil(joined.heartbeat) + _JAX_LATER_SECONDS
    host = joined.wire.there
    address = f"[{host}]:{joined.service_port}" if ":" in host else f"{host}:{joined.service_port}"
    # A certificate names rank 0's host, so that with mutual TLS there can be nothing in between.
    direct = here.rank == 0 or bool(getattr(jax.config, "jax_mtls_cert_file", None))
    with _no_proxy("127.0.0.1", host):
        jax.distributed.initialize(
            address if direct else relay(host, joined.service_port, hold=joined.heartbeat),
            here.size,
            here.rank,
            local_device_ids=local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=math.ceil(limit),
            heartbeat_timeout_seconds=later,
            shutdown_timeout_seconds=_JAX_SHUTDOWN_SECONDS,
        )


def _local_devices(
    told: int | Sequence[int] | None, local_rank: int | None, local_size: int | None
) -> list[int] | None:
    """The GPUs of this process by number; None for all that it sees, or while its local numbers are not known."""
    here = preflight.gpu_count()
    if told is not None:
        mine = [told] if isinstance(told, int) else list(told)
    elif from_launcher := os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        mine = [int(number) for number in from_launcher.split(",")]
    elif local_rank is None or local_size is None or local_size == 1 or here < local_size:
        # With fewer GPUs than ranks, the launcher has shown each rank its own, or they share.
        return None
    else:
        each = here // local_size
        mine = list(range(local_rank * each, (local_rank + 1) * each))
    if here and not set(mine) <= set(range(here)):
        raise ValueError(f"initialize: local_devices={mine}, and this process sees {here} GPUs, 0 to {here - 1}")
    return mine


def _heartbeat(told: float | int | None) -> float:
    seconds = _number("LLMASOS_HEARTBEAT", 20.0) if told is None else float(told)
    if seconds < 1:
        raise ValueError(f"initialize: heartbeat wants at least 1 s, got {seconds:g}")
    return seconds


def _number(name: str, default: float) -> float:
    told = os.environ.get(name)
    try:
        return float(told) if told else default
    except ValueError:
        raise ValueError(f"initialize: {name} wants a number of seconds, got {told!r}") from None


@contextlib.contextmanager
def _no_proxy(*hosts: str) -> Iterator[None]:
    """gRPC sends even loopback connections through http_proxy, where they hang; it reads this when it connects."""
    if not any(name in os.environ for name in ("grpc_proxy", "https_proxy", "http_proxy")):
        yield
        return
    name = _NO_PROXY
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, (before or os.environ.get("no_proxy"), *hosts)))
    # JAX warns of what is mended here.
    jax.config.update("jax_check_proxy_envs", False)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
