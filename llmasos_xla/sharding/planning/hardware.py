"""What a device can hold and do, and how fast its links are: the figures that plans are made with.

Vendors' figures, per device as JAX counts devices. A link's rate is what one device can send, in one direction. What is
reached of them is stated in `estimate.EFFICIENCY`.
"""

import dataclasses
import os
import time
from pathlib import Path

from llmasos_xla.errors import unknown
from llmasos_xla.sharding.threads import usable_cpus

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One kind of device.

    Attributes:
        name: as `topology` takes it: "v5p", "h100".
        kind: as JAX's `device_kind` has it.
        platform: "tpu", "gpu" or "cpu".
        flops: dtype -> dense floating point operations a second, of products at JAX's default precision; "bfloat16" and
            "float32" always.
        memory: bytes a program may use.
        bandwidth: bytes a second between memory and compute.
        link: bytes a second that a device sends to its neighbors along one axis within a host (GPU) or slice (TPU).
        network: bytes a second that a device sends beyond it.
        per_host: devices of a host.
        source: where the figures are from.
    """

    name: str
    kind: str
    platform: str
    flops: dict[str, float]
    memory: int
    bandwidth: float
    link: float
    network: float
    per_host: int
    source: str

    def flops_of(self, dtype: str) -> float:
        """Operations a second in that dtype; of one that is not listed, float32's."""
        return self.flops.get(dtype, self.flops["float32"])

    def __str__(self) -> str:
        rates = ", ".join(f"{n} {f / 1e12:.4g} TFLOP/s" for n, f in self.flops.items())
        return (
            f"{self.name} ({self.kind}): {rates}; {self.memory / _GIB:.1f} GiB at {self.bandwidth / 1e9:.4g} GB/s; "
            f"links {self.link / 1e9:.4g} GB/s, network {self.network / 1e9:.3g} GB/s; {self.per_host} a host"
        )


def _tpu(
    name: str,
    kind: str,
    bf16: int | float,
    memory: int | float,
    bandwidth: int | float,
    ring: int | float,
    network: int | float,
    host: int,
) -> Hardware:
    # A product of float32 is one of bfloat16 at JAX's default precision, three at "high", six at "highest".
    rates = {"bfloat16": bf16 * 1e12, "float32": bf16 * 1e12}
    source = f"https://cloud.google.com/tpu/docs/{name}"
    if name in ("v5e", "v6e"):
        rates["int8"] = 2 * bf16 * 1e12
    return Hardware(
        name, kind, "tpu", rates, int(memory * _GIB), bandwidth * 1e9, ring * 1e9, network * 1e9, host, source
    )


def _gpu(
    name: str,
    kind: str,
    bf16: int | float,
    tf32: int | float,
    memory: int,
    bandwidth: int | float,
    link: int | float,
    network: int | float,
    source: str,
    **more: int | float,
) -> Hardware:
    rates = {"bfloat16": bf16 * 1e12, "float16": bf16 * 1e12, "float32": tf32 * 1e12}
    rates |= {dtype: rate * 1e12 for dtype, rate in more.items()}
    return Hardware(name, kind, "gpu", rates, memory, bandwidth * 1e9, link * 1e9, network * 1e9, 8, source)


_NVIDIA = "https://www.nvidia.com/en-us/data-center"

# TPU memory is what libtpu names as available ("exceeds available HBM (95.74G)"). A ring along one axis of the torus
# uses two links; the bidirectional rate of all of a chip's ports, 1200 GB/s for v5p, divides by 6 ports of a 3D torus
# or 4 of a 2D one. v4 is left out: libtpu has two devices for each of its chips, which JAX makes no mesh of. GPU memory
# is the driver's figure, as XLA's target configurations hold it (openxla/xla, xla/backends/gpu/target_config/specs);
# GPU rates are without sparsity; a product of float32 runs in TF32 at JAX's default precision. The network is that of
# NVIDIA's own machines, a card of 200 Gb/s for each A100 and of 400 Gb/s for each of the others; clouds differ.
KNOWN = {
    h.name: h
    for h in (
        _tpu("v5e", "TPU v5 lite", 197, 15.75, 819, 100, 3.1, 4),
        _tpu("v5p", "TPU v5", 459, 95.74, 2765, 200, 6.25, 4),
        _tpu("v6e", "TPU v6 lite", 918, 31.25, 1640, 200, 12.5, 4),
        _gpu(
            "a100", "NVIDIA A100-SXM4-80GB", 312, 156, 85_174_386_688, 2039, 300, 25, f"{_NVIDIA}/a100",
            int8=624,
        ),
        _gpu(
            "h100", "NVIDIA H100 80GB HBM3", 989.4, 494.7, 84_942_979_072, 3352, 450, 50, f"{_NVIDIA}/h100",
            float8=1978.9, int8=1978.9,
        ),
        _gpu(
            "h200", "NVIDIA H200", 989.4, 494.7, 150_000_000_000, 4800, 450, 50, f"{_NVIDIA}/h200",
            float8=1978.9, int8=1978.9,
        ),
        _gpu(
            "b200", "NVIDIA B200", 2250, 1100, 191_000_000_000, 8000, 900, 50, f"{_NVIDIA}/dgx-b200",
            float8=4500, int8=4500,
        ),
    )
}  # fmt: skip

