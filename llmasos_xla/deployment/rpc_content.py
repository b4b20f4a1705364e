"""Infer requests and answers over gRPC, as arrays by name.

Tensors come as raw bytes, one entry of `raw_input_contents` each, or in the typed lists of `contents`. An answer takes
the form of its request, unless the request's parameter `binary_data_output` says which; FP16 and BF16, for which there
is no typed list, make it raw.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from llmasos_xla.deployment import protocol, tensors
from llmasos_xla.deployment.rpc_messages import message

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype of the protocol: the typed list that holds it."""


def parse(name: str, content: bytes) -> Any:
    """The message of that name which the bytes hold. Raises ValueError if they hold none."""
    try:
        return message(name).FromString(content)
    except DecodeError:
        raise ValueError(f"{name}: {len(content)} bytes came that are no such message") from None


def read_request(request: Any) -> protocol.InferRequest:
    """Reads a ModelInferRequest. Raises ValueError with the reason if it is none that can be answered.

    >>> request = message("ModelInferRequest")(model_name="m")
    >>> entry = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    >>> entry.contents.fp32_contents.extend([1, 2.5])
    >>> read_request(request).tensors["x"]
    array([[1. , 2.5]], dtype=float32)
    """
    if not request.inputs:
        raise ValueError("infer: the request has no inputs")
    found: dict[str, np.ndarray] = {}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise ValueError(
            f"infer: {len(raw)} raw_input_contents came for {len(request.inputs)} inputs; one each is wanted, in order"
        )
    for at, entry in enumerate(request.inputs):
        who = f"infer: input {entry.name[:60]!r}"
        if entry.name in found:
            raise ValueError(f"{who} comes twice")
        if "shared_memory_region" in entry.parameters:
            raise ValueError(f"{who} is in shared memory, which this server does not read; send its data")
        if not raw:
            found[entry.name] = _from_contents(entry, who)
        elif entry.HasField("contents"):
            raise ValueError(f"{who} has contents, and there are raw_input_contents; one of the two is wanted")
        else:
            found[entry.name] = tensors.from_bytes(raw[at], list(entry.shape), entry.datatype, who)
    parameters = _parameters(request.parameters)
    wanted = parameters.get("binary_data_output")
    raw_answer = wanted if isinstance(wanted, bool) else bool(raw)
    priority, timeout = (protocol.whole(parameters, name) for name in ("priority", "timeout"))
    outputs = tuple(protocol.Wanted(name, raw_answer) for name in dict.fromkeys(o.name for o in request.outputs))
    return protocol.InferRequest(request.id, found, outputs, raw_answer, priority or 0, timeout or None)


def write_answer(request: protocol.InferRequest, model: str, version: str, outputs: Mapping[str, np.ndarray]) -> Any:
    """The ModelInferResponse to a request."""
    answer = message("ModelInferResponse")(model_name=model, model_version=version, id=request.id)
    raw = request.binary or any(tensors.datatype_of(array) not in _CONTENTS for array in outputs.values())
    for name, array in outputs.items():
        datatype = tensors.datatype_of(array)
        entry = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(tensors.to_bytes(array))
        else:
            values: Iterable[Any] = array.ravel().tolist()
            if datatype == "BYTES":
                values = (str(text).encode() for text in values)
            getattr(entry.contents, _CONTENTS[datatype]).extend(values)
    return answer


def _from_contents(entry: Any, who: str) -> np.ndarray:
    shape, datatype = list(entry.shape), entry.datatype
    held = [field.name for field, _ in entry.contents.ListFields()]
    if datatype in tensors.DATATYPES:
        if datatype not in _CONTENTS:
            raise ValueError(f"{who}: {datatype} has no typed contents in the protocol; send it in raw_input_contents")
        if not held:
            raise ValueError(f"{who} has no data, neither contents.{_CONTENTS[datatype]} nor raw_input_contents")
        if held != [_CONTENTS[datatype]]:
            raise ValueError(f"{who}: {datatype} data are in {_CONTENTS[datatype]}, {' and '.join(held)} came")
    values = getattr(entry.contents, held[0]) if held else ()
    if datatype == "BYTES":
        # As raw bytes have it: there the checks are.
        raw = b"".join(struct.pack("<I", len(text)) + text for text in values)
        return tensors.from_bytes(raw, shape, datatype, who)
    if datatype in ("FP32", "FP64"):
        # Not as JSON's: NaN and infinity are values here.
        raw = tensors.to_bytes(np.array(values, tensors.DATATYPES[datatype]))
        return tensors.from_bytes(raw, shape, datatype, who)
    return tensors.from_json(list(values), shape, datatype, who)


def _parameters(entries: Mapping[str, Any]) -> dict[str, bool | int | float | str | None]:
    found: dict[str, bool | int | float | str | None] = {}
    for name, parameter in entries.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found
