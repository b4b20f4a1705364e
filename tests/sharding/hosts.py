"""Hosts on this machine: network namespaces on a bridge, each with an address, a name and a hosts file of its own."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence

import pytest


@dataclasses.dataclass(frozen=True)
class Host:
    name: str
    address: str

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
        """The command on this host, its standard error joined to its output."""
        inside = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *command]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *inside],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(environment),
        )


@contextlib.contextmanager
def hosts(count: int, own_name: str | None = None) -> Iterator[list[Host]]:
    """`count` hosts that reach each other by name; with `own_name` each takes its own name for that address.

    Skips the test where namespaces cannot be made, with the reason; removes them in any case.
    """
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not shutil.which("ip") or not shutil.which("unshare") or not shutil.which("hostname"):
        pytest.skip("network namespaces need ip (iproute2), unshare and hostname")
    tag = f"lm{os.getpid()}"
    switch = f"{tag}s"
    made = [Host(f"{tag}h{number}", f"10.77.0.{number + 1}") for number in range(count)]
    folder = pathlib.Path("/etc/netns")
    had_folder = folder.exists()
    try:
        try:
            _ip("netns", "add", switch)
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, host in enumerate(made):
            _connect(host, switch, number)
            names = [f"{own_name if own_name and other is host else other.address} {other.name}" for other in made]
            (folder / host.name).mkdir(parents=True)
            (folder / host.name / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        yield made
    finally:
        for name in (switch, *(host.name for host in made)):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            shutil.rmtree(folder / name, ignore_errors=True)
        if not had_folder and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _connect(host: Host, switch: str, number: int) -> None:
    _ip("netns", "add", host.name)
    _ip("-n", switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("-n", switch, "link", "set", f"p{number}", "master", "br0")
    _ip("-n", switch, "link", "set", f"p{number}", "up")
    _ip("-n", host.name, "link", "set", "lo", "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.name, "link", "set", "eth0", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
