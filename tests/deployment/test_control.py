"""The socket by which a server is told what to do: whose it is, and where it is found."""

import os
import pathlib
import socket
import tempfile

import numpy as np
import pytest

from llmasos_xla.deployment import control, shared
from llmasos_xla.deployment.control import Control, ControlError


@pytest.fixture
def short():
    """A folder in whose name there is room for a socket's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield pathlib.Path(folder)


def test_the_socket_is_found_from_another_environment(monkeypatch, short):
    own = short / "own"
    own.mkdir()
    monkeypatch.setattr(control.tempfile, "gettempdir", lambda: str(short))
    # Neither of these takes a socket: the first is not there, the second is longer than an address may be.
    for runtime in (short / "gone", short / ("x" * 90)):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        server = Control(2, lambda message, files: {"is": "there"})
        try:
            assert server.path.parent == short / f"llmasos-{os.getuid()}"
            assert control.ask(2, {}) == {"is": "there"}
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
            assert control.ask(2, {}) == {"is": "there"}
        finally:
            server.close()


def test_servers_of_one_port_at_several_addresses_have_a_socket_each(monkeypatch, short):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    first = Control(3, lambda message, files: {"number": 1})
    second = Control(3, lambda message, files: {"number": 2})
    try:
        assert control.ask(3, {}) == control.ask(3, {}, path=str(first.path)) == {"number": 1}
        assert control.ask(3, {}, path=str(second.path)) == {"number": 2}
    finally:
        second.close()
    assert control.ask(3, {}) == {"number": 1}
    first.close()
    # One that was killed leaves its socket behind, which the next takes.
    left = control.folder() / "3.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(left))
    third = Control(3, lambda message, files: {"number": 3})
    assert third.path == left
    assert control.ask(3, {}) == {"number": 3}
    third.close()


def test_the_control_socket_is_its_users_alone(monkeypatch, short):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))

    def handle(message, files):
        if message["do"] == "fail":
            raise ValueError("no")
        return {"got": message, "sizes": [os.fstat(number).st_size for number in files]}

    server = Control(1, handle)
    try:
        assert server.path.stat().st_mode & 0o777 == 0o600
        assert server.path.parent.stat().st_mode & 0o777 == 0o700
        file = shared.filled({"a": np.ones(3, np.float32)})
        answer = control.ask(1, {"do": "it", "long": "x" * 100_000}, [file])
        assert answer["got"]["long"] == "x" * 100_000
        assert answer["sizes"] == [os.fstat(file).st_size]
        os.close(file)
        with pytest.raises(ControlError, match="no"):
            control.ask(1, {"do": "fail"})
    finally:
        server.close()
    with pytest.raises(ConnectionError, match="no server of this user listens on port 1"):
        control.ask(1, {"do": "it"})
    (short / "llmasos").chmod(0o755)
    with pytest.raises(PermissionError, match="not this user's alone"):
        control.ask(1, {"do": "it"})
