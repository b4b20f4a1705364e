"""Requests and answers of the Open Inference Protocol v2, in JSON and with the binary tensor extension.

With the extension a message is JSON, `Inference-Header-Content-Length` bytes of it, and behind it the bytes of those
tensors whose parameters have `binary_data_size`, in order.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from llmasos_xla.deployment import tensors

JSON_LENGTH = "Inference-Header-Content-Length"
MAX_BODY = 64 << 20
"""Bytes of a request's body, at most, where nothing else is said."""


class Body(NamedTuple):
    """The body of an HTTP message and the headers that belong to it."""

    content: bytes
    headers: dict[str, str]


class Wanted(NamedTuple):
    """An output that a request asks for."""

    name: str
    binary: bool


class InferRequest(NamedTuple):
    """What an infer request holds."""

    id: str | None
    tensors: dict[str, np.ndarray]
    """Inputs by name."""
    outputs: tuple[Wanted, ...]
    """The outputs asked for; empty for all of them."""
    binary: bool
    """Whether outputs that are not asked for by name go as bytes."""
    priority: int = 0
    """How urgent it is: 1 goes first, larger numbers later. 0, where it says nothing, is between 1 and 2."""
    timeout: int | None = None
    """Microseconds that its sender waits."""

    @property
    def urgency(self) -> int:
        """The smaller, the sooner its turn comes."""
        return 2 * self.priority or 3


def read_request(content: bytes, json_length: str | None = None) -> InferRequest:
    """Reads the body of an infer request; `json_length` is the header of the binary extension, if there is one.

    Raises ValueError with the reason. `parameters` other than the extension's, `priority` and `timeout` are ignored, as
    the protocol allows.

    >>> body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}]}'
    >>> read_request(body).tensors["x"]
    array([[1. , 2.5]], dtype=float32)
    """
    message, tail = _split(content, json_length)
    inputs = message.get("inputs")
    if type(inputs) is not list or not inputs:
        raise ValueError('infer: the request has no "inputs": [{"name", "shape", "datatype", "data"}, ...]')
    found = _read_tensors(inputs, tail, "input")
    asked = message.get("outputs")
    if asked is not None and type(asked) is not list:
        raise ValueError('infer: "outputs" is a list of {"name"}')
    parameters = _parameters(message)
    binary = parameters.get("binary_data_output") is True
    priority, timeout = (whole(parameters, name) for name in ("priority", "timeout"))
    wanted = {}
    for entry in asked or []:
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise ValueError('infer: each of "outputs" is an object with a "name"')
        wanted[entry["name"]] = Wanted(entry["name"], _parameters(entry).get("binary_data", binary) is True)
    identity = message.get("id")
    if identity is not None and type(identity) is not str:
        raise ValueError('infer: "id" is a string')
    return InferRequest(identity, found, tuple(wanted.values()), binary, priority or 0, timeout or None)


def whole(parameters: Mapping[str, Any], name: str) -> int | None:
    """The parameter of that name, if there is one; raises ValueError if it is no whole number from 0."""
    value = parameters.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f'infer: the parameter "{name}" is a whole number from 0, {str(value)[:40]} came')
    return value


def write_request(inputs: Mapping[str, np.ndarray], outputs: Iterable[str] = ()) -> Body:
    """The body that asks for `outputs` as bytes. Numbers go as bytes, texts as JSON, which alone has null."""
    message: dict[str, Any] = {"parameters": {"binary_data_output": True}}
    if outputs := tuple(outputs):
        message["outputs"] = [{"name": name} for name in outputs]
    return _write(message, "inputs", {name: (array, array.dtype.kind != "O") for name, array in inputs.items()})


def read_answer(content: bytes, json_length: str | None = None) -> dict[str, np.ndarray]:
    """The outputs by name of an answer to an infer request."""
    message, tail = _split(content, json_length)
    return _read_tensors(message["outputs"], tail, "output")


def write_answer(request: InferRequest, model: str, version: str, outputs: Mapping[str, np.ndarray]) -> Body:
    """The answer to a request. JSON where all outputs are JSON.

    Raises FloatingPointError if an output that goes as JSON holds NaN or infinity, which JSON has not.
    """
    binary = {wanted.name: wanted.binary for wanted in request.outputs}
    entries = {name: (array, binary.get(name, request.binary)) for name, array in outputs.items()}
    for name, (array, as_bytes) in entries.items():
        if not as_bytes and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"infer: the model's {name!r} holds NaN or infinity, which JSON cannot carry; "
                "ask for binary data to see it"
            )
    message: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        message["id"] = request.id
    return _write(message, "outputs", entries)


def _write(message: dict[str, Any], key: str, entries: Mapping[str, tuple[np.ndarray, bool]]) -> Body:
    tail: list[bytes] = []
    listed = []
    for name, (array, as_bytes) in entries.items():
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": tensors.datatype_of(array),
        }
        if as_bytes:
            tail.append(tensors.to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = tensors.to_json(array)
        listed.append(entry)
    head = orjson.dumps({**message, key: listed}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return Body(head, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}
    return Body(b"".join([head, *tail]), headers)


def _split(content: bytes, json_length: str | None) -> tuple[dict[str, Any], memoryview]:
    end = len(content)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit()) or len(json_length) > 18 or int(json_length) > end:
            raise ValueError(f"infer: {JSON_LENGTH} is {json_length[:40]!r}; the body has {end} bytes")
        end = int(json_length)
    view = memoryview(content)
    try:
        message = orjson.loads(view[:end])
    except orjson.JSONDecodeError as error:
        raise ValueError(f"infer: the body is no JSON: {error}{_hint(content[:end])}") from None
    if type(message) is not dict:
        raise ValueError('infer: the body is an object such as {"inputs": [...]}')
    return message, view[end:]


def _hint(content: bytes) -> str:
    return "; JSON has no NaN and no Infinity" if b"NaN" in content or b"Infinity" in content else ""


def _read_tensors(entries: list[Any], tail: memoryview, kind: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    at = 0
    for entry in entries:
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise ValueError(f'infer: each {kind} is an object with a "name"')
        name = entry["name"]
        who = f"infer: {kind} {name[:60]!r}"
        if name in found:
            raise ValueError(f"{who} comes twice")
        if lacking := [f'"{key}"' for key in ("shape", "datatype") if key not in entry]:
            raise ValueError(f"{who} has no {' and no '.join(lacking)}")
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            if "data" not in entry:
                raise ValueError(f'{who} has no "data"')
            found[name] = tensors.from_json(entry["data"], entry["shape"], entry["datatype"], who)
            continue
        if type(size) is not int or size < 0 or size > len(tail) - at:
            raise ValueError(f"{who}: binary_data_size is {str(size)[:40]}; {len(tail) - at} bytes are there for it")
        found[name] = tensors.from_bytes(tail[at : at + size], entry["shape"], entry["datatype"], who)
        at += size
    if at != len(tail):
        raise ValueError(f"infer: {len(tail) - at} bytes are left over behind the last tensor")
    return found


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise ValueError('infer: "parameters" is an object')
    return parameters
