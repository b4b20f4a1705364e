"""The messages of the Open Inference Protocol v2 over gRPC: tables of their fields, and the classes made from them.

Names and numbers are those of the specification, so clients that others generated from it work.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md

`ModelStreamInfer` and `RepositoryIndex` are Triton's additions: many requests over one stream, and which models there
are. `Health` is what Kubernetes and load balancers ask any gRPC server.
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from typing import Any, NamedTuple

from llmasos_xla import errors

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError:
    raise errors.missing_package("deploy: grpc_port", "protobuf", "grpc") from None

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


class Method(NamedTuple):
    """A method of a service and the names of its messages."""

    request: str
    answer: str
    stream: bool = False
    """Whether requests and answers are streams of such messages."""


def _pair(name: str) -> Method:
    return Method(f"{name}Request", f"{name}Response")


METHODS: dict[str, Method] = {
    **{name: _pair(name) for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata")},
    "ModelInfer": _pair("ModelInfer"),
    "ModelStreamInfer": Method("ModelInferRequest", "ModelStreamInferResponse", stream=True),
    "RepositoryIndex": _pair("RepositoryIndex"),
}
"""The methods of `SERVICE`."""

# A field is "number name type". Behind a type, * is a list and {} a map from strings; | before a number says that the
# message holds one such field at most, the name of that choice comes first.
_INFERENCE: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("1 live bool",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("1 ready bool",),
    "ModelReadyRequest": ("1 name string", "2 version string"),
    "ModelReadyResponse": ("1 ready bool",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("1 name string", "2 version string", "3 extensions string*"),
    "ModelMetadataRequest": ("1 name string", "2 version string"),
    "ModelMetadataResponse": (
        "1 name string",
        "2 versions string*",
        "3 platform string",
        "4 inputs ModelMetadataResponse.TensorMetadata*",
        "5 outputs ModelMetadataResponse.TensorMetadata*",
    ),
    "ModelMetadataResponse.TensorMetadata": ("1 name string", "2 datatype string", "3 shape int64*"),
    "ModelInferRequest": (
        "1 model_name string",
        "2 model_version string",
        "3 id string",
        "4 parameters InferParameter{}",
        "5 inputs ModelInferRequest.InferInputTensor*",
        "6 outputs ModelInferRequest.InferRequestedOutputTensor*",
        "7 raw_input_contents bytes*",
    ),
    "ModelInferRequest.InferInputTensor": (
        "1 name string",
        "2 datatype string",
        "3 shape int64*",
        "4 parameters InferParameter{}",
        "5 contents InferTensorContents",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("1 name string", "2 parameters InferParameter{}"),
    "ModelInferResponse": (
        "1 model_name string",
        "2 model_version string",
        "3 id string",
        "4 parameters InferParameter{}",
        "5 outputs ModelInferResponse.InferOutputTensor*",
        "6 raw_output_contents bytes*",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "1 name string",
        "2 datatype string",
        "3 shape int64*",
        "4 parameters InferParameter{}",
        "5 contents InferTensorContents",
    ),
    "InferParameter": (
        "parameter_choice|1 bool_param bool",
        "parameter_choice|2 int64_param int64",
        "parameter_choice|3 string_param string",
        "parameter_choice|4 double_param double",
        "parameter_choice|5 uint64_param uint64",
    ),
    "InferTensorContents": (
        "1 bool_contents bool*",
        "2 int_contents int32*",
        "3 int64_contents int64*",
        "4 uint_contents uint32*",
        "5 uint64_contents uint64*",
        "6 fp32_contents float*",
        "7 fp64_contents double*",
        "8 bytes_contents bytes*",
    ),
    "ModelStreamInferResponse": ("1 error_message string", "2 infer_response ModelInferResponse"),
    "RepositoryIndexRequest": ("1 repository_name string", "2 ready bool"),
    "RepositoryIndexResponse": ("1 models RepositoryIndexResponse.ModelIndex*",),
    "RepositoryIndexResponse.ModelIndex": ("1 name string", "2 version string", "3 state string", "4 reason string"),
}
_HEALTH: dict[str, tuple[str, ...]] = {
    "HealthCheckRequest": ("1 service string",),
    # An enum there: 1 is serving, 2 is not. On the wire the two are alike.
    "HealthCheckResponse": ("1 status int32",),
}


def message(name: str) -> Any:
    """The class of a message of the inference protocol; one within another is "Outer.Inner".

    >>> message("ModelReadyRequest")(name="m").SerializeToString()
    b'\\n\\x01m'
    """
    return _CLASSES[name]


def _classes() -> dict[str, Any]:
    # A pool of its own: in the default one, a client of the same protocol has its messages under the same names.
    pool = descriptor_pool.DescriptorPool()
    found = {}
    for package, table in (("inference", _INFERENCE), ("grpc.health.v1", _HEALTH)):
        pool.Add(_file(package, table))
        for name in table:
            found[name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
    return found


def _file(package: str, table: dict[str, tuple[str, ...]]) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"llmasos_xla/{package}", package=package, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name in sorted(table):
        # The outer message sorts before the inner ones.
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
        for field in table[name]:
            _add_field(made[name], field, f".{package}.", name)
    return file


def _add_field(to: descriptor_pb2.DescriptorProto, text: str, package: str, owner: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    choice, _, text = text.rpartition("|")
    number, name, kind = text.split()
    field = to.field.add(name=name, number=int(number), label=kinds.LABEL_OPTIONAL)
    if choice:
        if not to.oneof_decl:
            to.oneof_decl.add(name=choice)
        field.oneof_index = 0
    if kind.endswith(("*", "{}")):
        field.label = kinds.LABEL_REPEATED
    if kind.endswith("{}"):
        # A map is a list of messages of key and value, whose name follows from the field's.
        entry = to.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "1 key string", package, owner)
        _add_field(entry, f"2 value {kind.removesuffix('{}')}", package, owner)
        kind = f"{owner}.{entry.name}"
    kind = kind.removesuffix("*")
    if kind[0].isupper():
        field.type, field.type_name = kinds.TYPE_MESSAGE, package + kind
    else:
        field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")


_CLASSES = _classes()
