"""How a server is told what to do: a Unix socket that only its own user may open, beside the port that all may ask.

A message is four bytes of length and JSON; a file descriptor may come with it, so that weights change hands through
shared memory. Rights are those of the file system: the socket lies in a folder of mode 0700.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any, final

_LOG = logging.getLogger("llmasos_xla.deployment")
_MOST_BYTES = 1 << 20
_MOST_FILES = 4
# Bytes of a folder's path: addresses of sockets end at 104 on some systems.
_LONGEST = 80

Handler = Callable[[dict[str, Any], list[int]], dict[str, Any]]


class ControlError(RuntimeError):
    """What the server answered instead of doing what it was told; `kind` is the name of its error."""

    def __init__(self, reason: str, kind: str = ""):
        super().__init__(reason)
        self.kind = kind


def folders() -> list[pathlib.Path]:
    """Where the sockets of this user's servers may lie, the one to be preferred first.

    Several, since whoever tells a server what to do need not have its environment: a service has no XDG_RUNTIME_DIR,
    the shell beside it has.
    """
    user, runtime = os.getuid(), os.environ.get("XDG_RUNTIME_DIR")
    found = [pathlib.Path(runtime, "llmasos")] if runtime else []
    found += [pathlib.Path(base, f"llmasos-{user}") for base in (tempfile.gettempdir(), "/tmp")]
    found.append(pathlib.Path(f"/run/user/{user}/llmasos"))
    return [path for path in dict.fromkeys(found) if len(os.fsencode(path)) <= _LONGEST]


def folder() -> pathlib.Path:
    """The first of the folders that is this user's alone; made if it is not there.

    Raises PermissionError if there is none.
    """
    reasons = []
    for path in folders():
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            _check_own(path)
        except OSError as error:
            reasons.append(str(error))
        else:
            return path
    raise PermissionError(f"control: no folder takes a socket: {'; '.join(reasons)}; set XDG_RUNTIME_DIR")


def _check_own(path: pathlib.Path) -> None:
    about = path.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or not path.is_dir() or path.is_symlink():
        raise PermissionError(f"control: {str(path)!r} is not this user's alone; remove it, or set XDG_RUNTIME_DIR")


def _listens(path: pathlib.Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


@final
class Control:
    """The server's side: a thread that listens, and one for each who asks.

    Args:
        port: of the server.
        handle: gets a message and the files that came with it, which it may not keep; returns the answer. What it
            raises is told to the sender.
    """

    def __init__(self, port: int, handle: Handler):
        self._handle = handle
        self.path: pathlib.Path = folder() / f"{port}.sock"
        if _listens(self.path):
            # Another address of this machine has the same port, and that server keeps its socket.
            self.path = self.path.with_name(f"{port}-{os.getpid()}.sock")
        with contextlib.suppress(FileNotFoundError):
            # Whoever had it before is gone.
            self.path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        os.chmod(self.path, 0o600)
        self._socket.listen(16)
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def close(self) -> None:
        """Listens no longer."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="control", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            files: list[int] = []
            try:
                message, files = _receive(connection)
                try:
                    answer = {"answer": self._handle(message, files)}
                except Exception as error:
                    expected = isinstance(error, ValueError | LookupError | OSError | TypeError)
                    if not expected:
                        _LOG.exception("control: %s failed", message.get("do"))
                    answer = {"error": str(error) if expected else f"{type(error).__name__}: {error}"}
                    answer["kind"] = type(error).__name__
                connection.sendall(_framed(answer))
            except EOFError:
                # Somebody looked whether anybody listens here.
                return
            except (OSError, ValueError) as error:
                _LOG.warning("control: a message was cut off: %s", error)
            finally:
                for number in files:
                    os.close(number)


def ask(
    port: int,
    message: dict[str, Any],
    files: Sequence[int] = (),
    timeout: float | None = 600.0,
    *,
    path: str | None = None,
) -> dict[str, Any]:
    """Tells the server on `port` of this machine what to do, and returns its answer.

    Args:
        path: of its socket, where it is known; looked for otherwise.

    Raises ConnectionError if no server of this user is there, ControlError with its reason if it refuses.
    """
    with _connected(port, path) as connection:
        connection.settimeout(timeout)
        data = _framed(message)
        try:
            sent = socket.send_fds(connection, [data], list(files)) if files else 0
            if sent < len(data):
                connection.sendall(data[sent:])
            answer, extra = _receive(connection)
        except TimeoutError:
            raise TimeoutError(f"control: the server on port {port} did not answer within {timeout:g} s") from None
        except (OSError, ValueError, EOFError) as error:
            raise ConnectionError(
                f"control: the server on port {port} ended before it answered; whether it did what it was told, its "
                "stats tell once it is back"
            ) from error
        for number in extra:
            os.close(number)
    if "error" in answer:
        raise ControlError(str(answer["error"]), str(answer.get("kind", "")))
    return answer["answer"]


def _connected(port: int, known: str | None) -> socket.socket:
    reason: OSError | None = None
    for path in [known] if known else [each / f"{port}.sock" for each in folders()]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _check_own(pathlib.Path(path).parent)
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            # One that might be somebody else's is worth being told of, that there is none is not.
            reason = reason or (error if isinstance(error, PermissionError) else None)
        else:
            return connection
    if reason is not None:
        raise reason
    raise ConnectionError(f"control: no server of this user listens on port {port} of this machine")


def _framed(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("<I", len(data)) + data


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, files, _, _ = socket.recv_fds(connection, 1 << 16, _MOST_FILES)
    if not data:
        raise EOFError("nothing came")
    try:
        while len(data) < 4 or len(data) < 4 + struct.unpack("<I", data[:4])[0]:
            if len(data) >= 4 and struct.unpack("<I", data[:4])[0] > _MOST_BYTES:
                raise ValueError("it is too long")
            part = connection.recv(1 << 16)
            if not part:
                raise ValueError("it ends in the middle")
            data += part
        message = json.loads(data[4:])
        if not isinstance(message, dict):
            raise ValueError("it is no table")
    except BaseException:
        for number in files:
            os.close(number)
        raise
    return message, list(files)
