"""The process behind `deploy(engine="ray")`: starts Ray where none runs, the replicas, and takes them down again.

To whoever started it, it is like the server of one process: it tells its port and when it is ready, and is told what to
do through the same socket. https://docs.ray.io/en/latest/serve/
"""

import argparse
import logging
import math
import os
import pathlib
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np

from llmasos_xla import errors
from llmasos_xla.deployment import shared
from llmasos_xla.deployment.cluster.conductor import Conductor, Record
from llmasos_xla.deployment.cluster.replica import Replica, Settings
from llmasos_xla.deployment.control import Control
from llmasos_xla.deployment.host import Limits
from llmasos_xla.deployment.tls import Tls

_APP = "llmasos"
_FOLDER = "llmasos-ray-"
_DRAIN_SECONDS = 5
_SHUTDOWN_SECONDS = 20.0
_POLL_SECONDS = 0.1
_KINDS = {kind.__name__: kind for kind in (ValueError, TypeError, FileNotFoundError, PermissionError, ImportError)}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}
# What Ray's own processes listen on is this machine's alone, and what is not wants a token.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}

Tell = Callable[[dict[str, Any]], None]


def serve(options: argparse.Namespace, port: int, tls: Tls | None, stop: threading.Event, tell: Tell) -> None:
    """Serves on `port` until `stop` is set.

    Raises ImportError without Ray, and what is wrong with a model.
    """
    os.environ |= {**_QUIET, **{name: value for name, value in os.environ.items() if name in _QUIET}}
    mine = not os.environ.get("RAY_ADDRESS")
    _sweep()
    folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")
    if mine:
        os.environ |= {**_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        from ray import serve as ray_serve
    except ImportError:
        raise errors.missing_package('deploy: engine="ray"', "Ray", "ray") from None
    _connect(ray, options, mine, folder)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    control = None
    try:
        server = Server(ray, ray_serve, options, port)
        server.start(stop)
        if not stop.is_set():
            control = Control(port, server.handle)
            models = {name: _unpacked(server.about(name)) for name in options.name}
            own = tls.own if tls else None
            tell({"ready": {"models": models, "certificate": own, "control": str(control.path)}})
            stop.wait()
    finally:
        if control is not None:
            control.close()
        # A part of Ray that hangs is no reason to stay; what it started ends with this process.
        ending = threading.Thread(target=_end, args=(ray, ray_serve), daemon=True)
        ending.start()
        ending.join(_SHUTDOWN_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Removes the folders of those that were killed and could not."""
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        owner = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _connect(ray: Any, options: argparse.Namespace, mine: bool, folder: str) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "namespace": _APP}
    if not mine:
        ray.init(**quiet)
        return
    # Not fewer than replicas, which would wait for ever.
    cpus = max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1)
    ray.init("local", num_cpus=max(cpus, options.replicas), include_dashboard=False, _temp_dir=folder, **quiet)


def _end(ray: Any, ray_serve: Any) -> None:
    # What else there is of Serve on a cluster of others stays theirs; on our own all of it ends with Ray.
    ray_serve.delete(_APP)
    ray.shutdown()


@final
class Server:
    """The replicas, and what they are told."""

    def __init__(self, ray: Any, ray_serve: Any, options: argparse.Namespace, port: int):
        self._ray, self._serve, self._options, self._port = ray, ray_serve, options, port
        first = {name: self._file(path) for name, path in zip(options.name, options.paths, strict=True)}
        first = {name: Record("1", record.content, record.name) for name, record in first.items()}
        # Questions of replicas stay open, one each, beside those of this process.
        actor = ray.remote(Conductor).options(num_cpus=0, max_concurrency=1000)
        self._conductor = actor.remote(first, options.keep)

    def start(self, stop: threading.Event) -> None:
        """Returns when all replicas answer, or `stop` is set; raises the error of one that could not start."""
        options, ray_serve = self._options, self._serve
        quiet = {"log_level": "INFO" if options.access_log else "WARNING", "enable_access_log": options.access_log}
        http = {
            "host": options.host,
            "port": self._port,
            "ssl_certfile": options.certificate,
            "ssl_keyfile": options.certificate_key or options.certificate,
        }
        ray_serve.start(proxy_location="EveryNode", http_options=http, logging_config=quiet)
        app = ray_serve.deployment(ray_serve.ingress(_building(self._settings(), self._conductor))())
        app = app.options(
            name="replica",
            num_replicas=options.replicas,
            max_ongoing_requests=Limits().requests,
            graceful_shutdown_timeout_s=_DRAIN_SECONDS,
            graceful_shutdown_wait_loop_s=0.1,
            ray_actor_options=self._resources(),
        )
        target = ray_serve.RunTarget(app.bind(), name=_APP, route_prefix="/", logging_config=quiet)
        ray_serve.run_many([target], wait_for_applications_running=False)
        while not stop.wait(_POLL_SECONDS):
            failure = self._ray.get(self._conductor.failure.remote())
            if failure is not None:
                raise _KINDS.get(failure["kind"], RuntimeError)(failure["error"])
            found = ray_serve.status().applications[_APP]
            if found.status == "DEPLOY_FAILED":
                raise RuntimeError(f"deploy: Ray could not start the replicas: {found.message}")
            if found.status == "RUNNING":
                return

    def about(self, model: str) -> dict[str, Any]:
        """What is told of a model to whoever asks it."""
        return self._ray.get(self._conductor.about.remote(model))

    def handle(self, message: dict[str, Any], files: list[int]) -> dict[str, Any]:
        """Does what a message of the control socket says; raises what is told to its sender."""
        todo, conductor, get = message.get("do"), self._conductor, self._ray.get
        if todo == "stats":
            return get(conductor.stats.remote())
        model = self._model(message.get("model"))
        if todo == "about":
            return _unpacked(get(conductor.about.remote(model)))
        if todo == "rollback":
            return _unpacked(get(conductor.rollback.remote(model)))
        if todo == "update":
            if message.get("trial"):
                raise ValueError(
                    'update: trials are of one server; with engine="ray" a version rolls over all replicas: leave '
                    "share= and shadow= away"
                )
            if self._options.key is not None and (files or message.get("passing")):
                raise PermissionError(
                    "update: weights from memory are not signed, and a signature is asked for; export them as a bundle "
                    "with key=, and hand over that"
                )
            return _unpacked(get(conductor.update.remote(model, self._record(message, files))))
        raise ValueError(f'control: there is nothing to do called {str(todo)[:40]!r} with engine="ray"')

    def _model(self, name: Any) -> str:
        names = self._options.name
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            raise LookupError(f"unknown model {str(name)[:60]!r}; this server has {', '.join(map(repr, names))}")
        return str(name)

    def _record(self, message: Mapping[str, Any], files: list[int]) -> Record:
        if files:
            # A copy: replicas map the object store, not the memory of whoever sent it.
            arrays = {name: np.array(a) for name, a in shared.read(files[0]).items()}
            return Record("", self._ray.put(arrays), None, message.get("fingerprint"))
        return self._file(str(message["path"]))

    def _file(self, path: str) -> Record:
        """The bytes of a file, so that replicas on other machines have them and all have the same."""
        found = pathlib.Path(path)
        if found.is_dir():
            # Checkpoints are of the training, and published weights of several files; what predicts is one.
            from llmasos_xla.deployment.versions import opened

            with tempfile.TemporaryDirectory(prefix="llmasos-") as folder:
                file = os.path.join(folder, f"{found.name}.safetensors")
                opened(path).save(file)
                return self._file(file)
        if not found.is_file():
            raise FileNotFoundError(f"update: there is no file {path!r}")
        return Record("", self._ray.put(np.fromfile(path, np.uint8)), found.name)

    def _settings(self) -> Settings:
        options = self._options
        keys = tuple(pathlib.Path(options.keys).read_text().split()) if options.keys else ()
        key = options.key
        if key is not None and "-----BEGIN" not in key:
            key = pathlib.Path(key).read_text()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        cores = min(node["Resources"].get("CPU", 1.0) for node in nodes)
        threads = max(1, int(cores / math.ceil(options.replicas / len(nodes))))
        return Settings(
            app=_APP,
            names=tuple(options.name),
            threads=threads,
            max_body=options.max_body,
            batch=options.batch,
            delay=options.delay,
            request_timeout=options.timeout,
            keep=options.keep,
            keys=keys,
            key=key,
            program=options.program,
            warm=tuple(options.warm),
            tracing=options.tracing,
        )

    def _resources(self) -> dict[str, float]:
        found = self._ray.cluster_resources()
        share = {kind: found.get(kind, 0.0) / self._options.replicas for kind in ("CPU", "GPU")}
        # Without a share of a GPU, Ray hides it from the replica.
        gpu = min(1.0, math.floor(1000 * share["GPU"]) / 1000)
        return {"num_cpus": min(1.0, share["CPU"])} | ({"num_gpus": gpu} if gpu else {})


def _building(settings: Settings, conductor: Any) -> Callable[[], Replica]:
    def build() -> Replica:
        from ray import serve

        return Replica(settings, conductor, serve.get_replica_context().replica_id.unique_id)

    return build


def _unpacked(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The answer; raises the error that came instead, under the name that it had."""
    if "error" not in outcome:
        return outcome["answer"]
    raise type(outcome["kind"], (ValueError,), {})(outcome["error"])
