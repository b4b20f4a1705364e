"""OpenAI's completions: requests read and checked, answers and errors in that protocol's shapes. No model here."""

import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from starlette.exceptions import HTTPException

from llmasos_xla import errors

MOST_CHOICES = 128
"""Texts of one request: prompts times `n`."""
MOST_STOPS = 4
DEFAULT_NEW = 16
"""Ids of a completion that does not say how many; a conversation takes what the model has room for."""
_MOST_IDS = 1 << 24
_SEEDS = 1 << 31

# What a request may say that changes nothing here.
_WITHOUT_EFFECT = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip
# What is not done, with the values that ask for nothing.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},),
}  # fmt: skip
_NOT_DONE_IN_TEXTS = {**_NOT_DONE, "logprobs": (), "suffix": ("",)}
_NOT_DONE_IN_CHATS = {
    **_NOT_DONE, "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none",),
    "parallel_tool_calls": (True, False), "functions": ([],), "function_call": ("none",),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "reasoning_effort": (), "verbosity": (), "web_search_options": (),
}  # fmt: skip
_DONE = (
    "model", "max_tokens", "n", "stop", "seed", "temperature", "top_p", "top_k", "stream", "stream_options",
)  # fmt: skip
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles, and what they are called in templates, most of which know no developer."""


class RefusedError(Exception):
    """A request that is not answered: why, and which parameter is at fault."""

    def __init__(
        self,
        reason: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(reason)
        self.param, self.status, self.code, self.headers = param, status, code, dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """As the protocol has it."""
        kinds = {429: "rate_limit_error", 401: "authentication_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @classmethod
    def of(cls, error: HTTPException) -> "RefusedError":
        """An error of the other addresses in this shape."""
        codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded", 504: "timeout"}
        status = error.status_code
        return cls(error.detail, status=status, code=codes.get(status), headers=error.headers)


class Wanted(NamedTuple):
    """What a request asks for, checked but for what the model has a say in."""

    model: str
    chat: bool
    prompts: tuple[str | list[int], ...]
    """Texts or ids; () of a conversation."""
    messages: tuple[dict[str, str], ...]
    """[{"role", "content"}] of a conversation."""
    n: int
    stops: tuple[str, ...]
    seed: int
    temperature: float
    top_k: int | None
    top_p: float | None
    most_new: int | None
    """Ids of a text, at most; None for as many as there is room for."""
    echo: bool
    stream: bool
    usage: bool
    """Whether the last event of a stream counts ids."""


class Usage(NamedTuple):
    """Ids read and written."""

    prompt: int
    completion: int

    def to_json(self) -> dict[str, int]:
        """As the protocol has it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


class Head(NamedTuple):
    """What all parts of an answer begin with."""

    identity: str
    created: int
    model: str
    version: str
    chat: bool

    @classmethod
    def of(cls, wanted: Wanted, version: str) -> "Head":
        """Of the answer to a request."""
        name = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{uuid.uuid4().hex}"
        return cls(name, int(time.time()), wanted.model, version, wanted.chat)

    def answer(self, choices: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """Texts with the reasons for their ends, as one answer."""
        found = [
            {
                "index": i,
                **({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}),
                "logprobs": None,
                "finish_reason": reason,
            }
            for i, (text, reason) in enumerate(choices)
        ]
        return {**self._start("chat.completion"), "choices": found, "usage": usage.to_json()}

    def piece(self, index: int, text: str | None, reason: str | None, *, first: bool = False) -> dict[str, Any]:
        """An event of a stream: more of a text, its end, or of a conversation's answer its beginning."""
        delta = ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})
        choice = {"index": index, **({"delta": delta} if self.chat else {"text": text or ""})}
        choice |= {"logprobs": None, "finish_reason": reason}
        return {**self._start("chat.completion.chunk"), "choices": [choice]}

    def counted(self, usage: Usage) -> dict[str, Any]:
        """The last event of a stream that was asked to count."""
        return {**self._start("chat.completion.chunk"), "choices": [], "usage": usage.to_json()}

    def _start(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            # The version of the weights, which this field is there to tell.
            "system_fingerprint": self.version,
        }


