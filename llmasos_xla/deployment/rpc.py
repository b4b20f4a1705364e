"""The gRPC server: the Open Inference Protocol v2 over the models of a host, beside the web application.

It runs in the event loop that calls `serve`. Requests are counted, queued, and refused as those over HTTP are; each
status of HTTP has its code of gRPC. https://grpc.io/docs/guides/status-codes/
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, final

from starlette.exceptions import HTTPException

from llmasos_xla import errors
from llmasos_xla._version import __version__
from llmasos_xla.deployment.asking import check_key, refusal, seconds
from llmasos_xla.deployment.batching import QueueFullError
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.rpc_content import parse, read_request, write_answer
from llmasos_xla.deployment.rpc_messages import HEALTH, METHODS, SERVICE, message
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.tls import Tls
from llmasos_xla.deployment.tracing import Trace, Tracing
from llmasos_xla.web.listening import listen

# As the web application has it: larger messages are read beside the event loop.
_LARGE = 1 << 17
# The reason travels in a header, which gRPC holds to 8 KiB, and a byte may take three there.
_LONGEST_REASON = 2000
_LINGER_SECONDS = 0.25
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Status of HTTP: code of gRPC; INTERNAL for others."""
_FAULTS = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Codes that a trace shows as errors of this server. https://opentelemetry.io/docs/specs/semconv/rpc/grpc/"""
_OPEN = ("ServerLive", "ServerReady", "Check")
"""Methods that want no key: who asks for health has none."""

Headers = Mapping[bytes, bytes]


@final
class Server:
    """A server that runs, until `stop`."""

    def __init__(self, server: Any, service: "Service", port: int):
        self._server, self._service, self.port = server, service, port

    async def stop(self, grace: float) -> None:
        """Takes no new requests, and cancels those that have not ended after `grace` seconds."""
        clock = asyncio.get_running_loop().time
        until, busy = clock() + grace, self._service.inside > 0
        self._service.stopping.set()
        while self._service.inside and clock() < until:
            await asyncio.sleep(0.01)
        if busy:
            # gRPC closes a connection as soon as its last answer is written. What the reader sends meanwhile, about
            # the room that it has, would then reset the connection and lose what it has not read.
            await asyncio.sleep(_LINGER_SECONDS)
        await self._server.stop(max(until - clock(), 0.0))


async def serve(host: Host, address: str, *, tls: Tls | None = None, tracing: Tracing | None = None) -> Server:
    """Starts the server at "address:port" in the running event loop; port 0 takes a free one.

    Raises OSError if the address cannot be had, ImportError without the package grpcio, ValueError for a key and
    certificates that gRPC does not take.
    """
    try:
        import grpc.aio
    except ImportError:
        raise errors.missing_package("deploy: grpc_port", "grpcio", "grpc") from None

    name, _, port = address.rpartition(":")
    name = name.strip("[]")
    # gRPC does not say why it could not have an address.
    listen(name, int(port)).close()
    options = [
        ("grpc.max_receive_message_length", host.limits.body),
        ("grpc.max_send_message_length", -1),
        # Two servers on one port would share its connections.
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    service = Service(host, tracing)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, {name: _handler(service, name) for name in METHODS}),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": _handler(service, "Check")}),
        )
    )
    address = f"[{name or '::'}]:{port}" if ":" in name or not name else f"{name}:{port}"
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([(tls.key, tls.certificates)]))
    except RuntimeError as error:
        reason = "key and certificates are PEM and belong together" if tls else "it may have been taken just now"
        raise (ValueError if tls else OSError)(f"deploy: gRPC could not listen on {address}: {reason}") from error
    await server.start()
    return Server(server, service, bound)


