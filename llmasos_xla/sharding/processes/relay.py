"""A relay in front of JAX's coordination service, so that its end is ours to tell.

JAX's client aborts its process, with a text nobody can read, in the moment in which its connection to rank 0 closes.
The ranks connect through this relay, which keeps the connection open for a while when rank 0 is gone: time in which
`watch` names the rank and ends the process in order.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any


def relay(host: str, port: int, hold: float) -> str:
    """Starts it; returns the "address:port" that leads to `host:port`, for as long as this process lives.

    Args:
        host: where connections lead.
        port: and to which port.
        hold: seconds for which a connection stays open after the far end has closed it.
    """
    door = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = door.accept()
            try:
                far = socket.create_connection((host, port), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _start(_serve, near, far, hold)

    _start(accept)
    return f"127.0.0.1:{door.getsockname()[1]}"


def _serve(near: socket.socket, far: socket.socket, hold: float) -> None:
    outward = _start(_outward, near, far, hold)
    if _copy(far, near):
        time.sleep(hold)
    _shut(near, far)
    outward.join()
    near.close()
    far.close()


def _outward(near: socket.socket, far: socket.socket, hold: float) -> None:
    if not _copy(near, far):
        time.sleep(hold)
    _shut(near, far)


def _copy(source: socket.socket, sink: socket.socket) -> bool:
    """Copies until one of the two is gone; tells whether it was the source."""
    while True:
        try:
            data = source.recv(1 << 16)
        except OSError:
            return True
        if not data:
            return True
        try:
            sink.sendall(data)
        except OSError:
            return False


def _shut(*ends: socket.socket) -> None:
    # Not close(): the other thread may be reading, and the number would be given to another file.
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _start(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
