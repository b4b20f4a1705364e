"""The web application: the routes of the Open Inference Protocol v2 over one model, and how errors are told."""

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llmasos_xla._version import __version__
from llmasos_xla.deployment import protocol

_LOG = logging.getLogger("llmasos_xla.deployment")
_MEDIA = ("application/json", "application/octet-stream")


@runtime_checkable
class Model(Protocol):
    """What the application asks of a model; `Served` is one. Named here so that serving starts before JAX is there."""

    name: str
    version: str

    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/{name}."""
        ...

    def infer(self, tensors: Mapping[str, np.ndarray], outputs: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """Outputs by name; ValueError and TypeError are the sender's fault, anything else the model's."""
        ...


@final
class Slot:
    """Where the application finds its model: empty while it loads, then one reference that is read once a request."""

    def __init__(self, name: str, served: Model | None = None):
        self.name, self.served = name, served


def app(slot: Slot, *, max_body: int = protocol.MAX_BODY) -> Starlette:
    """The application that serves the model in `slot`; bodies above `max_body` bytes are refused.

    Requests are read, prepared and run in worker threads, so health answers at once whatever the model is doing.
    """

    async def server(request: Request) -> Response:
        return _json({"name": "llmasos_xla", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        if "name" in request.path_params:
            _check_address(slot, request)
        return _json({"ready": slot.served is not None}, 200 if slot.served else 503)

    async def metadata(request: Request) -> Response:
        return _json(_model(slot, request).metadata())

    async def infer(request: Request) -> Response:
        served = _model(slot, request)
        _check_media(request)
        content = await _body(request, max_body)
        try:
            return await run_in_threadpool(_infer, served, content, request.headers.get(protocol.JSON_LENGTH))
        except HTTPException:
            raise
        except Exception as error:
            return _failed(error)

    routes = [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(model, metadata),
            Route(f"{model}/ready", ready),
            Route(f"{model}/infer", infer, methods=["POST"]),
        ]
    handlers: dict[Any, Callable] = {HTTPException: _refused, ClientDisconnect: _gone}
    return Starlette(routes=routes, exception_handlers=handlers)


def _infer(served: Model, content: bytes, json_length: str | None) -> Response:
    try:
        request = protocol.read_request(content, json_length)
        outputs = served.infer(request.tensors, [wanted.name for wanted in request.outputs])
    except (ValueError, TypeError) as error:
        raise HTTPException(400, str(error)) from None
    try:
        answer = protocol.write_answer(request, served.name, served.version, outputs)
    except FloatingPointError as error:
        raise HTTPException(500, str(error)) from None
    return Response(answer.content, headers=answer.headers)


def _check_address(slot: Slot, request: Request) -> None:
    name, version = request.path_params["name"], request.path_params.get("version", "1")
    if name != slot.name:
        raise HTTPException(404, f"unknown model {name[:60]!r}; this server has {slot.name!r}")
    known = slot.served.version if slot.served else "1"
    if version != known:
        raise HTTPException(404, f"model {slot.name!r} has no version {version[:60]!r}; it has {known!r}")


def _model(slot: Slot, request: Request) -> Model:
    _check_address(slot, request)
    if slot.served is None:
        raise HTTPException(503, f"model {slot.name!r} is loading; ask again", headers={"Retry-After": "1"})
    return slot.served


def _check_media(request: Request) -> None:
    # None is fine: clients of the protocol send bytes without naming them.
    kind = request.headers.get("content-type", _MEDIA[0]).partition(";")[0].strip().lower()
    if kind not in _MEDIA:
        raise HTTPException(
            415, f"media type {kind[:60]!r} came, {' or '.join(_MEDIA)} is wanted; name it in Content-Type"
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise HTTPException(415, f"content encoding {coding[:60]!r} came; send the body as it is")


async def _body(request: Request, most: int) -> bytes:
    said = request.headers.get("content-length", "")
    size = int(said) if said.isascii() and said.isdigit() and len(said) < 19 else 0
    parts = []
    if size <= most:
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > most:
                break
    if size <= most:
        return b"".join(parts)
    if request.headers.get("expect", "").lower() != "100-continue":
        # A sender in the middle of its body would see a broken connection and not the answer; so hear it out, a while.
        dropped = 0
        async for part in request.stream():
            dropped += len(part)
            if dropped > 4 * most:
                break
    reason = f"the body is larger than {most} bytes; send fewer rows a request, or start the server with max_body="
    raise HTTPException(413, reason, headers={"Connection": "close"})


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = error.detail
    if error.status_code == 404 and reason == "Not Found":
        known = "/v2, /v2/health/live, /v2/health/ready, /v2/models/{name}, /v2/models/{name}/ready, .../infer"
        reason = f"there is nothing at {request.url.path[:100]!r}; known: {known}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        reason = f"method {request.method} came at {request.url.path[:100]!r}; it takes {allowed}"
    return _json({"error": reason}, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return _json({"error": "the sender closed the connection before the body was whole"}, 400)


def _failed(error: Exception) -> Response:
    identity = uuid.uuid4().hex[:12]
    _LOG.error("request %s failed", identity, exc_info=error)
    return _json({"error": f"the model failed on this request; the server's log has the reason under {identity}"}, 500)
