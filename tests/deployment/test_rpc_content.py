"""Requests and answers over gRPC: what is written is read back, and what does not fit is refused with the reason."""

import numpy as np
import pytest

pytest.importorskip("google.protobuf", reason="the extra grpc is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmasos_xla.deployment import protocol, rpc_content, tensors
from llmasos_xla.deployment.rpc_messages import message

SHAPES = hnp.array_shapes(max_dims=3, max_side=4)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@st.composite
def arrays(draw):
    datatype = draw(st.sampled_from(sorted(tensors.DATATYPES)))
    if datatype == "BYTES":
        return draw(hnp.arrays(object, draw(SHAPES), elements=TEXTS))
    if datatype == "BF16":
        import ml_dtypes

        return draw(hnp.arrays(np.float32, draw(SHAPES), elements=st.floats(width=16))).astype(ml_dtypes.bfloat16)
    return draw(hnp.arrays(np.dtype(tensors.DATATYPES[datatype]), draw(SHAPES)))


def asked(raw):
    return protocol.InferRequest("seven", {}, (), raw)


def as_request(answer):
    """The answer's tensors as a request's: what is written must be read back."""
    request = message("ModelInferRequest")(model_name="m", raw_input_contents=answer.raw_output_contents)
    for output in answer.outputs:
        request.inputs.add().ParseFromString(output.SerializeToString())
    return request


@settings(max_examples=200, deadline=None)
@given(st.lists(arrays(), min_size=1, max_size=3), st.booleans())
def test_what_is_written_is_read_back_bit_for_bit(found, raw):
    outputs = {f"y{at}": array for at, array in enumerate(found)}
    answer = rpc_content.write_answer(asked(raw), "m", "1", outputs)
    typed = {"FP16", "BF16"}.isdisjoint(output.datatype for output in answer.outputs)
    assert bool(answer.raw_output_contents) == (raw or not typed)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "seven")
    back = rpc_content.read_request(as_request(answer)).tensors
    assert list(back) == list(outputs)
    for name, array in outputs.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        if array.dtype == object:
            np.testing.assert_array_equal(back[name], array)
        elif typed and not raw and array.dtype.kind == "f":
            # A NaN stays one, and may be another of the many.
            np.testing.assert_array_equal(back[name], array)
        else:
            assert back[name].tobytes() == array.tobytes()


def request(shape=(2,), datatype="FP32", raw=(), name="x", **contents):
    made = message("ModelInferRequest")(model_name="m", raw_input_contents=raw)
    entry = made.inputs.add(name=name, shape=shape, datatype=datatype)
    for field, values in contents.items():
        getattr(entry.contents, field).extend(values)
    return made


def test_parameters_outputs_and_the_form_of_the_answer():
    made = request(fp32_contents=[1, 2])
    made.parameters["priority"].uint64_param = 3
    made.parameters["timeout"].int64_param = 10
    made.parameters["who"].string_param = "me"
    made.parameters["share"].double_param = 0.5
    made.parameters["nothing"].SetInParent()
    for name in ("b", "a", "b"):
        made.outputs.add(name=name)
    read = rpc_content.read_request(made)
    assert (read.priority, read.timeout) == (3, 10)
    assert [wanted.name for wanted in read.outputs] == ["b", "a"]
    assert not read.binary
    assert rpc_content.read_request(request(raw=[b"\0" * 8])).binary
    for wanted in (True, False):
        for made in (request(fp32_contents=[1, 2]), request(raw=[b"\0" * 8])):
            made.parameters["binary_data_output"].bool_param = wanted
            assert rpc_content.read_request(made).binary is wanted


def twice():
    made = request(fp32_contents=[1, 2])
    made.inputs.append(made.inputs[0])
    return made


def parameter(name, **value):
    made = request(fp32_contents=[1, 2])
    for kind, content in value.items():
        setattr(made.parameters[name], kind, content)
    return made