@final
class Service:
    """The answers to the methods of the service, bytes in and bytes out.

    What it raises is `HTTPException`, whatever went wrong: one place knows what is told of which fault.
    """

    def __init__(self, host: Host, tracing: Tracing | None = None):
        self._host, self._tracing = host, tracing
        self.stopping = asyncio.Event()
        self.inside = 0
        """Requests to models that are being read, waiting or running."""
        self._methods: dict[str, Callable] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server,
            "ModelMetadata": self._metadata,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "Check": self._check,
        }

    async def answer(self, method: str, content: bytes, headers: Headers, timeout: float | None = None) -> bytes:
        """The answer to one message, whose sender waits `timeout` seconds for it."""
        if self._tracing is None or method != "ModelInfer":
            return await self._answer_to(method, content, headers, timeout)
        trace, code = self._begin(self._tracing, method, headers), "CANCELLED"
        try:
            answer = await self._answer_to(method, content, headers, timeout)
            code = "OK"
            return answer
        except HTTPException as error:
            code = _code(error)
            raise
        finally:
            _end(trace, code)

    def _begin(self, tracing: Tracing, method: str, headers: Headers) -> Trace:
        name = f"{SERVICE}/{method}"
        return tracing.begin(name, headers, {"rpc.system.name": "grpc", "rpc.method": name})

    async def _answer_to(self, method: str, content: bytes, headers: Headers, timeout: float | None) -> bytes:
        if method not in _OPEN:
            check_key(self._host, headers)
        try:
            request = await self._parse(method, content)
            return (await self._methods[method](request, timeout)).SerializeToString()
        except Exception as error:
            raise refusal(error) from None

    async def stream_answer(self, content: bytes, headers: Headers, timeout: float | None = None) -> bytes:
        """The answer to one message of `ModelStreamInfer`: errors are answers there, and the stream goes on."""
        check_key(self._host, headers)
        trace = None if self._tracing is None else self._begin(self._tracing, "ModelStreamInfer", headers)
        answer, code = message("ModelStreamInferResponse")(), "OK"
        try:
            request = await self._parse("ModelStreamInfer", content)
            answer.infer_response.id = request.id
            answer.infer_response.CopyFrom(await self._infer(request, timeout))
        except Exception as error:
            told = refusal(error)
            answer.error_message, code = _short(told.detail), _code(told)
        finally:
            if trace is not None:
                _end(trace, code)
        return answer.SerializeToString()

    async def _parse(self, method: str, content: bytes) -> Any:
        name = "HealthCheckRequest" if method == "Check" else METHODS[method].request
        return await _aside(len(content), parse, name, content)

    async def _live(self, request: Any, timeout: float | None) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, request: Any, timeout: float | None) -> Any:
        return message("ServerReadyResponse")(ready=self._host.state == "ready")

    async def _model_ready(self, request: Any, timeout: float | None) -> Any:
        slot = self._host.slot(request.name)
        there = slot.current is not None and not self._host.draining
        if there and request.version:
            slot.find(request.version)
        return message("ModelReadyResponse")(ready=there)

    async def _server(self, request: Any, timeout: float | None) -> Any:
        return message("ServerMetadataResponse")(name="llmasos_xla", version=__version__)

    async def _metadata(self, request: Any, timeout: float | None) -> Any:
        slot = self._host.slot(request.name)
        said = slot.find(request.version or None).metadata()
        versions = [served.version for served in slot.versions()]
        return message("ModelMetadataResponse")(**{**said, "versions": versions})

    async def _infer(self, request: Any, timeout: float | None) -> Any:
        host = self._host
        if host.draining or self.stopping.is_set():
            raise _stopping()
        if host.inside >= host.limits.requests:
            host.refused += 1
            reason = f"{host.inside} requests are inside, which is all that may be; ask again later"
            raise HTTPException(429, reason, headers={"Retry-After": "1"})
        host.inside += 1
        self.inside += 1
        try:
            return await self._answer(host.slot(request.model_name), request, timeout)
        finally:
            host.inside -= 1
            self.inside -= 1

    async def _answer(self, slot: Slot, message: Any, timeout: float | None) -> Any:
        version, size = message.model_version or None, message.ByteSize()
        slot.find(version)
        request = await _aside(size, read_request, message)
        own = seconds(request.timeout, self._host.limits.seconds)
        try:
            answer = await slot.infer(
                request.tensors,
                [wanted.name for wanted in request.outputs],
                version=version,
                priority=request.urgency,
                timeout=min((limit for limit in (own, timeout) if limit is not None), default=None),
                aside=size > _LARGE,
            )
        except QueueFullError:
            slot.refused += 1
            raise
        served, outputs = answer.served, answer.outputs
        try:
            return await _aside(_nbytes(outputs), write_answer, request, served.name, served.version, outputs)
        except (ValueError, TypeError) as error:
            # The request was answered, so this is no fault of the sender's.
            raise RuntimeError(f"infer: the answer cannot be written: {error}") from error

    async def _index(self, request: Any, timeout: float | None) -> Any:
        listed = []
        for slot in self._host.slots.values():
            listed += [{"name": slot.name, "version": v.version, "state": "READY"} for v in slot.versions()]
            if slot.current is None and not request.ready:
                listed.append({"name": slot.name, "state": "LOADING"})
        return message("RepositoryIndexResponse")(models=listed)

    async def _check(self, request: Any, timeout: float | None) -> Any:
        if request.service not in ("", SERVICE):
            raise LookupError(f"unknown service {request.service[:60]!r}; this server has {SERVICE!r}")
        return message("HealthCheckResponse")(status=1 if self._host.state == "ready" else 2)


def _code(error: HTTPException) -> str:
    return _CODES.get(error.status_code, "INTERNAL")


def _end(trace: Trace, code: str) -> None:
    trace.end({"rpc.response.status_code": code}, code if code in _FAULTS else None)


def _stopping() -> HTTPException:
    return HTTPException(503, "the server is stopping; ask another", headers={"Retry-After": "1"})


def _nbytes(outputs: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in outputs.values())


async def _aside(size: int, function: Callable, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments) if size > _LARGE else function(*arguments)


def _short(reason: str) -> str:
    return reason.encode(errors="replace")[:_LONGEST_REASON].decode(errors="ignore")


async def _next(contents: AsyncIterator[bytes], stopping: asyncio.Event) -> bytes | None:
    """The next message of a stream, None at its end. A stream on which nothing comes does not hold up the server."""
    coming = asyncio.ensure_future(anext(aiter(contents), None))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
        raise _stopping()
    finally:
        coming.cancel()
        stopped.cancel()


def _handler(service: Service, name: str) -> Any:
    """The method as gRPC calls it: bytes in, bytes out, so that what is no message is refused in words of ours."""
    import grpc

    def headers(context: Any) -> dict[bytes, bytes]:
        pairs = context.invocation_metadata() or ()
        return {key.encode(): value if isinstance(value, bytes) else value.encode() for key, value in pairs}

    async def abort(context: Any, error: HTTPException) -> None:
        code = grpc.StatusCode[_code(error)]
        again = (error.headers or {}).get("Retry-After")
        more = () if again is None else (("grpc-retry-pushback-ms", str(1000 * int(again))),)
        await context.abort(code, _short(error.detail), more)

    async def one(content: bytes, context: Any) -> bytes | None:
        try:
            return await service.answer(name, content, headers(context), context.time_remaining())
        except HTTPException as error:
            await abort(context, error)

    async def many(contents: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            while (content := await _next(contents, service.stopping)) is not None:
                yield await service.stream_answer(content, headers(context), context.time_remaining())
        except HTTPException as error:
            await abort(context, error)

    if name in METHODS and METHODS[name].stream:
        return grpc.stream_stream_rpc_method_handler(many)
    return grpc.unary_unary_rpc_method_handler(one)
