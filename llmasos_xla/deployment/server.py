"""The server process: `python -m llmasos_xla.deployment.server model.h5 --port 8000`.

It answers health at once, loads and warms the model meanwhile, and drains on SIGTERM or Ctrl-C. What happens is told
in JSON lines on standard output: `{"port": ...}`, with `--grpc-port` `{"grpc_port": ...}`, then `{"ready": {...}}` or
`{"error": ..., "kind": ...}`.
"""

import argparse
import json
import logging
import os
import pathlib
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from llmasos_xla.deployment import protocol
from llmasos_xla.deployment.keys import read_keys
from llmasos_xla.deployment.tls import Tls, read
from llmasos_xla.web.listening import listen

# The model's own errors; anything else is a fault whose traceback is wanted.
_PLAIN = (ValueError, FileNotFoundError, PermissionError, ImportError)
_DRAIN_SECONDS, _WRITE_SECONDS = 5, 2.5
# Of an idle connection: longer than proxies keep theirs to us (60 s in many), or they send into one that was closed.
_KEEP_ALIVE_SECONDS = 75


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is told to stop; returns the exit status."""
    options = _options(arguments)
    tell = _teller()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        tls = read(options.certificate, options.certificate_key) if options.certificate else None
    except (OSError, ValueError) as error:
        _tell_error(error, tell)
        return 1
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        tell({"error": str(error), "kind": "OSError"})
        return 1
    tell({"port": listener.getsockname()[1]})
    if options.replicas is not None:
        return _replicas(options, listener, tls, tell)
    try:
        return _serve(options, listener, tls, tell)
    except Exception as error:
        _tell_error(error, tell)
        return 1


def _serve(options: argparse.Namespace, listener: socket.socket, tls: Tls | None, tell: Callable[[dict], None]) -> int:
    import uvicorn

    from llmasos_xla.deployment.app import App
    from llmasos_xla.deployment.control import Control
    from llmasos_xla.deployment.host import Host, Limits
    from llmasos_xla.deployment.slot import Slot
    from llmasos_xla.deployment.tracing import Traced, start

    slots = [Slot(name, keep=options.keep, most_rows=options.batch, delay=options.delay) for name in options.name]
    port, controls, states = listener.getsockname()[1], [], []
    # Read anew at each start: a file that was emptied since lets nobody in, rather than all.
    keys = read_keys(options.keys) if options.keys else ()
    host = Host(slots, limits=Limits(options.max_body, seconds=options.timeout), keys=keys)
    tracing = None if options.tracing is None else start(options.tracing or None)
    app = App(host)
    config = uvicorn.Config(
        app if tracing is None else Traced(app, tracing),
        access_log=options.access_log,
        lifespan="off",
        log_level="info" if options.access_log else "warning",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        ws="none",
        ssl_certfile=options.certificate,
        ssl_keyfile=options.certificate_key,
    )
    bound, failed = threading.Event(), threading.Event()

    def told(port: int) -> None:
        tell({"grpc_port": port})
        bound.set()

    if options.grpc_port is None:
        server = uvicorn.Server(config)
        bound.set()
    else:
        from llmasos_xla.deployment.both import Both

        server = Both(config, host, f"{options.host}:{options.grpc_port}", told, tls=tls, tracing=tracing)

    def stop() -> None:
        host.draining = True
        server.should_exit = True

    def load() -> None:
        try:
            from llmasos_xla.deployment.state import State
            from llmasos_xla.deployment.updates import Updates
            from llmasos_xla.deployment.versions import about, check, open_version

            state = State(pathlib.Path(options.state)) if options.state else None
            for slot, path in zip(slots, options.paths, strict=True):
                first = {"path": path, "version": "1"}
                found = (state and state.known(slot.name)) or first
                how = {"key": options.key, "program": options.program}
                try:
                    served = open_version(found["path"], slot.name, found["version"], **how)
                except (OSError, ValueError) as error:
                    if found is first:
                        raise
                    # An older version answers, rather than none, and says which it is.
                    print(
                        f"{slot.name!r}: version {found['version']}, which was handed over last, cannot be opened: "
                        f"{error}; what the server was started with answers, {path!r}",
                        file=sys.stderr,
                    )
                    slot.reserve(found["version"])
                    found = first
                    served = open_version(path, slot.name, first["version"], **how)
                if found.get("digest") not in (None, served.digest):
                    print(f"{found['path']!r} is not the file it was when it was handed over", file=sys.stderr)
                served.path = None if state and state.keeps(found["path"]) else found["path"]
                for rows in options.warm:
                    served.warm(rows)
                if served.known is not None:
                    # A bundle says what it shall answer: another machine made it, and this one may compute otherwise.
                    check(served, None)
                slot.warm_writer(served, rows=max(options.warm, default=1))
                slot.put(served)
            updates = Updates(host, state=state, key=options.key, program=options.program)
            controls.append(Control(port, updates.handle))
            if state is not None:
                states.append(state)
            # Who waits for readiness wants the ports by then.
            bound.wait()
            models = {slot.name: about(slot.find()) for slot in slots}
            own = tls.own if tls else None
            tell({"ready": {"models": models, "certificate": own, "control": str(controls[0].path)}})
        except Exception as error:
            _tell_error(error, tell)
            failed.set()
            stop()

    threading.Thread(target=load, name="load", daemon=True).start()
    if options.watch_parent:
        threading.Thread(target=_watch_parent, args=(stop,), name="watch", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains on these, and then raises them again: what is left to do here would not be done.
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listener])
    except OSError as error:
        tell({"error": str(error), "kind": "OSError"})
        failed.set()
    except Exception as error:
        _tell_error(error, tell)
        failed.set()
    for control in controls:
        control.close()
    for state in states:
        if not state.close(_WRITE_SECONDS):
            print("the newest weights are not written; a restart begins with older ones", file=sys.stderr)
    if tracing is not None:
        tracing.close()
    # The requests had their time to drain; a call into the model cannot be interrupted and would hold the exit up.
    sys.stderr.flush()
    os._exit(1 if failed.is_set() else 0)


def _replicas(
    options: argparse.Namespace, listener: socket.socket, tls: Tls | None, tell: Callable[[dict], None]
) -> int:
    """Has Ray serve; returns the exit status."""
    from llmasos_xla.deployment.cluster.server import serve

    stop, status = threading.Event(), 0
    if options.watch_parent:
        threading.Thread(target=_watch_parent, args=(stop.set,), name="watch", daemon=True).start()
    # It was to see that the port is free: who listens there is a process of Ray's.
    port = listener.getsockname()[1]
    listener.close()
    try:
        serve(options, port, tls, stop, tell)
    except Exception as error:
        _tell_error(error, tell)
        status = 1
    sys.stderr.flush()
    os._exit(status)


def _watch_parent(stop: Callable[[], None]) -> None:
    """Stops the server when standard input ends: the parent closed it, or is gone.

    The parent's number is looked at too: a process that the parent forked may hold the pipe open.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        if os.name == "posix" and not select.select([0], [], [], 1.0)[0]:
            continue
        if not os.read(0, 1):
            break
    stop()