def shared():
    made = request()
    made.inputs[0].parameters["shared_memory_region"].string_param = "r"
    return made


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (message("ModelInferRequest")(), "infer: the request has no inputs"),
        (twice(), "infer: input 'x' comes twice"),
        (shared(), "infer: input 'x' is in shared memory, which this server does not read; send its data"),
        (
            parameter("priority", string_param="high"),
            'infer: the parameter "priority" is a whole number from 0, high came',
        ),
        (
            parameter("timeout", bool_param=True),
            'infer: the parameter "timeout" is a whole number from 0, True came',
        ),
        (
            request(raw=[b"", b""]),
            "infer: 2 raw_input_contents came for 1 inputs; one each is wanted, in order",
        ),
        (
            request(raw=[b"\0" * 8], fp32_contents=[1, 2]),
            "infer: input 'x' has contents, and there are raw_input_contents; one of the two is wanted",
        ),
        (request(raw=[b"123"]), "infer: input 'x': 3 bytes came; FP32 of shape [2] has 8"),
        (request(), "infer: input 'x' has no data, neither contents.fp32_contents nor raw_input_contents"),
        (request(fp32_contents=[1]), "infer: input 'x': 4 bytes came; FP32 of shape [2] has 8"),
        (
            request(fp64_contents=[1, 2]),
            "infer: input 'x': FP32 data are in fp32_contents, fp64_contents came",
        ),
        (
            request(fp32_contents=[1], fp64_contents=[1, 2]),
            "infer: input 'x': FP32 data are in fp32_contents, fp32_contents and fp64_contents came",
        ),
        (
            request(datatype="BF16", fp32_contents=[1, 2]),
            "infer: input 'x': BF16 has no typed contents in the protocol; send it in raw_input_contents",
        ),
        (
            request(datatype="UINT8", uint_contents=[1, 300]),
            "infer: input 'x': 300 does not fit UINT8, 0 to 255",
        ),
        (
            request(datatype="INT16", int_contents=[1, -32769]),
            "infer: input 'x': -32769 does not fit INT16, -32768 to 32767",
        ),
        (request(datatype="BOOL", bool_contents=[True]), "infer: input 'x': 1 values came; shape [2] has 2"),
        (
            request(datatype="BYTES", bytes_contents=[b"a", b"\xff"]),
            "infer: input 'x': text 1 is no UTF-8: invalid start byte",
        ),
        (
            request(datatype="BYTES", bytes_contents=[b"a"]),
            "infer: input 'x': the bytes hold 1 texts; the shape has 2",
        ),
        (
            request(shape=[-1], fp32_contents=[1]),
            "infer: input 'x': the shape is a list of whole numbers >= 0, [-1] came",
        ),
        (
            request(shape=[0], fp32_contents=[1]),
            "infer: input 'x': shape [0] holds no value; at least one row is wanted",
        ),
        (
            request(datatype="FLOAT", fp32_contents=[1, 2]),
            f"infer: input 'x': unknown datatype 'FLOAT'; known: {', '.join(tensors.DATATYPES)}",
        ),
        (
            request(datatype="", raw=[b""]),
            f"infer: input 'x': unknown datatype ''; known: {', '.join(tensors.DATATYPES)}",
        ),
    ],
)
def test_what_is_refused(made, reason):
    with pytest.raises(ValueError) as caught:
        rpc_content.read_request(made)
    assert str(caught.value) == reason


def test_bytes_that_are_no_message():
    with pytest.raises(ValueError) as caught:
        rpc_content.parse("ModelInferRequest", b"\x0a\xff")
    assert str(caught.value) == "ModelInferRequest: 2 bytes came that are no such message"
    with pytest.raises(ValueError, match="no such message"):
        rpc_content.parse("ModelInferRequest", b"\x0a\x01\xff")  # a name that is no UTF-8


def test_not_a_number_is_a_value_here():
    read = rpc_content.read_request(request(fp32_contents=[np.nan, np.inf])).tensors["x"]
    np.testing.assert_array_equal(read, np.array([np.nan, np.inf], np.float32))
