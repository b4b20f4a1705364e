"""The web application: the Open Inference Protocol v2 over the models of a host, and how errors are told."""

import asyncio
import functools
import math
import pathlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, final

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llmasos_xla._version import __version__
from llmasos_xla.deployment import metrics, openai_app, protocol
from llmasos_xla.deployment.asking import check_key, read_body, refusal, respond, seconds
from llmasos_xla.deployment.batching import QueueFullError
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.slot import LoadingError, Slot
from llmasos_xla.web import pages

_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
# Bodies from here on are read into arrays beside the event loop, so that small requests do not wait for them.
_LARGE = 1 << 17


@final
class App:
    """The ASGI application of a host.

    Requests to a model go past the framework's routing, by a path of their own: at a few hundred microseconds a call it
    would be the largest part of them. All else is Starlette's.
    """

    def __init__(self, host: Host):
        self.host = host
        self._rest = _rest(host)
        self._openai = openai_app.OpenAI(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's own life."""
        if scope["type"] == "http":
            found = _INFER.fullmatch(scope["path"])
            if found is not None and scope["method"] == "POST":
                await self._infer(found[1], found[2], scope, receive, send)
                return
            if scope["path"].startswith(openai_app.PREFIX):
                await self._openai(scope, receive, send)
                return
        await self._rest(scope, receive, send)

    async def _infer(self, name: str, version: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        host, headers = self.host, dict(scope["headers"])
        if host.inside >= host.limits.requests:
            host.refused += 1
            await _error(
                send, 429, f"{host.inside} requests are inside, which is all that may be; ask again later", 1.0
            )
            return
        host.inside += 1
        try:
            answer = await self._answer(name, version, headers, receive)
            await respond(send, 200, answer.content, answer.headers)
        except HTTPException as error:
            await _error(send, error.status_code, error.detail, headers=error.headers)
        except ClientDisconnect:
            await _error(send, 400, "the sender closed the connection before the body was whole")
        finally:
            host.inside -= 1

    async def _answer(
        self, name: str, version: str | None, headers: Mapping[bytes, bytes], receive: Receive
    ) -> protocol.Body:
        check_key(self.host, headers)
        if self.host.draining:
            raise HTTPException(503, "the server is stopping; ask another", headers={"Retry-After": "1"})
        try:
            slot = self.host.slot(name)
            slot.find(version)
        except (LookupError, LoadingError) as error:
            raise refusal(error) from None
        content = await read_body(headers, receive, self.host.limits.body)
        try:
            length = headers.get(protocol.JSON_LENGTH.lower().encode())
            read = functools.partial(
                protocol.read_request, content, None if length is None else length.decode("latin-1")
            )
            request = await asyncio.to_thread(read) if len(content) > _LARGE else read()
            answer = await slot.infer(
                request.tensors,
                [wanted.name for wanted in request.outputs],
                version=version,
                priority=request.urgency,
                timeout=seconds(request.timeout, self.host.limits.seconds),
                aside=len(content) > _LARGE,
            )
        except Exception as error:
            if isinstance(error, QueueFullError):
                slot.refused += 1
            raise refusal(error) from None
        try:
            return protocol.write_answer(request, answer.served.name, answer.served.version, answer.outputs)
        except FloatingPointError as error:
            raise HTTPException(500, str(error)) from None


def _rest(host: Host) -> Starlette:
    async def server(request: Request) -> Response:
        return _json({"name": "llmasos_xla", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        if "name" in request.path_params:
            slot = _addressed(host, request)
            there = slot.current is not None and not host.draining
            return _json({"ready": there}, 200 if there else 503)
        return _json({"ready": host.state == "ready", "state": host.state}, 200 if host.state == "ready" else 503)

    async def metadata(request: Request) -> Response:
        slot = _addressed(host, request)
        try:
            served = slot.find(request.path_params.get("version"))
        except LoadingError as error:
            raise refusal(error) from None
        said = {**served.metadata(), "versions": [other.version for other in slot.versions()]}
        return _json(said if served.face.labels is None else {**said, "parameters": {"labels": served.face.labels}})

    async def stats(request: Request) -> Response:
        return _json(host.stats())

    async def page(request: Request) -> Response:
        return Response(_page(), headers=pages.headers(_page()), media_type="text/html")

    async def figures(request: Request) -> Response:
        return Response(metrics.exposition(host), media_type=metrics.CONTENT_TYPE)

    async def infer(request: Request) -> Response:
        raise HTTPException(405, headers={"Allow": "POST"})

    async def index(request: Request) -> Response:
        return _json(
            [
                {"name": slot.name, "version": v.version, "state": "READY"}
                for slot in host.slots.values()
                for v in slot.versions()
            ]
        )

    def guarded(route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            check_key(host, dict(request.scope["headers"]))
            return await route(request)

        return checked

    routes = [
        Route("/", page),
        Route("/v2", guarded(server)),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/stats", guarded(stats)),
        Route("/metrics", guarded(figures)),
        Route("/v2/repository/index", guarded(index), methods=["GET", "POST"]),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(model, guarded(metadata)),
            Route(f"{model}/ready", guarded(ready)),
            Route(f"{model}/infer", guarded(infer)),
        ]
    handlers: dict[Any, Callable] = {HTTPException: _refused}
    return Starlette(routes=routes, exception_handlers=handlers)


@functools.cache
def _page() -> bytes:
    return (pathlib.Path(__file__).parent / "page" / "index.html").read_bytes()


def _addressed(host: Host, request: Request) -> Slot:
    try:
        slot = host.slot(request.path_params["name"])
        version = request.path_params.get("version")
        if version is not None and slot.current is not None:
            slot.find(version)
    except LookupError as error:
        raise refusal(error) from None
    return slot


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = error.detail
    if error.status_code == 404 and reason == "Not Found":
        known = "/v1/models, /v1/completions, /v1/chat/completions, /v2, /v2/health/live, /v2/health/ready, "
        known += "/v2/models/{name}, /v2/models/{name}/ready, .../infer"
        reason = f"there is nothing at {request.url.path[:100]!r}; known: {known}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        reason = f"method {request.method} came at {request.url.path[:100]!r}; it takes {allowed}"
    return _json({"error": reason}, error.status_code, error.headers)


async def _error(
    send: Send, status: int, reason: str, retry_after: float | None = None, headers: Mapping[str, str] | None = None
) -> None:
    named = {"Content-Type": "application/json", **(headers or {})}
    if retry_after is not None:
        named["Retry-After"] = str(math.ceil(retry_after))
    await respond(send, status, orjson.dumps({"error": reason}), named)