# Beyond these bytes XLA's GPU client allocates nothing unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_FRACTION = 0.75
# A core's products of float32: two fused multiply-adds of 8 lanes at 2.5 GHz; measured where it is asked for.
_CPU_FLOPS = 8e10
_CPU_BANDWIDTH = 2e10


def hardware(name: str) -> Hardware:
    """The device of that name or JAX `device_kind`; "cpu" is one CPU device of this process.

    Raises ValueError for one that is not listed.

    >>> hardware("v5p").flops["bfloat16"] / 1e12
    459.0
    >>> hardware("NVIDIA H100 80GB HBM3").name
    'h100'
    """
    if name == "cpu":
        return cpu(1)
    by_kind = {h.kind: h for h in KNOWN.values()}
    found = KNOWN.get(name) or by_kind.get(name)
    if found is None:
        raise unknown("hardware", "device", name, [*KNOWN, "cpu"])
    return found


def usable(device: Hardware) -> int:
    """Bytes a device that a JAX process may allocate: on a GPU the share that JAX's client takes.

    The share is read from XLA_PYTHON_CLIENT_MEM_FRACTION, as by JAX, and is 0.75 otherwise.
    """
    if device.platform != "gpu":
        return device.memory
    return int(device.memory * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _GPU_FRACTION)))


def cpu(devices: int, *, measure: bool = False) -> Hardware:
    """This machine's CPU as `devices` devices that share its memory and its cores.

    Args:
        devices: how many JAX devices the process has.
        measure: whether to time a product of matrices for the operations a second, which takes some 0.1 s.
    """
    cores = usable_cpus()
    total = _measured() if measure else cores * _CPU_FLOPS
    rate, memory = total / devices, available_memory()
    copy = _CPU_BANDWIDTH / devices
    rates = {"float32": rate, "bfloat16": rate}
    return Hardware(
        "cpu", "cpu", "cpu", rates, memory // devices, copy, copy, copy, devices,
        "measured" if measure else f"{cores} cores x {_CPU_FLOPS / 1e9:.0f} GFLOP/s",
    )  # fmt: skip


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could still allocate, beside what it holds: the kernel's estimate, the limits of its
    control groups (v1 and v2) taken into account.

    `root` is where proc and sys are mounted.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    figures = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
    found = int(figures["MemAvailable"].split()[0]) * 1024
    return max(min([found, *_group_limits(root)]), 0)


def _group_limits(root: Path) -> list[int]:
    """What each control group above this process still allows."""
    listed = root / "proc/self/cgroup"
    if not listed.exists():
        return []
    rooms = []
    for line in listed.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used, reclaimable = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            used, reclaimable = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        at = root / base
        # In a container the group's path names what only the host sees; its own group is then mounted at the top.
        for folder in (at, *(at.joinpath(*Path(path).parts[1 : i + 1]) for i in range(1, len(Path(path).parts)))):
            most = _number(folder / limit)
            if most is None:
                continue
            held = (_number(folder / used) or 0) - _statistic(folder / "memory.stat", reclaimable)
            rooms.append(most - max(held, 0))
    return rooms


def _number(path: Path) -> int | None:
    """The number in a file of the kernel; None if there is no such file or it says "max"."""
    text = path.read_text().strip() if path.is_file() else "max"
    return None if text == "max" else int(text)


def _statistic(path: Path, name: str) -> int:
    if not path.is_file():
        return 0
    return int(dict(line.split(" ", 1) for line in path.read_text().splitlines()).get(name, 0))


def _measured() -> float:
    """Floating point operations a second of a float32 product on this machine's cores."""
    import jax
    import jax.numpy as jnp

    size = 1024
    device = jax.local_devices(backend="cpu")[0]
    with jax.default_device(device):
        a = jnp.ones((size, size), jnp.float32)
        product = jax.jit(jnp.dot)
        product(a, a).block_until_ready()
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            product(a, a).block_until_ready()
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
