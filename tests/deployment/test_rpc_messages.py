"""The messages over gRPC: field for field those of a client that nobody here wrote, in a pool of their own."""

import pytest

pytest.importorskip("google.protobuf", reason="the extra grpc is not installed")

from google.protobuf import descriptor_pool

from llmasos_xla.deployment import rpc_messages
from llmasos_xla.deployment.rpc_messages import METHODS, message

NAMES = sorted({name for method in METHODS.values() for name in (method.request, method.answer)})


def fields(descriptor):
    """All of a message's fields and of those within, by what the wire and the names in code depend on."""
    found = {}
    for field in descriptor.fields:
        kind = field.message_type
        oneof = field.containing_oneof.name if field.containing_oneof else None
        found[field.name] = (
            field.number,
            field.type,
            field.is_repeated,
            oneof,
            kind and (kind.full_name, kind.GetOptions().map_entry, fields(kind)),
        )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_those_of_the_public_client(name):
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient is not installed")
    descriptor = message(name).DESCRIPTOR
    assert descriptor.full_name == f"inference.{name}"
    assert fields(descriptor) == fields(theirs.DESCRIPTOR.message_types_by_name[name])


def test_methods_are_those_of_the_public_client():
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient is not installed")
    service = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == rpc_messages.SERVICE
    known = {method.name: method for method in service.methods}
    for name, method in METHODS.items():
        assert known[name].input_type.name == method.request
        assert known[name].output_type.name == method.answer
        assert known[name].server_streaming == known[name].client_streaming == method.stream


def test_the_default_pool_knows_nothing_of_them():
    descriptor = message("ModelInferRequest").DESCRIPTOR
    assert descriptor.file.pool is not descriptor_pool.Default()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_read_back(name):
    made = message(name)()
    for field in made.DESCRIPTOR.fields:
        if not field.is_repeated and field.cpp_type == field.CPPTYPE_STRING:
            setattr(made, field.name, "ü")
    assert message(name).FromString(made.SerializeToString()) == made


def test_a_choice_holds_one():
    parameter = message("InferParameter")(int64_param=3)
    parameter.string_param = "a"
    assert parameter.WhichOneof("parameter_choice") == "string_param"
    assert not parameter.HasField("int64_param")
