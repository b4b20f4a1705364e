"""A TCP connection that carries one JSON value a line."""

import json
import select
import socket
from typing import Any, final

# A rank's facts with the digest of every file are some 20 kB; nobody honest sends more than this in a line.
_LONGEST = 1 << 22


@final
class Wire:
    """One end of the connection between a rank and rank 0."""

    def __init__(self, connection: socket.socket):
        # What is sent is small: a peer that does not take it within a second takes nothing any more.
        connection.settimeout(1.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.here, self.there = (plain(name[0]) for name in (connection.getsockname(), connection.getpeername()))
        self.kept: list[dict[str, Any]] = []
        self._rest = b""

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def send(self, **message: Any) -> None:
        """Sends one message; OSError if the peer is gone or takes nothing."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come; waits for some bytes, at most a second (TimeoutError).

        Raises EOFError when the peer has closed, ValueError for what is not ours.
        """
        if self.kept:
            messages, self.kept = self.kept, []
            return messages
        chunk = self.socket.recv(1 << 16)
        if not chunk:
            raise EOFError
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise ValueError("a line without an end")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages

    def ready(self, seconds: float) -> bool:
        """Whether messages come within that time."""
        return bool(self.kept or select.select([self.socket], [], [], seconds)[0])

    def close(self) -> None:
        """Closes this end."""
        self.socket.close()


def listen(port: int) -> socket.socket:
    """A socket that listens on a port of all of this host's addresses; OSError if it is taken."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)


def free_port(first: int, most: int = 64) -> int | None:
    """The first port from `first` on that nobody listens on, if one of `most` is."""
    for port in range(first, min(first + most, 65536)):
        try:
            listen(port).close()
        except OSError:
            continue
        return port
    return None


def plain(address: str) -> str:
    """An address without the IPv6 clothes of an IPv4 one.

    >>> plain("::ffff:10.0.0.2"), plain("fe80::1%eth0")
    ('10.0.0.2', 'fe80::1')
    """
    return address.removeprefix("::ffff:").partition("%")[0]


def is_loopback(address: str) -> bool:
    """Whether an address leads nowhere but to its own host."""
    return address.startswith("127.") or address == "::1"
