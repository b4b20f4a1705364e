"""What the ranks tell of themselves before they start, and what of it must not differ.

A difference found here would otherwise be a hang in the first collective, or numbers that nobody can explain.
"""

import collections
import functools
import hashlib
import os
import pathlib
import platform
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmasos_xla._version import __version__
from llmasos_xla.errors import unknown
from llmasos_xla.sharding.processes.wire import is_loopback

CLOCK_SECONDS = 5.0
"""How far the ranks' clocks may be apart."""
SKIP = "LLMASOS_PREFLIGHT_SKIP"
"""The environment variable with the names of checks to leave out, separated by commas."""

_NVIDIA = "/proc/driver/nvidia/gpus"

Facts = Mapping[str, Any]


class PreflightError(RuntimeError):
    """The ranks cannot start together; the text says which of them, why, and what to do."""


def facts(script: str | None = None, gpus: Sequence[int] | None = None) -> dict[str, Any]:
    """What this rank tells rank 0.

    Args:
        script: the program, by default the one that Python was started with.
        gpus: which of the GPUs that it sees are its own; None for all.
    """
    import jax
    import jaxlib.version

    host = socket.gethostname()
    script = script or getattr(sys.modules.get("__main__"), "__file__", None)
    return {
        "host": host,
        "pid": os.getpid(),
        "versions": {
            "llmasos_xla": __version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
            "Python": ".".join(platform.python_version_tuple()[:2]),
        },
        "script": {script_name(script): digest(pathlib.Path(script))} if script and os.path.isfile(script) else {},
        "package": package_digests(),
        "devices": devices(gpus),
        "own_name": own_addresses(host),
    }


def script_name(script: str) -> str:
    """What a script is called in a message: the ranks may have it in different folders."""
    return pathlib.Path(script).name


def digest(path: pathlib.Path) -> str:
    """Sixteen digits that differ when the file does."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@functools.cache
def package_digests() -> dict[str, str]:
    """The digest of each source file of the installed package."""
    root = pathlib.Path(__file__).parents[2]
    return {str(path.relative_to(root)): digest(path) for path in sorted(root.rglob("*.py"))}


def own_addresses(host: str) -> list[str]:
    """What the host's name resolves to on the host itself."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(entry[4][0]) for entry in found})


def devices(gpus: Sequence[int] | None = None) -> dict[str, int]:
    """Kind -> number of the devices that JAX will find, of GPUs only those numbers, told without starting it.

    A platform that JAX starts with other devices than its neighbors' waits for them for minutes.
    """
    import jax

    wanted = (jax.config.jax_platforms or "").split(",")[0]  # pyright: ignore[reportAttributeAccessIssue]
    if wanted == "cpu":
        return {"cpu": _cpu_devices()}
    names = _gpus()
    if gpus is not None:
        names = [names[number] for number in gpus if number < len(names)]
    return dict(collections.Counter(names)) or _tpus() or {"cpu": _cpu_devices()}


def gpu_count() -> int:
    """How many GPUs this process may see."""
    return len(_gpus())


def _gpus() -> list[str]:
    names = []
    for folder in sorted(pathlib.Path(_NVIDIA).glob("*")):
        match = re.search(r"Model:(.*)", (folder / "information").read_text())
        names.append(match[1].strip() if match else "GPU")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not names:
        return names
    chosen = [part.strip() for part in visible.split(",") if part.strip()]
    # UUIDs name no position; their kind is then that of the first.
    return [names[int(part)] if part.isdecimal() and int(part) < len(names) else names[0] for part in chosen]


def _tpus() -> dict[str, int]:
    chips = len(list(pathlib.Path("/dev").glob("accel[0-9]*")))
    return {os.environ.get("TPU_ACCELERATOR_TYPE", "TPU"): chips} if chips else {}


def _cpu_devices() -> int:
    import jax

    told = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return told if told >= 0 else int(flag[1]) if flag else 1


def faults(rows: Sequence[Facts], skip: str = "") -> list[str]:
    """What keeps these ranks from starting together; each text names the ranks, and says what to do.

    Args:
        rows: the facts of all ranks. Rank 0 has added to each "ahead", the seconds by which its clock is ahead, and
            "address", where its neighbors will look for it; and "apart", whether it is on another host than rank 0.
        skip: names of `CHECKS` to leave out, separated by commas.
    """
    left_out = skipped(skip)
    out = []
    for name, check in CHECKS.items():
        found = [] if name in left_out else check(rows)
        out += [f"{text} (to start all the same: {SKIP}={name})" for text in found]
    return out


