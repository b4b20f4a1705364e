"""OpenAI's addresses over the models of a host: /v1/models, /v1/completions, /v1/chat/completions."""

import asyncio
import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from llmasos_xla.api._texts import decoder_ids
from llmasos_xla.api.network import Network
from llmasos_xla.deployment import chat
from llmasos_xla.deployment.asking import check_key, read_body, refusal, respond
from llmasos_xla.deployment.batching import QueueFullError
from llmasos_xla.deployment.choices import Choices, Piece
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.lanes import writer_of, writes
from llmasos_xla.deployment.openai import Head, RefusedError, Wanted, model_json, read
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.models.generation.protocol import Generative

PREFIX = "/v1/"
_MODELS, _TEXTS, _CHATS = "/v1/models", "/v1/completions", "/v1/chat/completions"
# Characters from here on are made ids of beside the event loop.
_LONG = 1 << 12
# An id stands for fewer characters than this: a longer prompt is refused before it is taken apart.
_MOST_CHARACTERS_OF_AN_ID = 256
# Of a conversation's answer, for models that read without end.
_MOST_NEW = 2048


class _Given(NamedTuple):
    """What the model goes on with."""

    rows: list[list[int]]
    stops: tuple[str, ...]
    ends: tuple[int, ...]
    trimmed: bool
    echoed: list[str]
    """What goes ahead of each prompt's texts."""


class _Reader(NamedTuple):
    """A version that writes, and what it reads with."""

    served: Served
    model: Network
    config: Generative
    tokenizer: Any


