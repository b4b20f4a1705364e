"""`python -m llmasos_xla.sharding.processes.worker train.py`: one rank, which runs the script as if it were alone.

It joins the other ranks, and then runs a script that knows nothing of this, or with `-m` a module.
"""

import os
import runpy
import signal
import sys
import threading
import time
from types import TracebackType

from llmasos_xla.sharding.distributed import initialize
from llmasos_xla.sharding.processes.preflight import PreflightError
from llmasos_xla.sharding.processes.watch import ended_with

_GRACE_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    """Runs `[script, *its arguments]` or `["-m", module, ...]`; returns its exit code."""
    as_module = arguments[:1] == ["-m"]
    name, *rest = arguments[as_module:]
    if os.environ.get("LLMASOS_PARENT"):
        _end_with_parent(int(os.environ.pop("LLMASOS_PARENT")))
    try:
        initialize(script=None if as_module else name)
    except PreflightError as error:
        # Its text says all; a traceback on each of many ranks would hide it.
        print(f"llmasos: {error}", file=sys.stderr, flush=True)
        return 1
    sys.argv = [name, *rest]
    sys.path.insert(0, os.getcwd() if as_module else os.path.dirname(os.path.abspath(name)))
    try:
        if as_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as ended:
        code = _code(ended)
        ended_with(code, f"the script exited with code {code}")
        return code
    except BaseException as error:
        # From here the hook takes over; the frames of runpy are none of the script's.
        own = _own_frames(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(own), own)
        return 1
    return 0


def _code(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return (ended.code or 0) & 0xFF
    print(ended.code, file=sys.stderr)
    return 1


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    own = trace
    while own is not None and own.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        own = own.tb_next
    return own or trace


def _end_with_parent(parent: int) -> None:
    """A launcher that was killed leaves no ranks behind: they are asked to save, and ended after a grace."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="llmasos parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
