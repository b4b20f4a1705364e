"""What the addresses of all protocols share: keys, how a body is read, what a request that failed is told."""

import asyncio
import logging
import math
import uuid
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from llmasos_xla.deployment import codings
from llmasos_xla.deployment.batching import ExpiredError, QueueFullError
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.slot import LoadingError

_LOG = logging.getLogger("llmasos_xla.deployment")
_MEDIA = ("application/json", "application/octet-stream")
_MOST_SECONDS = 24 * 3600.0
# A sender that falls silent holds a place that others want.
_PART_SECONDS = 20.0


def check_key(host: Host, headers: Mapping[bytes, bytes]) -> None:
    """Raises 401 for a request whose key is none of the host's."""
    bearer = headers.get(b"authorization", b"").decode("latin-1")
    key = bearer[7:] if bearer[:7].lower() == "bearer " else None
    key = key or (headers[b"x-api-key"].decode("latin-1") if b"x-api-key" in headers else None)
    if not host.knows(key):
        reason = "a key is wanted: Authorization: Bearer KEY"
        raise HTTPException(401, reason, headers={"WWW-Authenticate": "Bearer"})


def refusal(error: Exception) -> HTTPException:
    """What a request that failed is told: the sender's faults in words, the model's under an id in the log."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, LoadingError):
        return HTTPException(503, str(error), headers={"Retry-After": "1"})
    if isinstance(error, QueueFullError):
        return HTTPException(429, str(error), headers={"Retry-After": str(math.ceil(error.retry_after))})
    if isinstance(error, ExpiredError | TimeoutError):
        return HTTPException(504, f"no answer within the time that the request gave it: {str(error) or 'it runs on'}")
    if isinstance(error, LookupError) and not isinstance(error, KeyError | IndexError):
        return HTTPException(404, str(error))
    if isinstance(error, ValueError | TypeError):
        return HTTPException(400, str(error))
    identity = uuid.uuid4().hex[:12]
    _LOG.error("request %s failed", identity, exc_info=error)
    reason = f"the model failed on this request; the server's log has the reason under {identity}"
    return HTTPException(500, reason)


def seconds(microseconds: int | None, otherwise: float | None) -> float | None:
    """How long a request may take: what it says, or `otherwise`."""
    return otherwise if microseconds is None else min(microseconds / 1e6, _MOST_SECONDS)


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """A request's body, unpacked where it came compressed.

    Raises HTTPException for a kind or a coding that is not read (415), for more than `most` bytes (413), and for a
    sender that has fallen silent (408); ClientDisconnect.
    """
    coding = _check_media(headers)
    content = await _whole(headers, receive, most)
    return content if coding == "identity" else await _unpacked(content, coding, most)


def _check_media(headers: Mapping[bytes, bytes]) -> str:
    """How the body is compressed, if its kind is one of those that are read."""
    # None is fine: clients of the protocol send bytes without naming them.
    kind = headers.get(b"content-type", _MEDIA[0].encode()).decode("latin-1").partition(";")[0].strip().lower()
    if kind not in _MEDIA:
        raise HTTPException(
            415, f"media type {kind[:60]!r} came, {' or '.join(_MEDIA)} is wanted; name it in Content-Type"
        )
    coding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if coding not in codings.CODINGS:
        known = ", ".join(codings.CODINGS)
        raise HTTPException(415, f"content encoding {coding[:60]!r} came; known: {known}")
    return coding


async def _whole(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    said = headers.get(b"content-length", b"").decode("latin-1")
    size = int(said) if said.isascii() and said.isdigit() and len(said) < 19 else 0
    parts: list[bytes] = []
    more = size <= most
    if more:
        size = 0
    while more:
        part, more = await _part(receive)
        parts.append(part)
        size += len(part)
        if size > most:
            break
    if size <= most:
        return parts[0] if len(parts) == 1 else b"".join(parts)
    parts.clear()
    if headers.get(b"expect", b"").lower() != b"100-continue":
        # A sender in the middle of its body would see a broken connection and not the answer; so hear it out, a while.
        dropped, more = 0, True
        while more and dropped <= 4 * most:
            part, more = await _part(receive)
            dropped += len(part)
    raise HTTPException(413, _too_large(most), headers={"Connection": "close"})


async def _unpacked(content: bytes, coding: str, most: int) -> bytes:
    try:
        return await asyncio.to_thread(codings.unpacked, content, coding, most)
    except codings.TooLargeError:
        raise HTTPException(413, _too_large(most)) from None
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def _too_large(most: int) -> str:
    return f"the body is larger than {most} bytes; send fewer rows a request, or start the server with max_body="


async def _part(receive: Receive) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(_PART_SECONDS):
            message = await receive()
    except TimeoutError:
        reason = f"no more of the body came for {_PART_SECONDS:g} s"
        raise HTTPException(408, reason, headers={"Connection": "close"}) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def respond(send: Send, status: int, content: bytes, headers: Mapping[str, str]) -> None:
    """Sends an answer that is whole."""
    named = [(b"content-length", str(len(content)).encode())]
    named += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": content})
