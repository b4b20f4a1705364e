"""Each rank's watch over the others: when one fails, the rest end with its name and reason.

A rank that waits in a collective for one that is gone cannot be woken from Python. So a thread of every rank keeps a
connection to rank 0 (`hub`), and ends its process with exit code 76 when rank 0 says who failed, or when rank 0 itself
is gone or silent. An exception on a rank is told to the others before the rank ends.
"""

import atexit
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, final

from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.sharding.processes.hub import Hub
from llmasos_xla.sharding.processes.join import Joined
from llmasos_xla.sharding.processes.world import World

PEER_FAILED = 76
"""The exit code of a rank that was ended because another failed."""

# Errors that a rank gets because another is gone. They are held back until the hub has found out which.
_SECONDHAND = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket closed|coordination|heartbeat|barrier|"
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED",
    re.IGNORECASE,
)
# For what user code has registered with atexit, when the rank has failed; it may wait for a device in vain.
_ATEXIT_SECONDS = 10.0

_active: "Watch | None" = None


@final
class Watch:
    """The watch of this rank; one a process, for as long as it lives."""

    def __init__(self, world: World, joined: Joined, hub: Hub | None):
        global _active
        self._world, self._wire, self._zero = world, joined.wire, joined.zero
        self._heartbeat, self._hub = joined.heartbeat, hub
        self._failing = False
        self._ending = False
        self._judged = threading.Event()
        self._sending = threading.Lock()
        _active = self
        self._hook()
        # Runs ahead of JAX's own, which waits for all ranks and is imported by now.
        atexit.register(self.bye)
        os.register_at_fork(after_in_child=self._let_go)
        threading.Thread(target=self._run, name="llmasos watch", daemon=True).start()

    def bye(self) -> None:
        """Tells that this rank ends in order."""
        if not self._failing:
            self._ending = True
            self._send(bye=True)

    def fail(self, reason: str, code: int, show: Callable[[], object] = lambda: None) -> None:
        """Tells the others why this rank fails, shows it, and ends it with `code`. Does not return.

        An error that looks like another rank's doing is held back for a heartbeat: if another has failed by then, this
        one ends with code 76 and that rank's name instead.
        """
        secondhand = bool(_SECONDHAND.search(reason))
        self._failing = not secondhand
        self._send(failed=reason[:2000], secondhand=secondhand)
        if secondhand:
            self._judged.wait(self._heartbeat + 5.0)
            self._failing = True
        show()
        self._leave(code, run_atexit=True)

    def _let_go(self) -> None:
        """In a forked child, which is no rank: with its copies of the connections open, nobody saw the rank's end."""
        self._wire.close()
        if self._hub is not None:
            self._hub.let_go()
            self._hub = None

    def _run(self) -> None:
        beat = heard = turned = time.monotonic()
        ended = False
        while True:
            try:
                messages = self._wire.receive() if self._wire.ready(min(0.5, self._heartbeat / 8)) else []
            except (OSError, EOFError, ValueError):
                if ended:
                    return
                # Rank 0 may have ended in order, its last message lost; this rank is then about to end as well.
                if self._ending:
                    time.sleep(5.0)
                self._end(f"{self._zero} failed: its connection closed without a word: killed or crashed")
                return
            now = time.monotonic()
            if messages or now - turned > self._heartbeat / 2:
                heard = now
            turned = now
            for message in messages:
                ended |= "ended" in message
                if "verdict" in message:
                    self._verdict(message)
            if now - beat > self._heartbeat / 4:
                beat = now
                self._send(alive=True)
            if now - heard > self._heartbeat:
                self._end(
                    f"{self._zero} failed: no sign of life for {self._heartbeat:g} s: stopped, stuck in C code, or cut "
                    "off the network"
                )

    def _verdict(self, message: dict[str, Any]) -> None:
        own = message["rank"] == self._world.rank
        if own and "no sign of life" not in message["verdict"]:
            # The hub has heard of this rank's own error; the thread that failed goes on with its end.
            self._judged.set()
            return
        name = f"rank {message['rank']} (host {message['host']}, pid {message['pid']})"
        self._end(f"{name} failed: {message['verdict']}")

    def _end(self, text: str) -> None:
        if self._failing:
            # This rank has an error of its own to show, and ends by it.
            return
        text = f"\nllmasos: {text}\nllmasos: so rank {self._world.rank} ends with exit code {PEER_FAILED}\n"
        _flush()
        os.write(2, text.encode())
        self._leave(PEER_FAILED, run_atexit=False)

    def _leave(self, code: int, run_atexit: bool) -> None:
        if self._hub is not None:
            # Rank 0 takes JAX's coordination service with it, whose end aborts the others: they go first.
            self._hub.farewell.wait(5.0)
        if run_atexit:
            _forget_jax()
            _end_after(_ATEXIT_SECONDS, code)
            atexit._run_exitfuncs()
        _flush()
        os._exit(code)

    def _send(self, **message: Any) -> None:
        # If rank 0 is gone, the thread notices by reading.
        with self._sending, contextlib.suppress(OSError):
            self._wire.send(**message)

    def _hook(self) -> None:
        shown, shown_in_thread = sys.excepthook, threading.excepthook

        def failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            # 130 is what a shell reports of a program that Ctrl-C ended.
            code = 130 if issubclass(kind, KeyboardInterrupt) else 1
            self.fail(describe(kind, error), code, lambda: shown(kind, error, trace))

        def failed_in_thread(arguments: threading.ExceptHookArgs) -> None:
            if arguments.exc_type is SystemExit:
                shown_in_thread(arguments)
                return
            name = arguments.thread.name if arguments.thread else "unknown"
            reason = describe(arguments.exc_type, arguments.exc_value)
            self.fail(f"{reason} (in thread {name})", 1, lambda: shown_in_thread(arguments))

        sys.excepthook, threading.excepthook = failed, failed_in_thread


def describe(kind: type[BaseException], error: BaseException | None) -> str:
    """An exception as its traceback's last lines say it.

    >>> describe(ValueError, ValueError("no such file"))
    'ValueError: no such file'
    """
    return "".join(traceback.format_exception_only(kind, error)).strip()


def ended_with(code: int, reason: str) -> None:
    """Called by the launcher's worker when a script has exited: any code but 0 and 75 is told as a failure."""
    if _active is not None and code not in (0, EXIT_SAVED):
        _active.fail(reason, code)


def _forget_jax() -> None:
    # JAX's own atexit would wait for all the others, minutes long. The reference keeps its destructor from doing so.
    from jax._src import distributed

    state = distributed.global_state
    _kept.append((state.client, state.service, state.preemption_sync_manager))
    state.client = state.service = state.preemption_sync_manager = None


_kept: list[Any] = []


def _end_after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _flush() -> None:
    """Writes what is buffered, for a second at most: the main thread may hold a stream's lock for ever."""
    thread = threading.Thread(target=lambda: (sys.stdout.flush(), sys.stderr.flush()), daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The interpreter is ending, starts no thread any more, and flushes by itself.
        return
    thread.join(1.0)
