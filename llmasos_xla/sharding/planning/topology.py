"""The devices that a plan is for: those that are here, or compile-only ones of hardware that is not.

XLA compiles for devices it cannot see: for TPUs with libtpu, for NVIDIA's GPUs with JAX's CUDA plugin and a description
of the GPU, neither of which needs the hardware or its driver, and for more CPU devices than a process has. The
process's own devices are not touched.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from llmasos_xla.errors import missing_package, unknown
from llmasos_xla.sharding.planning.hardware import KNOWN, Hardware, cpu, hardware

_PLATFORMS = {"gpu": "gpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu", "cpu": "cpu"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, and what is known of them.

    Attributes:
        name: what was asked for: "v5p:8x8x4", "here".
        hardware: one of the devices.
        devices: for `MeshSpec.mesh(devices)`.
        per_group: how many of them are joined by the fast links: a host's GPUs, a slice's TPUs.
        here: whether programs compiled for them run in this process.
        estimate: why figures of compiled programs are only an estimate, or "".
    """

    name: str
    hardware: Hardware
    devices: tuple[Any, ...]
    per_group: int
    here: bool = False
    estimate: str = ""

    @property
    def platform(self) -> str:
        """What programs are traced for, as `kernels.tracing_for` takes it: "cpu", "gpu", "tpu"."""
        return self.hardware.platform

    @property
    def gpu(self) -> str | None:
        """Which GPU programs are traced for, as `kernels.tracing_for` takes it."""
        return self.hardware.kind if self.platform == "gpu" else None

    @property
    def compiles_for(self) -> str:
        """The platform whose compiler is used: "cpu" where that is only an estimate."""
        return _PLATFORMS[self.devices[0].platform]

    def __len__(self) -> int:
        return len(self.devices)

    def __str__(self) -> str:
        groups = len(self) // self.per_group
        joined = f"{groups} x {self.per_group}" if groups > 1 else str(self.per_group)
        note = f", {self.estimate}" if self.estimate else ""
        return f"{self.name}: {joined} x {self.hardware.kind}{note}"


def topology(name: str | None = None, *, compile_on: str | None = None, measure: bool = False) -> Topology:
    """The devices of that name.

    Args:
        name: None for those that are here; "cpu:8", "h100:16" (kind and number) or "v5p:8x8x4" (chips along the axes of
            a TPU slice; "v5p:8x8x4*2" for two slices).
        compile_on: "cpu" compiles for as many CPU devices instead, where the platform's own compiler is not installed:
            arrays and messages are those of the same mesh, temporary values differ with the compiler.
        measure: whether to time this machine's CPU rather than to take its usual rate.

    Raises:
        ValueError: for a name that is not understood.
        ImportError: if the platform's compiler is not installed; says which extra brings it.

    >>> topology("cpu:8").platform, len(topology("cpu:8"))
    ('cpu', 8)
    """
    if compile_on not in (None, "cpu"):
        raise ValueError(f'topology: compile_on wants "cpu" or None, got {compile_on!r}')
    if name is None:
        return _here(measure)
    kind, shape, slices = _parsed(name)
    if kind == "cpu":
        count = math.prod(shape)
        devices, here = _cpu_devices(count)
        return Topology(name, cpu(count, measure=measure), devices, count, here)
    device = hardware(kind)
    chips = math.prod(shape)
    count = chips * slices
    if device.platform == "tpu":
        group = count // slices
    else:
        device = dataclasses.replace(device, per_host=min(device.per_host, chips))
        if chips % device.per_host:
            raise ValueError(
                f"topology: {name!r} does not fill its hosts of {device.per_host} GPUs; ask for up to "
                f"{device.per_host}, or a multiple of it"
            )
        group = device.per_host
    if compile_on == "cpu":
        devices, _ = _cpu_devices(count)
        return Topology(name, device, devices, group, estimate="compiled for CPU devices instead: an estimate")
    if device.platform == "tpu":
        devices = _tpu_devices(kind, shape, slices)
    else:
        devices = _gpu_devices(device, chips)
    return Topology(name, device, devices, group)


@contextlib.contextmanager
def uncached(topology: Topology) -> Iterator[None]:
    """Keeps programs for devices that are not here out of JAX's cache on disk, which could not read them back."""
    if topology.here:
        yield
        return
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    # A cache that is in use cannot be switched off; what compiles faster than this is not written.
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _here(measure: bool) -> Topology:
    devices = tuple(jax.devices())
    kind, platform = devices[0].device_kind, _PLATFORMS.get(devices[0].platform, devices[0].platform)
    if platform == "cpu":
        local = len(jax.local_devices())
        return Topology("here", cpu(local, measure=measure), devices, local, here=True)
    found = hardware(kind)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        found = dataclasses.replace(found, memory=limit)
    if platform == "tpu":
        group = len(devices) // len({getattr(d, "slice_index", 0) for d in devices})
    else:
        group = len(devices) // len({d.process_index for d in devices})
    return Topology("here", found, devices, group, here=True)


