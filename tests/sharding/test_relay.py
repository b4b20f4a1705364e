"""The relay copies both ways, and hides for a while that the far end is gone."""

import contextlib
import socket
import time

import pytest

from llmasos_xla.sharding.processes.relay import relay

HOLD = 1.0


@pytest.fixture
def ends():
    """The near end of a connection through the relay, and its far end."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        host, _, port = relay("127.0.0.1", door.getsockname()[1], HOLD).rpartition(":")
        near = socket.create_connection((host, int(port)), timeout=10)
        far, _ = door.accept()
        far.settimeout(10)
        with contextlib.closing(near), contextlib.closing(far):
            yield near, far


def everything(connection):
    data = b""
    while chunk := connection.recv(1 << 16):
        data += chunk
    return data


def test_bytes_go_both_ways(ends):
    near, far = ends
    near.sendall(b"question")
    assert far.recv(100) == b"question"
    data = bytes(range(256)) * 4000
    far.sendall(data)
    far.close()
    assert everything(near) == data


def test_the_near_end_stays_open_after_the_far_end_has_closed(ends):
    near, far = ends
    far.close()
    begun = time.monotonic()
    near.sendall(b"anyone there?")
    assert everything(near) == b""
    assert HOLD / 2 < time.monotonic() - begun < HOLD + 5


def test_the_far_end_closes_at_once_after_the_near_end(ends):
    near, far = ends
    begun = time.monotonic()
    near.close()
    assert everything(far) == b""
    assert time.monotonic() - begun < HOLD / 2