@final
class OpenAI:
    """The ASGI application of the addresses that begin with `PREFIX`."""

    def __init__(self, host: Host):
        self.host = host
        self._render = chat.Renderer()
        # Its own: conversations that wait for their template shall not keep others from being read.
        self._threads = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="texts")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        host, headers = self.host, dict(scope["headers"])
        try:
            if host.inside >= host.limits.requests:
                host.refused += 1
                raise HTTPException(
                    429, f"{host.inside} requests are inside, which is all that may be", {"Retry-After": "1"}
                )
            host.inside += 1
            try:
                check_key(host, headers)
                await self._routed(scope["method"], scope["path"], headers, receive, send)
            finally:
                host.inside -= 1
        except ClientDisconnect:
            # Nobody reads it; but a request that ends without an answer would be a fault in the server's log.
            await _refuse(send, RefusedError("the sender closed the connection"))
        except Exception as error:
            await _refuse(send, _refused(error))

    async def _routed(
        self, method: str, path: str, headers: Mapping[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        wanted = "POST" if path in (_TEXTS, _CHATS) else "GET"
        name = path.removeprefix(f"{_MODELS}/")
        if path not in (_MODELS, _TEXTS, _CHATS) and (name == path or "/" in name):
            known = ", ".join((_MODELS, f"{_MODELS}/NAME", _TEXTS, _CHATS))
            raise RefusedError(f"there is nothing at {path[:100]!r}; known: {known}", status=404, code="unknown_url")
        if method != wanted:
            reason = f"method {method[:20]} came at {path[:100]!r}; it takes {wanted}"
            raise RefusedError(reason, status=405, code="method_not_allowed", headers={"Allow": wanted})
        if wanted == "POST":
            await self._texts(path == _CHATS, headers, receive, send)
        elif path == _MODELS:
            data = [
                model_json(s.name, s.current.since) for s in self.host.slots.values() if s.current and writes(s.current)
            ]
            await _answer(send, {"object": "list", "data": data})
        else:
            slot = self._slot(name)
            served = slot.find()
            if not writes(served):
                raise RefusedError(
                    f"model {name!r} writes no text; it is at /v2/models/{name}",
                    "model", status=404, code="model_not_found",
                )  # fmt: skip
            await _answer(send, model_json(name, served.since))

    async def _texts(self, chats: bool, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        host = self.host
        if host.draining:
            raise HTTPException(503, "the server is stopping; ask another", {"Retry-After": "1"})
        content = await read_body(headers, receive, host.limits.body)
        wanted = await self._aside(len(content), read, content, chats)
        slot = self._slot(wanted.model)
        served, trial = slot.find(), slot.trial
        on_trial = trial is not None and trial.takes()
        if trial is not None and on_trial:
            served = trial.served
        reader = _reader(slot.name, served)
        given = await self._given(wanted, reader)
        rooms = [_room(wanted, reader.config, row) for row in given.rows]
        rules = (given.stops, given.ends, given.trimmed)
        choices = Choices(wanted, served, reader.tokenizer, given.rows, rooms, *rules, host.limits.seconds)
        started = time.perf_counter()
        try:
            choices.start(slot.writer.submit)
        except QueueFullError:
            slot.refused += 1
            raise
        slot.requests += 1
        error: Exception | None = None
        try:
            await _sent(wanted, Head.of(wanted, served.version), choices, given.echoed, receive, send)
        except Exception as caught:
            begun = isinstance(caught, _BegunError)
            if not isinstance(caught.__cause__ if begun else caught, ClientDisconnect):
                slot.failures += 1
                error = caught
            if not begun:
                raise
        else:
            slot.answered(time.perf_counter() - started)
        finally:
            choices.cancel()
            if trial is not None and on_trial:
                # How long a text took says as much of its length as of the version.
                trial.told(None, error)

    def _slot(self, name: str) -> Slot:
        try:
            return self.host.slot(name)
        except LookupError as error:
            raise RefusedError(str(error), "model", status=404, code="model_not_found") from None

    async def _given(self, wanted: Wanted, reader: _Reader) -> _Given:
        config, tokenizer = reader.config, reader.tokenizer
        param = "messages" if wanted.chat else "prompt"
        try:
            if wanted.chat:
                # A template is run in another process, which takes a moment.
                characters = _LONG + sum(len(message["content"]) for message in wanted.messages)
                self._check_length(config, characters - _LONG, param)
                template = reader.model.chat_template
                found = await self._aside(characters, chat.turn, tokenizer, template, wanted.messages, self._render)
                rows, stops, ends, trimmed = [found.ids], found.stops, found.ends, found.trimmed
            else:
                texts = [prompt for prompt in wanted.prompts if isinstance(prompt, str)]
                characters = sum(map(len, texts))
                for text in texts:
                    self._check_length(config, len(text), param)
                rows = await self._aside(characters, _rows, tokenizer, wanted.prompts)
                stops, ends, trimmed = (), (), False
            _check_rows(config, rows, param)
        except ImportError as error:
            raise RefusedError(str(error), status=501, code="unsupported") from None
        except (ValueError, TypeError) as error:
            raise RefusedError(str(error), param) from None
        echoed = [""] * len(rows)
        if wanted.echo:
            echoed = [
                prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
                for prompt in wanted.prompts
            ]  # fmt: skip
        every = (*config.end_ids, *(i for i in ends if i not in config.end_ids))
        return _Given(rows, (*wanted.stops, *stops), every, trimmed, echoed)

    def _check_length(self, config: Generative, characters: int, param: str) -> None:
        if config.context is not None and characters > _MOST_CHARACTERS_OF_AN_ID * config.context:
            reason = f"{characters} characters are more than the {config.context} ids that the model reads"
            raise RefusedError(reason, param, code="context_length_exceeded")

    async def _aside(self, size: int, function: Any, *arguments: Any) -> Any:
        """What a function gives: computed here where it is soon done, in a thread where it is not."""
        if size < _LONG:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class _BegunError(Exception):
    """What went wrong after a stream had begun, which its reader was told if there is one; the cause is the error."""


async def _sent(
    wanted: Wanted, head: Head, choices: Choices, echoed: Sequence[str], receive: Receive, send: Send
) -> None:
    """Sends the texts, at once or as they are written; before anything is sent errors are raised as they are."""
    pieces = choices.pieces(receive)
    try:
        if wanted.stream:
            await _streamed(wanted, head, choices, pieces, echoed, send)
            return
        texts, reasons = [text for text in echoed for _ in range(wanted.n)], ["length"] * (wanted.n * len(echoed))
        async for several in pieces:
            for index, text, reason in several:
                texts[index] += text
                reasons[index] = reason or reasons[index]
        await _answer(send, head.answer(list(zip(texts, reasons, strict=True)), choices.usage))
    finally:
        await pieces.aclose()


async def _streamed(
    wanted: Wanted, head: Head, choices: Choices, pieces: Any, echoed: Sequence[str], send: Send
) -> None:
    # An error ahead of the first piece has its own status: the queue may have been full, or the time over.
    several: list[Piece] | None = await anext(pieces)
    kind = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": kind})
    more = {"usage": None} if wanted.usage else {}

    async def event(message: Any) -> None:
        data = message if isinstance(message, bytes) else orjson.dumps(message)
        await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})

    try:
        for index in range(wanted.n * len(echoed)):
            before = echoed[index // wanted.n]
            if wanted.chat or before:
                await event({**head.piece(index, before, None, first=True), **more})
        while several is not None:
            for index, text, reason in several:
                if text:
                    await event({**head.piece(index, text, None), **more})
                if reason is not None:
                    await event({**head.piece(index, None, reason), **more})
            several = await anext(pieces, None)
        if wanted.usage:
            await event(head.counted(choices.usage))
        await event(b"[DONE]")
    except ClientDisconnect as error:
        raise _BegunError("its reader has gone") from error
    except Exception as error:
        await event(_refused(error).to_json())
        raise _BegunError(str(error)) from error
    finally:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _reader(name: str, served: Served) -> _Reader:
    """The version with what it reads; RefusedError for one that does not go on with text."""
    try:
        model = writer_of(served)
    except TypeError as error:
        reason = f"{str(error).removeprefix('write: ')}; it answers at /v2/models/{name}/infer"
        raise RefusedError(reason, "model") from None
    config = model.config
    assert isinstance(config, Generative)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise RefusedError(
            f"model {name!r} came without a tokenizer; set network.tokenizer before it is saved or exported", "model"
        )
    return _Reader(served, model, config, tokenizer)


def _rows(tokenizer: Any, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    return [decoder_ids(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def _check_rows(config: Generative, rows: Sequence[list[int]], param: str) -> None:
    for row in rows:
        if not row:
            raise RefusedError("a prompt has no ids; begin with a character at least", param)
        ids = np.asarray([row])
        config.check_tokens(ids if len(config.inputs) == 1 else {config.inputs[0]: ids})
        if config.context is not None and len(row) >= config.context:
            raise RefusedError(
                f"the prompt has {len(row)} ids, the model reads {config.context} at most, with what is to be written",
                param,
                code="context_length_exceeded",
            )


def _room(wanted: Wanted, config: Generative, row: Sequence[int]) -> int:
    room = _MOST_NEW if config.context is None else config.context - len(row)
    if wanted.most_new is None:
        return room
    return wanted.most_new if config.context is None else min(wanted.most_new, room)


def _refused(error: Exception) -> RefusedError:
    return error if isinstance(error, RefusedError) else RefusedError.of(refusal(error))


async def _answer(send: Send, message: Any) -> None:
    await respond(send, 200, orjson.dumps(message), {"Content-Type": "application/json"})


async def _refuse(send: Send, error: RefusedError) -> None:
    headers = {"Content-Type": "application/json", **error.headers}
    await respond(send, error.status, orjson.dumps(error.to_json()), headers)
