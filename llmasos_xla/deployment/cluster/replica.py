"""One replica: the web application in a process of Ray's, and threads that do what the conductor says."""

import asyncio
import logging
import os
import pathlib
import queue
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llmasos_xla.deployment import metrics
from llmasos_xla.deployment.app import App, check_key
from llmasos_xla.deployment.cluster.conductor import Outcome, Record
from llmasos_xla.deployment.host import Host, Limits
from llmasos_xla.deployment.slot import Slot

_LOG = logging.getLogger("llmasos_xla.deployment")
# What the process that deploys knows to raise.
_PLAIN = (FileNotFoundError, PermissionError, ImportError, TypeError, ValueError)
_FIGURES = ("/metrics", "/v2/stats")


class Settings(NamedTuple):
    """What a replica is told at its start; the words are those of `Deployer.deploy`."""

    app: str
    """What Serve calls the whole."""
    names: tuple[str, ...]
    threads: int
    """That a program may use."""
    max_body: int
    batch: int
    delay: float
    request_timeout: float | None
    keep: int
    keys: tuple[str, ...]
    key: str | None
    """PEM text."""
    program: bool
    warm: tuple[int, ...]
    tracing: str | None


@final
class Replica:
    """The ASGI application of one replica, which has its models when it is made.

    Args:
        settings: of the server.
        conductor: the actor that knows the versions.
        name: of this replica.
    """

    def __init__(self, settings: Settings, conductor: Any, name: str):
        import ray

        # Read when XLA and OpenMP start, which is with the first import of jax, below.
        os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        self._settings, self._conductor, self._name, self._ray = settings, conductor, name, ray
        slots = [
            Slot(each, keep=settings.keep, most_rows=settings.batch, delay=settings.delay) for each in settings.names
        ]
        limits = Limits(settings.max_body, seconds=settings.request_timeout)
        self._host = Host(slots, limits=limits, keys=settings.keys)
        self._app: ASGIApp = App(self._host)
        if settings.tracing is not None:
            from llmasos_xla.deployment.tracing import Traced, start

            self._app = Traced(self._app, start(settings.tracing or None))
        from llmasos_xla.deployment.updates import Updates

        self._updates = Updates(self._host, key=settings.key, program=settings.program)
        self._work: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        histories: Any = ray.get(conductor.join.remote(name))
        # From now on, so that the conductor sees that it lives while it compiles.
        threading.Thread(target=self._listen, name="conductor", daemon=True).start()
        try:
            self._follow(histories)
        except Exception as error:
            plain = next((kind.__name__ for kind in _PLAIN if isinstance(error, kind)), "RuntimeError")
            ray.get(conductor.failed.remote(_told(error)[0], plain))
            raise
        threading.Thread(target=self._do, name="updates", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Figures are those of all replicas: which one is asked is chance."""
        if scope["type"] == "http" and scope["path"] in _FIGURES and scope["method"] == "GET":
            await (await self._figures(scope))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _figures(self, scope: Scope) -> Response:
        try:
            check_key(self._host, dict(scope["headers"]))
        except HTTPException as error:
            return Response(orjson.dumps({"error": error.detail}), 401, error.headers, "application/json")
        if scope["path"] == "/v2/stats":
            return Response(orjson.dumps(await self._conductor.stats.remote()), media_type="application/json")
        found = await self._conductor.ask_all.remote({"do": "metrics"})
        text = await asyncio.to_thread(metrics.merged, {each["replica"]: each["metrics"] for each in found})
        return Response(text, media_type=metrics.CONTENT_TYPE)

    def _listen(self) -> None:
        ray = self._ray
        while True:
            try:
                found = ray.get(self._conductor.next.remote(self._name))
            except ray.exceptions.ActorDiedError:
                # Whoever started this is gone, even killed; on a cluster that goes on, nobody else would end it.
                self._end()
                return
            except ray.exceptions.RayError as error:
                _LOG.warning("the conductor cannot be reached, trying again: %s", error)
                time.sleep(1.0)
                continue
            if found is None:
                continue
            number, message = found
            if message["do"] in ("update", "rollback", "join"):
                self._work.put((number, message))
            else:
                self._answer(number, message)

    def _do(self) -> None:
        while True:
            self._answer(*self._work.get())

    def _answer(self, number: int, message: dict[str, Any]) -> None:
        outcome: Outcome
        try:
            outcome = {"answer": self._done(message)}
        except Exception as error:
            reason, kind = _told(error)
            outcome = {"error": reason, "kind": kind}
        if number:
            self._conductor.done.remote(number, outcome)

    def _done(self, message: dict[str, Any]) -> dict[str, Any]:
        todo = message["do"]
        if todo == "join":
            self._follow(self._ray.get(self._conductor.join.remote(self._name)))
            return {}
        if todo == "metrics":
            return {"replica": self._name, "metrics": metrics.exposition(self._host)}
        if todo == "stats":
            found = self._host.stats()
            return {"replica": self._name, "pid": os.getpid(), **found}
        if todo == "update":
            return self._update(message["model"], message["record"])
        return self._updates.handle(message, [])

    def _follow(self, histories: Mapping[str, list[Record]]) -> None:
        """Gives each model the versions that it shall have, the last of them to answer."""
        for model, records in histories.items():
            slot, wanted = self._host.slots[model], records[-1]
            if slot.current is None:
                self._fill(slot, records)
            while slot.find().version != wanted.version and slot.previous:
                if wanted.version not in {served.version for served in slot.previous}:
                    break
                slot.rollback()
            if slot.find().version != wanted.version:
                self._update(model, wanted)

    def _fill(self, slot: Slot, records: list[Record]) -> None:
        from llmasos_xla.deployment.updates import with_arrays
        from llmasos_xla.deployment.versions import check

        # Weights that came alone go into a model, which may be older than what is kept.
        now = None if records[0].base is None else self._opened(slot.name, records[0].base, None)
        for record in records:
            if record.name is None:
                assert now is not None
                served = with_arrays(now, self._ray.get(record.content), record.version, record.fingerprint)
            else:
                served = self._opened(slot.name, record, now)
            if now is None or served.engine is not now.engine:
                for rows in self._settings.warm:
                    served.warm(rows)
            check(served, now)
            slot.warm_writer(served, now)
            slot.put(served)
            now = served

    def _opened(self, model: str, record: Record, like: Any) -> Any:
        from llmasos_xla.deployment.versions import open_version

        with _written(record, self._ray.get(record.content)) as folder:
            path = os.path.join(folder, str(record.name))
            settings = self._settings
            return open_version(path, model, record.version, like=like, key=settings.key, program=settings.program)

    def _update(self, model: str, record: Record) -> dict[str, Any]:
        message = {"do": "update", "model": model, "version": record.version, "fingerprint": record.fingerprint}
        content = self._ray.get(record.content)
        if record.name is None:
            return self._updates.handle(message, [], content)
        with _written(record, content) as folder:
            return self._updates.handle({**message, "path": os.path.join(folder, record.name)}, [])

    def _end(self) -> None:
        from ray import serve

        serve.delete(self._settings.app)


def _written(record: Record, content: Any) -> tempfile.TemporaryDirectory:
    """A folder with the record's file in it."""
    folder = tempfile.TemporaryDirectory(prefix="llmasos-")
    pathlib.Path(folder.name, str(record.name)).write_bytes(memoryview(content))
    return folder


def _told(error: Exception) -> tuple[str, str]:
    """The reason of an error and its kind, as the sender of a command sees them."""
    kind = type(error).__name__
    if isinstance(error, ValueError | LookupError | OSError | TypeError):
        return str(error), kind
    _LOG.error("an update failed", exc_info=error)
    return f"{kind}: {error}", kind