def _teller() -> Callable[[dict[str, Any]], None]:
    """A function that writes a line to standard output, which nothing else can reach from then on."""
    out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            try:
                out.write(json.dumps(message) + "\n")
                out.flush()
            except BrokenPipeError:
                # Nobody listens any more; whether to go on is for the watch to say.
                pass

    return tell


def _tell_error(error: Exception, tell: Callable[[dict], None]) -> None:
    if not isinstance(error, _PLAIN):
        traceback.print_exception(error, file=sys.stderr)
    kind = next((base.__name__ for base in (*_PLAIN, OSError, TypeError) if isinstance(error, base)), "RuntimeError")
    text = str(error) if isinstance(error, _PLAIN) else f"{type(error).__name__}: {error}"
    tell({"error": text, "kind": kind})


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llmasos_xla.deployment.server", description="Serves a saved model."
    )
    parser.add_argument("paths", nargs="+", help="a .lmx, .h5 or .safetensors file, a folder of weights, or several")
    parser.add_argument("--name", required=True, action="append", help="what each model is called in addresses")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--grpc-port", type=int, help="answer over gRPC too, there; 0 takes a free one")
    parser.add_argument("--warm", type=int, nargs="*", default=[1], help="numbers of rows to compile for before ready")
    parser.add_argument("--max-body", type=int, default=protocol.MAX_BODY, help="bytes of a request, at most")
    parser.add_argument("--batch", type=int, default=64, help="rows that run together, at most")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a batch waits for more rows")
    parser.add_argument("--timeout", type=float, help="seconds that a request may take where it does not say")
    parser.add_argument("--keep", type=int, default=3, help="versions that stay for a rollback")
    parser.add_argument("--keys", metavar="FILE", help="of API keys; one of them must come with every request")
    parser.add_argument("--key", metavar="FILE", help="public key of whoever must have signed the bundles")
    parser.add_argument("--certificate", metavar="FILE", help="PEM: answer over TLS alone, with it")
    parser.add_argument("--certificate-key", metavar="FILE", help="its private key, where that is in another file")
    parser.add_argument("--program", action="store_true", help="run a bundle's program, not the model rebuilt from it")
    parser.add_argument("--state", metavar="FILE", help="where it is written down which version answers")
    parser.add_argument("--access-log", action="store_true", help="a line for each request on standard error")
    parser.add_argument("--tracing", metavar="URL", help="of a collector of OpenTelemetry; empty: as its variables say")
    parser.add_argument("--replicas", type=int, help="so many, run by Ray Serve")
    parser.add_argument("--watch-parent", action="store_true", help="stop when standard input ends")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
