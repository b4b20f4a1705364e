"""Traces for OpenTelemetry: a span for each request that asks a model; below it are reading, waiting, running, writing.

The sender's span is the parent, by W3C's `traceparent`. While a request is answered only times are noted; spans are
made of them when it is over. https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

import contextvars
import logging
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmasos_xla import errors
from llmasos_xla._version import __version__

if TYPE_CHECKING:
    from llmasos_xla.deployment.served import Served


class Part(Protocol):
    """Something that was put into a queue for a request: a `Job`, or its texts."""

    served: "Served"
    arrived: float
    priority: int

    @property
    def began(self) -> float | None:
        """When its turn came, by `time.monotonic`, if it has."""
        ...

    @property
    def ended(self) -> float | None:
        """When it was done."""
        ...

    @property
    def figures(self) -> Mapping[str, Any]:
        """Attributes of the span between these."""
        ...


JOBS: contextvars.ContextVar["list[Any] | None"] = contextvars.ContextVar("jobs", default=None)
"""What the request that is being answered has put into queues; None where nobody asks."""

_FLUSH_SECONDS = 1.0
_MOST_JOBS = 64
_LONGEST = 200
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
_TEXTS = ("/v1/completions", "/v1/chat/completions")
# Of W3C's headers; what else a sender says of itself is not passed on.
_CARRIED = (b"traceparent", b"tracestate")


def start(endpoint: str | None = None) -> "Tracing":
    """Traces that are sent in batches to a collector, by OTLP over HTTP.

    Args:
        endpoint: "http://127.0.0.1:4318"; what OpenTelemetry's own environment variables say if None.

    Raises ImportError without the packages, ValueError for an endpoint that is no address.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise errors.missing_package("deploy: tracing", "opentelemetry", "tracing") from None
    if endpoint is not None:
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"deploy: tracing is the address of a collector that takes OTLP over HTTP, {endpoint!r} came; "
                "http://127.0.0.1:4318 is the usual one of this machine"
            )
        if parts.path in ("", "/"):
            endpoint = urllib.parse.urlunsplit(parts._replace(path="/v1/traces"))
    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: "llmasos_xla"}))
    provider = TracerProvider(resource=found)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    # A collector that is away is told once in a while; each attempt to reach it again is not worth a line.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    return Tracing(provider)


@final
class Tracing:
    """Begins spans.

    Args:
        provider: a `TracerProvider` of OpenTelemetry's SDK.
    """

    def __init__(self, provider: Any):
        from opentelemetry.trace import propagation
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("llmasos_xla", __version__)
        self._sender, self._inside = TraceContextTextMapPropagator(), propagation.set_span_in_context

    def begin(self, name: str, headers: Mapping[bytes, bytes], attributes: Mapping[str, Any]) -> "Trace":
        """The span of a request that has just come; `Trace.end` has to follow, in the same task."""
        from opentelemetry.trace import SpanKind

        carrier = {n.decode(): headers[n].decode("latin-1") for n in _CARRIED if n in headers}
        span = self._tracer.start_span(name, self._sender.extract(carrier), SpanKind.SERVER, dict(attributes))
        return Trace(self._tracer, span, self._inside(span))

    def close(self) -> None:
        """Sends what was not sent yet, for a second at most."""
        thread = threading.Thread(target=self._provider.force_flush, daemon=True)
        thread.start()
        thread.join(_FLUSH_SECONDS)


@final
class Trace:
    """The span of one request, until `end`."""

    def __init__(self, tracer: Any, span: Any, context: Any):
        self._tracer, self._span, self._context = tracer, span, context
        self._epoch, self._began = time.time_ns(), time.monotonic()
        self._jobs: list[Part] = []
        self._token = JOBS.set(self._jobs)

    def end(self, attributes: Mapping[str, Any], failed: str | None = None, name: str | None = None) -> None:
        """Ends it: with what is known of it by now, and the kind of error if that is this server's fault."""
        from opentelemetry.trace import StatusCode

        JOBS.reset(self._token)
        span, now = self._span, time.monotonic()
        if span.is_recording():
            span.set_attributes(dict(attributes))
            if name is not None:
                span.update_name(name)
            if failed is not None:
                span.set_attribute("error.type", failed)
                span.set_status(StatusCode.ERROR)
            if self._jobs:
                served = self._jobs[0].served
                span.set_attributes({"llmasos.model": served.name, "llmasos.version": served.version})
            self._children(now)
        span.end(self._at(now))

    def _children(self, now: float) -> None:
        began = self._began
        for number, job in enumerate(self._jobs[:_MOST_JOBS]):
            # Between one job and the next is what their request did by itself: reading, at first.
            self._child("prepare" if number else "read", began, job.arrived, {})
            self._child(
                "queue", job.arrived, now if job.began is None else job.began, {"llmasos.priority": job.priority}
            )
            if job.began is None:
                return
            began = now if job.ended is None else job.ended
            self._child("run", job.began, began, job.figures)
        if self._jobs and began < now:
            self._child("write", began, now, {})

    def _child(self, name: str, began: float, ended: float, attributes: Mapping[str, Any]) -> None:
        span = self._tracer.start_span(name, self._context, attributes=attributes, start_time=self._at(began))
        span.end(self._at(ended))

    def _at(self, when: float) -> int:
        """Nanoseconds since the epoch of a time by `time.monotonic`."""
        return self._epoch + int(1e9 * (when - self._began))


@final
class Traced:
    """An ASGI application with a span for each POST: those ask a model, all others ask about one."""

    def __init__(self, app: ASGIApp, tracing: Tracing):
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers, status, failed = dict(scope["headers"]), None, None
        trace = self._tracing.begin("POST", headers, _about(scope, headers))

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except BaseException as error:
            failed = type(error).__qualname__
            raise
        finally:
            attributes: dict[str, Any] = {} if status is None else {"http.response.status_code": status}
            route = _route(scope)
            if route is not None:
                attributes["http.route"] = route
            if status is not None and status >= 500:
                failed = str(status)
            trace.end(attributes, failed, None if route is None else f"POST {route}")


def _about(scope: Scope, headers: Mapping[bytes, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": "POST",
        "url.path": scope["path"][:_LONGEST],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    for what in ("server", "client"):
        if scope.get(what):
            found[f"{what}.address"] = scope[what][0]
    if scope.get("server") and scope["server"][1] is not None:
        found["server.port"] = scope["server"][1]
    if b"user-agent" in headers:
        found["user_agent.original"] = headers[b"user-agent"].decode("latin-1")[:_LONGEST]
    return found


def _route(scope: Scope) -> str | None:
    """The address without the names in it; None for one that leads nowhere."""
    found = _INFER.fullmatch(scope["path"])
    if found is not None:
        return f"/v2/models/{{name}}{'/versions/{version}' if found[1] else ''}/infer"
    if scope["path"] in _TEXTS:
        return scope["path"]
    return getattr(scope.get("route"), "path", None)
