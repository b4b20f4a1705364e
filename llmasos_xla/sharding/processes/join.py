"""A rank's way to rank 0: connects, tells its facts, and is told to go, or why not."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from llmasos_xla.sharding.processes.preflight import PreflightError
from llmasos_xla.sharding.processes.wire import Wire, is_loopback, plain

# Whoever listens on the port and says nothing for so long is not rank 0.
_GREETING_SECONDS = 10.0
# Rank 0 listens before it connects to itself, so that trying again does not help it.
_OWN_SECONDS = 5.0
# Rank 0 says itself who is missing; its own limit is to be over first.
_SLACK_SECONDS = 15.0


class Joined(NamedTuple):
    """What a rank has when all may start."""

    wire: Wire
    zero: str
    address: str
    local_rank: int
    local_size: int
    service_port: int
    heartbeat: float


def split(coordinator: str, default_port: int) -> tuple[str, int]:
    """Host and port of "host:port", "host" or "[IPv6]:port".

    >>> split("node1", 29400), split("[fe80::1]:5000", 29400)
    (('node1', 29400), ('fe80::1', 5000))
    """
    host, _, port = coordinator.rpartition(":") if not coordinator.endswith("]") else (coordinator, "", "")
    if not host or (":" in host and not host.startswith("[")):
        host, port = coordinator, ""
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"initialize: coordinator={coordinator!r} wants host:port with a port of 1 to 65535")
    return host.strip("[]"), int(port or default_port)


def join(host: str, port: int, facts: Mapping[str, Any], limit: float | int, token: str | None = None) -> Joined:
    """Meets the other ranks at rank 0; returns when all are there and nothing keeps them apart.

    Args:
        host: rank 0's host.
        port: where its `Hub` listens.
        facts: rank, size, run and what `preflight.facts` found.
        limit: seconds for reaching it, and then for all the others to come.
        token: on rank 0 its own hub's, to find out that the coordinator's name leads elsewhere.

    Raises PreflightError.
    """
    who = f"rank {facts['rank']} (host {facts['host']})"
    wire = _connect(host, port, limit if token is None else _OWN_SECONDS, who, token is not None)
    try:
        return _meet(wire, f"{host}:{port}", who, facts, limit, token)
    except PreflightError:
        wire.close()
        raise


def _meet(wire: Wire, where: str, who: str, facts: Mapping[str, Any], limit: float | int, token: str | None) -> Joined:
    try:
        hello = _next(wire, _GREETING_SECONDS, "hub")
    except TimeoutError:
        raise PreflightError(
            f"{who}: whoever listens at {where}, the coordinator's address, says nothing for {_GREETING_SECONDS:g} s: "
            "rank 0 is stopped or stuck, or another program is on that port. Look at rank 0, or choose another port"
        ) from None
    except (OSError, EOFError, ValueError):
        raise PreflightError(
            f"{who}: something else than rank 0 answers at {where}, the coordinator's address. Is another "
            "program on that port? Choose another (MASTER_PORT, or initialize(coordinator=...))"
        ) from None
    if token is not None and hello["hub"] != token:
        raise PreflightError(
            f"{who}: the coordinator's address {where} leads to another rank 0, on host {hello['host']}, pid "
            f"{hello['pid']}. Each rank needs a number of its own, and each run a port of its own"
        )
    try:
        chosen = _chosen_address()
        own = {"clock": time.time(), "address": chosen or wire.here, "chosen": chosen is not None}
        wire.send(**(dict(facts) | own))
        answer = _next(wire, limit + _SLACK_SECONDS, "go", "stop")
    except TimeoutError:
        raise PreflightError(f"{who}: rank 0 (host {hello['host']}) did not answer for {limit:g} s") from None
    except (OSError, EOFError, ValueError):
        raise PreflightError(
            f"{who}: rank 0 (host {hello['host']}, pid {hello['pid']}) ended before the start; look at what it printed"
        ) from None
    if "stop" in answer:
        raise PreflightError(answer["stop"])
    zero = f"rank 0 (host {hello['host']}, pid {hello['pid']})"
    return Joined(wire=wire, zero=zero, **answer["go"])


def _connect(host: str, port: int, limit: float | int, who: str, own: bool) -> Wire:
    begun = time.monotonic()
    told = False
    while True:
        try:
            return Wire(socket.create_connection((host, port), timeout=min(5.0, limit)))
        except OSError as error:
            waited = time.monotonic() - begun
            if waited > limit:
                _unreachable(host, port, limit, who, own, error)
        if not told and waited > 10:
            told = True
            print(f"llmasos: {who} waits for rank 0 at {host}:{port}", file=sys.stderr, flush=True)
        time.sleep(min(0.1 + waited / 10, 2.0))


def _unreachable(host: str, port: int, limit: float | int, who: str, own: bool, error: OSError) -> NoReturn:
    try:
        found = sorted({plain(str(entry[4][0])) for entry in socket.getaddrinfo(host, port)})
    except socket.gaierror:
        raise PreflightError(
            f"{who}: the coordinator's name {host!r} cannot be resolved here. Give it in DNS or /etc/hosts, or give "
            "rank 0's address as a number"
        ) from None
    reason = error.strerror or str(error)
    if own:
        raise PreflightError(
            f"{who} listens on port {port}, and does not reach itself by the coordinator's name {host!r}, which is "
            f"{', '.join(found)} here: {reason}. Give an address of this host (MASTER_ADDR, or "
            "initialize(coordinator=...)), or start rank 0 on the host of that name"
        )
    hint = (
        " That name is a loopback address here: if rank 0 is on another host, give that host's address"
        if all(is_loopback(address) for address in found)
        else " Was rank 0 started, on that host? Does a firewall let the port through?"
    )
    raise PreflightError(
        f"{who}: the coordinator {host}:{port} ({', '.join(found)}) is not reached within {limit:g} s: {reason}.{hint} "
        "(LLMASOS_START_SECONDS sets the limit)"
    )


def _next(wire: Wire, limit: float | int, *kinds: str) -> dict[str, Any]:
    """The first message that has one of these keys."""
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        messages = wire.receive() if wire.ready(left) else []
        for number, message in enumerate(messages):
            if any(kind in message for kind in kinds):
                wire.kept = messages[number + 1 :]
                return message
    raise TimeoutError


def _chosen_address() -> str | None:
    told = os.environ.get("LLMASOS_ADDRESS")
    if not told:
        return None
    try:
        return plain(str(socket.getaddrinfo(told, None, type=socket.SOCK_STREAM)[0][4][0]))
    except socket.gaierror:
        raise PreflightError(
            f"LLMASOS_ADDRESS={told!r} cannot be resolved on host {socket.gethostname()}; give an address of it"
        ) from None