def read(content: bytes, chat: bool) -> Wanted:
    """A request's body; raises RefusedError that names what is wrong with it."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RefusedError(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise RefusedError(f"the body is a JSON object, {_shown(body)} came")
    _check_names(body, chat)
    stream, options = _flag(body, "stream"), body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not stream):
        raise RefusedError("stream_options is an object, and goes with stream=true", "stream_options")
    counts = _flag(options or {}, "include_usage", "stream_options.include_usage")
    n = _whole(body, "n", 1, MOST_CHOICES) or 1
    if body.get("best_of") not in (None, n):
        raise RefusedError("best_of is not done: all n texts are given; leave it out", "best_of")
    prompts = () if chat else _prompts(body.get("prompt"))
    if n * len(prompts) > MOST_CHOICES:
        raise RefusedError(f"{len(prompts)} prompts times n={n} are more than {MOST_CHOICES} texts", "prompt")
    seed = _whole(body, "seed", -(1 << 63), (1 << 63) - 1)
    top_k = _whole(body, "top_k", -1, _MOST_IDS)
    top_p, temperature = _number(body, "top_p", 0, 1), _number(body, "temperature", 0, 2)
    return Wanted(
        _text(body.get("model"), "model"),
        chat,
        prompts,
        _messages(body.get("messages")) if chat else (),
        n,
        _stops(body.get("stop")),
        secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
        1.0 if temperature is None else temperature,
        # 0 and -1 are how others say that there is no bound.
        top_k if top_k is not None and top_k > 0 else None,
        # Of probability 0 there is always the most probable id.
        None if top_p is None or top_p == 1 else max(top_p, 1e-6),
        _most_new(body, chat),
        not chat and _flag(body, "echo"),
        stream,
        counts,
    )


def model_json(name: str, created: float) -> dict[str, Any]:
    """A model in the list of models."""
    return {"id": name, "object": "model", "created": int(created), "owned_by": "llmasos_xla"}


def _check_names(body: Mapping[str, Any], chat: bool) -> None:
    not_done = _NOT_DONE_IN_CHATS if chat else _NOT_DONE_IN_TEXTS
    own = ("messages", "max_completion_tokens") if chat else ("prompt", "echo", "best_of")
    for name, value in body.items():
        if name in not_done:
            # By kind, too: 0 asks for log probabilities where False does not.
            nothing = any(type(value) is type(plain) and value == plain for plain in not_done[name])
            if value is not None and not nothing:
                raise RefusedError(f"{name}={_shown(value)} is not done here; leave it out", name, code="unsupported")
        elif name not in (*own, *_DONE, *_WITHOUT_EFFECT):
            what = "chat/completions" if chat else "completions"
            raise RefusedError(str(errors.unknown(what, "parameter", name[:60], (*own, *_DONE))), name[:60])


def _prompts(value: Any) -> tuple[str | list[int], ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return tuple(value)
        if _are_ids(value):
            return (value,)
        if all(isinstance(each, list) and each and _are_ids(each) for each in value):
            return tuple(value)
    raise RefusedError(f"prompt is a text, a list of texts, of ids or of lists of ids; {_shown(value)} came", "prompt")


def _are_ids(values: Sequence[Any]) -> bool:
    return all(type(i) is int and 0 <= i < _MOST_IDS for i in values)


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise RefusedError(f"messages is a list of at least one message; {_shown(value)} came", "messages")
    return tuple(_message(each, f"messages[{i}]") for i, each in enumerate(value))


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RefusedError(f"{where} is an object with role and content; {_shown(value)} came", where)
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise RefusedError(f"{where}.role is one of {known}; {_shown(role)} came", f"{where}.role")
    for name, given in value.items():
        if name not in ("role", "content", "name") and given not in (None, []):
            raise RefusedError(f"{where}.{name[:60]} is not done here; leave it out", f"{where}.{name[:60]}")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    named = {} if value.get("name") is None else {"name": _text(value["name"], f"{where}.name")}
    return {"role": _ROLES[role], "content": _text(content, f"{where}.content"), **named}


def _part(value: Any, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != "text":
        raise RefusedError(f"{where} is a part of type 'text', the one that is read here; {_shown(kind)} came", where)
    return _text(value.get("text"), f"{where}.text")


def _stops(value: Any) -> tuple[str, ...]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MOST_STOPS or not all(isinstance(s, str) and s for s in found):
        raise RefusedError(f"stop is a text, or up to {MOST_STOPS}, none of them empty; {_shown(value)} came", "stop")
    return tuple(found)


def _most_new(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        found = _whole(body, "max_tokens", 0, _MOST_IDS)
        return DEFAULT_NEW if found is None else found
    old, new = (_whole(body, name, 1, _MOST_IDS) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise RefusedError("max_tokens and max_completion_tokens say different things; leave one out", "max_tokens")
    return old if new is None else new


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RefusedError(f"{name} is a text; {_shown(value)} came", name)
    return value


def _flag(body: Mapping[str, Any], key: str, name: str | None = None) -> bool:
    return _checked(body, key, name, lambda v: isinstance(v, bool), "true or false") or False


def _whole(body: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    kind = f"a whole number from {least} to {most}"
    return _checked(body, key, None, lambda v: type(v) is int and least <= v <= most, kind)


def _number(body: Mapping[str, Any], key: str, least: int, most: int) -> float | None:
    kind = f"a number from {least} to {most}"
    found = _checked(body, key, None, lambda v: type(v) in (int, float) and least <= v <= most, kind)
    return None if found is None else float(found)


def _checked(body: Mapping[str, Any], key: str, name: str | None, fits: Callable[[Any], bool], kind: str) -> Any:
    value, name = body.get(key), name or key
    if value is not None and not fits(value):
        raise RefusedError(f"{name} is {kind}; {_shown(value)} came", name)
    return value


def _shown(value: Any) -> str:
    return "nothing" if value is None else orjson.dumps(value, default=str).decode()[:80]
