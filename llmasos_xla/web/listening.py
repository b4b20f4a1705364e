"""Sockets that listen, and why one cannot."""

import errno
import os
import socket


def listen(host: str, port: int, who: str = "deploy") -> socket.socket:
    """A listening socket; connections wait in it until the application accepts them.

    Raises OSError that says which address, why not, and what to do.
    """
    if not 0 <= port <= 65535:
        # The system takes it for another one.
        raise OSError(f"{who}: a port is within 0 and 65535, {port} came; 0 takes a free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(f"{who}: host {host!r} is no address of this machine: {error.strerror}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":
        # A port whose last connections are still fading is free; on Windows the option means another thing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"{who}: port {port} on {host} {_why_not(error)}; port=0 takes a free one") from None
    return listener


def _why_not(error: OSError) -> str:
    known = {errno.EADDRINUSE: "is in use", errno.EACCES: "needs more rights than this user has"}
    return known.get(error.errno or 0, f"cannot be bound ({error.strerror or error})")
