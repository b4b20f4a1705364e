"""The parent's side of the server process: its start, what it says, its end."""

import collections
import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

_KINDS = {
    kind.__name__: kind for kind in (ValueError, TypeError, FileNotFoundError, PermissionError, OSError, ImportError)
}
# The server gives its requests five seconds to end; past this it hangs.
GRACE_SECONDS = 8.0


@final
class Hands:
    """Two threads for what a server says: the first one's, and those of servers that are started in its place.

    They are there ahead of time, since a script that goes on serving has ended, as Python sees it, and from 3.12 on an
    interpreter that ends begins no threads.
    """

    def __init__(self):
        self._todo: queue.SimpleQueue[tuple[Callable[[], None], threading.Event] | None] = queue.SimpleQueue()
        for _ in range(2):
            threading.Thread(target=_work, args=(self._todo,), name="server's words", daemon=True).start()
        # At the interpreter's end they are still wanted.
        weakref.finalize(self, _dismiss, self._todo).atexit = False

    def run(self, function: Callable[[], None]) -> threading.Event:
        """Has one of them call the function; the event tells that it is through."""
        through = threading.Event()
        self._todo.put((function, through))
        return through


def _work(todo: queue.SimpleQueue) -> None:
    while (task := todo.get()) is not None:
        function, through = task
        try:
            function()
        finally:
            through.set()
        # It would be kept alive by this thread until the next one comes.
        del task, function, through


def _dismiss(todo: queue.SimpleQueue) -> None:
    for _ in range(2):
        todo.put(None)


@final
class Child:
    """A server process. It ends when its standard input does: at `stop`, or when this process is gone, even killed.

    It is in a session of its own, so that Ctrl-C in the terminal reaches only the parent, which then decides. What it
    writes to standard error appears on this process's `sys.stderr`, in Jupyter too.
    """

    def __init__(self, arguments: Sequence[str], grace: float = GRACE_SECONDS, hands: Hands | None = None):
        self._grace, self._hands = grace, hands or Hands()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmasos_xla.deployment.server", *arguments, "--watch-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
            start_new_session=True,
        )
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._last_lines: collections.deque[str] = collections.deque(maxlen=20)
        self._readers = [self._hands.run(read) for read in (self._listen, self._pass_on)]

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def status(self) -> int | None:
        """The exit status; None while it runs. Negative: the signal that ended it."""
        return self._process.poll()

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """What the server says of itself once it is ready: ports, example, preprocessing.

        Raises the server's own error if it could not start, TimeoutError if it took too long; the process is gone then.
        """
        deadline = time.monotonic() + timeout
        said: dict[str, Any] = {}
        try:
            while True:
                try:
                    message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise TimeoutError(
                        f"deploy: the server was not ready within {timeout:g} s; pass a larger timeout="
                        f"{self.last_words()}"
                    ) from None
                if message is None:
                    self._process.wait(self._grace)
                    raise RuntimeError(
                        f"deploy: the server ended before it was ready, {self.how_it_ended()}{self.last_words()}"
                    )
                if "error" in message:
                    raise _KINDS.get(message["kind"], RuntimeError)(message["error"])
                said |= message
                if "ready" in message:
                    return {"port": said["port"], "grpc_port": said.get("grpc_port"), **said["ready"]}
        except BaseException:
            self.stop(0.0)
            raise

    def how_it_ended(self) -> str:
        """The exit status in words."""
        status = self.status()
        return f"killed by signal {-status}" if status is not None and status < 0 else f"with exit status {status}"

    def last_words(self) -> str:
        """The end of what it wrote to standard error, to be put behind a message; empty if it wrote nothing."""
        if self.status() is not None:
            self._readers[1].wait(1.0)
        return "".join(["\nIts last output:\n", *self._last_lines]).rstrip() if self._last_lines else ""

    def stop(self, grace: float | None = None) -> None:
        """Lets requests in flight end, then the process; kills it if that takes longer than `grace` seconds."""
        process = self._process
        grace = self._grace if grace is None else grace
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(grace)
        except BaseException as error:
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            for through in self._readers:
                through.wait(1.0)
            process.stdout.close()
            process.stderr.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                # What a site's own start-up code prints comes before the server has the stream to itself.
                if line.startswith("{"):
                    self._messages.put(json.loads(line))
        self._messages.put(None)

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stderr:
                self._last_lines.append(line)
                # The stream may be a captured one that is closed by now.
                with contextlib.suppress(ValueError, OSError, AttributeError):
                    sys.stderr.write(line)
                    sys.stderr.flush()


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    # This process may hold most of a GPU's memory already; the server takes what it needs and no more.
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    root = str(pathlib.Path(__file__).parents[2])
    if root != sysconfig.get_path("purelib"):
        # Not installed but found beside a script or in a checkout: the server must find the same package.
        paths = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([*paths, root])
    return environment