def _parsed(name: str) -> tuple[str, tuple[int, ...], int]:
    """Kind, chips along each axis, and slices."""
    match = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+){0,2})(?:\*(\d+))?", str(name).strip().lower())
    kinds = [*KNOWN, "cpu"]
    example = 'topology: wants "cpu:8", "h100:16", "v5p:8x8x4" or "v5p:8x8x4*2" for two slices'
    if match is None:
        raise ValueError(f"{example}, got {name!r}")
    kind, sizes, slices = match[1], tuple(map(int, match[2].split("x"))), int(match[3] or 1)
    if kind not in kinds:
        raise unknown("topology", "device", kind, kinds)
    if 0 in sizes or slices == 0:
        raise ValueError(f"{example}; {name!r} has no devices")
    if (KNOWN[kind].platform if kind in KNOWN else "cpu") != "tpu" and (len(sizes) > 1 or slices > 1):
        raise ValueError(f'{example}; {kind} is counted, "{kind}:{math.prod(sizes) * slices}", got {name!r}')
    axes = 2 if kind in ("v5e", "v6e") else 3
    if kind in KNOWN and KNOWN[kind].platform == "tpu" and len(sizes) != axes:
        torus = "x".join("4" * axes)
        raise ValueError(f'topology: a slice of {kind} has {axes} axes, "{kind}:{torus}", got {name!r}')
    return kind, sizes, slices


def _tpu_devices(kind: str, shape: Sequence[int], slices: int) -> tuple[Any, ...]:
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_package("plans for TPUs", "libtpu", "plan", 'compile_on="cpu" for an estimate') from error
    from jax.experimental import topologies

    name = f"{kind}:{'x'.join(map(str, shape))}"
    more: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
    # Slices smaller than a host have hosts of their size; libtpu assumes whole ones otherwise.
    if math.prod(shape) < KNOWN[kind].per_host:
        more["chips_per_host_bounds"] = [*shape, *(1,) * (3 - len(shape))]
    try:
        return tuple(topologies.get_topology_desc(name, "tpu", **more).devices)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise RuntimeError(
                "topology: libtpu is in use by another process, and takes one at a time; for plans alone, start Python "
                "with ALLOW_MULTIPLE_LIBTPU_LOAD=1"
            ) from error
        raise ValueError(
            f"topology: libtpu knows no slice {name!r}: {str(error).splitlines()[0]}; sizes along each axis are "
            "multiples of a host's chips, 2x2x1 (v5p) or 2x2 (v5e, v6e)"
        ) from error


def _gpu_devices(device: Hardware, count: int) -> tuple[Any, ...]:
    from jax.experimental import topologies

    hosts = count // device.per_host
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(device.name), topology=f"1x{hosts}x{device.per_host}"
        )
    except NotImplementedError as error:
        missing = missing_package("plans for GPUs", "JAX's CUDA plugin", "plan-gpu", 'compile_on="cpu" for an estimate')
        raise ImportError(
            f"{missing}. Where it is installed and no GPU is here, start Python with JAX_PLATFORMS=cpu: the plugin "
            "looks for a driver otherwise, and is left out"
        ) from error
    return tuple(found.devices)


def _cpu_devices(count: int) -> tuple[tuple[Any, ...], bool]:
    """Devices to compile for, and whether they are the process's own."""
    with contextlib.suppress(RuntimeError):  # a process may have been started without the CPU platform
        own = jax.local_devices(backend="cpu")
        if len(own) >= count:
            return tuple(own[:count]), jax.default_backend() == "cpu"
    return _more_cpu_devices(count), False


@functools.cache
def _more_cpu_devices(count: int) -> tuple[Any, ...]:
    from jaxlib import xla_client

    return tuple(xla_client.make_cpu_client(num_devices=count).devices())


# What XLA's compiler reads of a GPU: compute capability and what an SM and a block have (CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability"), SMs and clock (datasheets), cache and bytes as XLA's own target
# configurations list them (openxla/xla, xla/backends/gpu/target_config/specs, revision 0774019d).
_SPECIFICS = {
    #        major, SMs, shared memory an SM, of a block, L2 bytes, GHz
    "a100": (8, 108, 167936, 166912, 41943040, 1.41),
    "h100": (9, 132, 233472, 232448, 52428800, 1.98),
    "h200": (9, 132, 233472, 232448, 62914560, 1.98),
    "b200": (10, 148, 233472, 232448, 132644864, 1.965),
}


def target_config(name: str) -> str:
    """The GPU as XLA's ahead-of-time compiler takes it, a `GpuTargetConfigProto` in text.

    >>> "core_count: 132" in target_config("h100")
    True
    """
    if name not in _SPECIFICS:
        raise unknown("target_config", "GPU", name, _SPECIFICS)
    device = KNOWN[name]
    major, cores, shared, shared_block, cache, clock = _SPECIFICS[name]
    return f"""
        gpu_device_info {{
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          core_count: {cores} fpus_per_core: {64 if major == 8 else 128} clock_rate_ghz: {clock}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_block} shared_memory_per_core: {shared}
          l2_cache_size: {cache} memory_bandwidth: {int(device.bandwidth)} device_memory_size: {device.memory}
          cuda_compute_capability {{ major: {major} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{device.kind}"
        """