def skipped(text: str) -> set[str]:
    """The checks that `SKIP` names; ValueError if there is no such check."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    for name in names - set(CHECKS):
        raise unknown(SKIP, "check", name, CHECKS)
    return names


def _versions(rows: Sequence[Facts]) -> list[str]:
    out = []
    for package in rows[0]["versions"]:
        groups = _groups(rows, lambda row, package=package: row["versions"].get(package, "none"))
        if len(groups) > 1:
            out.append(f"{package} differs: {_tell(groups)}. Install the same version on all hosts")
    return out


def _code(rows: Sequence[Facts]) -> list[str]:
    out = []
    for what, remedy in (("script", "Start the same script"), ("package", "Install the same llmasos_xla")):
        files = sorted({name for row in rows for name in row[what]})
        different = {}
        for name in files:
            groups = _groups(rows, lambda row, what=what, name=name: row[what].get(name, "absent"))
            if len(groups) > 1:
                different[name] = groups
        if different:
            first = next(iter(different))
            more = f" and {len(different) - 1} other files" if len(different) > 1 else ""
            out.append(f"{what}: {first}{more} differs: {_tell(different[first])}. {remedy} on all hosts")
    return out


def _clocks(rows: Sequence[Facts]) -> list[str]:
    ahead = [row["ahead"] for row in rows]
    if max(ahead) - min(ahead) <= CLOCK_SECONDS:
        return []
    off = [
        f"rank {row['rank']} (host {row['host']}) {abs(row['ahead']):.0f} s {'ahead' if row['ahead'] > 0 else 'behind'}"
        for row in rows
        if abs(row["ahead"]) > CLOCK_SECONDS / 2
    ]
    return [f"clocks are apart: against rank 0's, {', '.join(off)}. Set them (chronyd or ntpd)"]


def _devices(rows: Sequence[Facts]) -> list[str]:
    groups = _groups(rows, lambda row: " + ".join(f"{n} x {kind}" for kind, n in sorted(row["devices"].items())))
    if len(groups) == 1:
        return []
    return [
        f"devices differ: {_tell(groups)}. Give each rank the same (JAX_PLATFORMS, JAX_NUM_CPU_DEVICES, "
        "CUDA_VISIBLE_DEVICES), or leave out the hosts that have others"
    ]


def _names(rows: Sequence[Facts]) -> list[str]:
    if not any(row["apart"] for row in rows):
        return []
    return [
        f"rank {row['rank']} (host {row['host']}) would tell the others to find it at {row['address']}, which on "
        f"every host is that host itself: they would wait for ever. Its own name resolves to "
        f"{', '.join(row['own_name']) or 'nothing'}. In its /etc/hosts give {row['host']} its address in the network "
        "instead, or set LLMASOS_ADDRESS to that address"
        for row in rows
        if is_loopback(row["address"])
    ]


CHECKS: dict[str, Callable[[Sequence[Facts]], list[str]]] = {
    "versions": _versions,
    "code": _code,
    "clocks": _clocks,
    "devices": _devices,
    "names": _names,
}
"""What is compared, by the name that leaves it out."""


def _groups(rows: Sequence[Facts], value: Callable[[Facts], str]) -> dict[str, list[Facts]]:
    groups: dict[str, list[Facts]] = {}
    for row in rows:
        groups.setdefault(value(row), []).append(row)
    return groups


def _tell(groups: Mapping[str, Sequence[Facts]]) -> str:
    return "; ".join(f"{value} on {ranks(rows)}" for value, rows in groups.items())


def ranks(rows: Sequence[Facts], most: int = 6) -> str:
    """Ranks with their hosts, for a message.

    >>> ranks([{"rank": 0, "host": "a"}, {"rank": 3, "host": "b"}])
    'ranks 0 (host a), 3 (host b)'
    """
    named = [f"{row['rank']} (host {row['host']})" for row in rows[:most]]
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"rank{'s' if len(rows) > 1 else ''} {', '.join(named)}{more}"
