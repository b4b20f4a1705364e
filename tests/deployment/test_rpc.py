"""The gRPC server, asked over a socket: answers equal to `predict`, and every refusal with its code and reason."""

import asyncio
import contextlib
import logging
import queue
import socket
import threading
import time

import numpy as np
import pytest

pytest.importorskip("google.protobuf", reason="the extra grpc is not installed")
pytest.importorskip("grpc", reason="the extra grpc is not installed")

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

import llmasos_xla as lm
from llmasos_xla.deployment import rpc, tensors
from llmasos_xla.deployment.batching import ExpiredError, QueueFullError
from llmasos_xla.deployment.host import Host, Limits
from llmasos_xla.deployment.rpc_messages import HEALTH, METHODS, SERVICE, message
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Answer, Slot


class Running:
    """A server in an event loop of its own thread, and a channel to it."""

    def __init__(self, slots, *, keys=(), tls=None, **limits):
        self.host = Host(slots, limits=Limits(**limits), keys=keys)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = self.run(rpc.serve(self.host, "127.0.0.1:0", tls=tls))
        self.address = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.insecure_channel(self.address)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.channel.close()
        self.run(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def call(self, method, content, service=SERVICE, **options):
        return self.channel.unary_unary(f"/{service}/{method}")(content, timeout=options.pop("timeout", 20), **options)

    def ask(self, method, request=None, **options):
        """Message in, message out."""
        request = message(METHODS[method].request)() if request is None else request
        return message(METHODS[method].answer).FromString(self.call(method, request.SerializeToString(), **options))

    def infer(self, request, **options):
        return self.ask("ModelInfer", request, **options)


def asked(array, name="input", raw=True, **options):
    request = message("ModelInferRequest")(**({"model_name": "m"} | options))
    request.inputs.add(name=name, shape=array.shape, datatype=tensors.datatype_of(array))
    if raw:
        request.raw_input_contents.append(tensors.to_bytes(array))
    return request


def outputs(answer):
    assert len(answer.raw_output_contents) == len(answer.outputs)
    return {
        output.name: tensors.from_bytes(raw, list(output.shape), output.datatype)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


@contextlib.contextmanager
def refused(code, reason=None):
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    assert caught.value.code() == grpc.StatusCode[code], caught.value
    if reason is not None:
        assert caught.value.details() == reason


@pytest.fixture(scope="module")
def running(image_model):
    with Running([Slot("m", Served.of_model(image_model, "m"))]) as running:
        yield running


def test_server_health_and_metadata(running):
    assert running.ask("ServerLive").live
    assert running.ask("ServerReady").ready
    server = running.ask("ServerMetadata")
    assert (server.name, server.version) == ("llmasos_xla", lm.__version__)
    for version in ("", "1"):
        assert running.ask("ModelReady", message("ModelReadyRequest")(name="m", version=version)).ready
        said = running.ask("ModelMetadata", message("ModelMetadataRequest")(name="m", version=version))
        assert (said.name, list(said.versions), said.platform) == ("m", ["1"], "jax")
        assert [(t.name, t.datatype, list(t.shape)) for t in said.inputs] == [("input", "UINT8", [-1, 6, 6, 1])]
        assert [(t.name, t.datatype, list(t.shape)) for t in said.outputs] == [
            ("output", "FP32", [-1, 3]),
            ("label", "BYTES", [-1]),
        ]
    (listed,) = running.ask("RepositoryIndex").models
    assert (listed.name, listed.version, listed.state) == ("m", "1", "READY")


def test_health_as_kubernetes_asks_for_it(running):
    for service in ("", SERVICE):
        content = message("HealthCheckRequest")(service=service).SerializeToString()
        assert running.call("Check", content, HEALTH) == b"\x08\x01"
    with refused("NOT_FOUND", f"unknown service 'x'; this server has '{SERVICE}'"):
        running.call("Check", message("HealthCheckRequest")(service="x").SerializeToString(), HEALTH)


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_answers_are_those_of_predict_bit_for_bit(running, image_model, images, rows):
    expected = image_model.predict(images[:rows])
    found = outputs(running.infer(asked(images[:rows], id="seven")))
    np.testing.assert_array_equal(found["output"], expected)
    assert found["label"].tolist() == [("ant", "bee", "cat")[i] for i in expected.argmax(1)]


def test_typed_contents_give_typed_answers(running, image_model, images):
    request = asked(images[:2], raw=False, id="seven")
    request.inputs[0].contents.uint_contents.extend(images[:2].ravel().tolist())
    answer = running.infer(request)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "seven")
    assert not answer.raw_output_contents
    output, label = answer.outputs
    expected = image_model.predict(images[:2])
    np.testing.assert_array_equal(np.float32(output.contents.fp32_contents).reshape(output.shape), expected)
    assert list(label.contents.bytes_contents) == [(b"ant", b"bee", b"cat")[i] for i in expected.argmax(1)]


def test_requested_outputs_and_versions(running, images):
    request = asked(images[:1], model_version="1")
    request.outputs.add(name="label")
    assert list(outputs(running.infer(request))) == ["label"]
    request.outputs.add(name="lable")
    with refused("INVALID_ARGUMENT", "infer: unknown output 'lable'; did you mean 'label'? Known: label, output"):
        running.infer(request)


def test_several_inputs_and_texts(table_model, text_model, table, texts):
    request = message("ModelInferRequest")(model_name="m")
    for name, array in {
        "kind": table["kind"].to_numpy(object),
        "size": np.array([[1.0], [2.5], [np.nan], [4.0]]),
        "year": np.array([1990, 2000, 2010, 2020]),
    }.items():
        request.inputs.add(name=name, shape=array.shape, datatype=tensors.datatype_of(array))
        request.raw_input_contents.append(tensors.to_bytes(array))
    with Running([Slot("m", Served.of_model(table_model, "m"))]) as running:
        np.testing.assert_array_equal(outputs(running.infer(request))["output"], table_model.predict(table))
        del request.inputs[-1], request.raw_input_contents[-1]
        with refused("INVALID_ARGUMENT", "infer: the inputs year are missing"):
            running.infer(request)
    with Running([Slot("m", Served.of_model(text_model, "m"))]) as running:
        found = outputs(running.infer(asked(np.array(texts, object))))
        np.testing.assert_array_equal(found["output"], text_model.predict(texts))


def test_unknown_models_versions_and_methods(running, images):
    with refused("NOT_FOUND", "unknown model 'n'; this server has 'm'"):
        running.infer(asked(images[:1], model_name="n"))
    for method in ("ModelReady", "ModelMetadata"):
        with refused("NOT_FOUND", "model 'm' has no version '2'; it has '1'"):
            running.ask(method, message(METHODS[method].request)(name="m", version="2"))
    with refused("UNIMPLEMENTED"):
        running.call("ModelConfig", b"")


def test_while_it_loads(image_model, images):
    slot = Slot("m")
    with Running([slot]) as running:
        assert running.ask("ServerLive").live
        assert not running.ask("ServerReady").ready
        assert not running.ask("ModelReady", message("ModelReadyRequest")(name="m")).ready
        assert running.call("Check", b"", HEALTH) == b"\x08\x02"
        with refused("UNAVAILABLE", "model 'm' is loading; ask again") as caught:
            running.infer(asked(images[:1]))
        assert ("grpc-retry-pushback-ms", "1000") in caught.value.trailing_metadata()
        assert [model.state for model in running.ask("RepositoryIndex").models] == ["LOADING"]
        assert not running.ask("RepositoryIndex", message("RepositoryIndexRequest")(ready=True)).models
        slot.put(Served.of_model(image_model, "m"))
        assert running.ask("ServerReady").ready
        assert "output" in outputs(running.infer(asked(images[:1])))
        running.host.draining = True
        assert not running.ask("ModelReady", message("ModelReadyRequest")(name="m")).ready
        with refused("UNAVAILABLE", "the server is stopping; ask another"):
            running.infer(asked(images[:1]))


def test_several_models_and_versions(image_model, text_model, images, texts):
    insects = Slot("insects", Served.of_model(image_model, "insects"))
    insects.put(Served.of_model(image_model, "insects", "2", like=insects.current))
    with Running([insects, Slot("films", Served.of_model(text_model, "films"))]) as running:
        listed = running.ask("RepositoryIndex").models
        assert [(model.name, model.version) for model in listed] == [("insects", "1"), ("insects", "2"), ("films", "1")]
        said = running.ask("ModelMetadata", message("ModelMetadataRequest")(name="insects"))
        assert list(said.versions) == ["1", "2"]
        for version, answered in (("1", "1"), ("2", "2"), ("", "2")):
            request = asked(images[:2], model_name="insects", model_version=version)
            answer = running.infer(request)
            assert answer.model_version == answered
            np.testing.assert_array_equal(outputs(answer)["output"], image_model.predict(images[:2]))
        found = outputs(running.infer(asked(np.array(texts, object), model_name="films")))
        np.testing.assert_array_equal(found["output"], text_model.predict(texts))
        with refused("NOT_FOUND", "model 'insects' has no version '3'; it has '1', '2'"):
            running.infer(asked(images[:1], model_name="insects", model_version="3"))


def test_keys(image_model, images):
    reason = "a key is wanted: Authorization: Bearer KEY"
    with Running([Slot("m", Served.of_model(image_model, "m"))], keys=["open sesame"]) as running:
        assert running.ask("ServerReady").ready
        assert running.call("Check", b"", HEALTH) == b"\x08\x01"
        for metadata in ((), (("authorization", "Bearer sesame"),), (("x-api-key", ""),)):
            with refused("UNAUTHENTICATED", reason):
                running.infer(asked(images[:1]), metadata=metadata)
            with refused("UNAUTHENTICATED", reason):
                running.ask("ModelMetadata", metadata=metadata)
            with refused("UNAUTHENTICATED", reason):
                next(running.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([b""]), metadata=metadata))
        for metadata in ((("authorization", "Bearer open sesame"),), (("x-api-key", "open sesame"),)):
            assert outputs(running.infer(asked(images[:1]), metadata=metadata))


def test_a_stream_goes_on_after_an_error(running, image_model, images):
    requests = [asked(images[:1], id="a"), asked(images[:1, :5], id="b"), asked(images[:3], id="c")]
    contents = [request.SerializeToString() for request in requests]
    contents.insert(1, b"\x0a\xff")
    stream = running.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(contents), timeout=20)
    answers = [message("ModelStreamInferResponse").FromString(content) for content in stream]
    assert [answer.infer_response.id for answer in answers] == ["a", "", "b", "c"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    assert answers[1].error_message == "ModelInferRequest: 2 bytes came that are no such message"
    assert "the model wants" in answers[2].error_message
    found = outputs(answers[3].infer_response)["output"]
    np.testing.assert_array_equal(found, image_model.predict(images[:3]))


@pytest.fixture
def told(image_model):
    """A slot whose model does what it is told, and remembers how it was asked."""

    def make(answer):
        slot = Slot("m", Served.of_model(image_model, "m", "7"))

        async def infer(tensors, outputs=(), **options):
            slot.asked = {"outputs": outputs, **options}
            return Answer(await answer(tensors), slot.current)

        slot.infer = infer
        return slot

    return make


def failing(error):
    async def answer(tensors):
        raise error

    return answer


async def echo(tensors):
    return dict(tensors)


ONE = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ValueError("x is odd"), "INVALID_ARGUMENT", "x is odd"),
        (TypeError("x is no number"), "INVALID_ARGUMENT", "x is no number"),
        (QueueFullError("4 requests wait", 2.5), "RESOURCE_EXHAUSTED", "4 requests wait"),
        (ExpiredError("too late"), "DEADLINE_EXCEEDED", None),
        (TimeoutError(), "DEADLINE_EXCEEDED", "no answer within the time that the request gave it: it runs on"),
    ],
)
def test_what_a_model_raises_has_a_code(told, error, code, reason):
    slot = told(failing(error))
    with Running([slot]) as running, refused(code, reason) as caught:
        running.infer(asked(ONE))
    assert slot.refused == (code == "RESOURCE_EXHAUSTED")
    later = [value for key, value in caught.value.trailing_metadata() if key == "grpc-retry-pushback-ms"]
    assert later == (["3000"] if code == "RESOURCE_EXHAUSTED" else [])
    assert running.host.inside == 0


def test_a_models_fault_is_logged_under_an_id(told, caplog):
    # A KeyError is a LookupError: here it is the model's fault, not an unknown model.
    running = Running([told(failing(KeyError("secret")))])
    with running, caplog.at_level(logging.ERROR), refused("INTERNAL") as caught:
        running.infer(asked(ONE))
    said = caught.value.details()
    assert said.startswith("the model failed on this request; the server's log has the reason under ")
    assert "secret" not in said
    assert said.split()[-1] in caplog.text
    assert "KeyError: 'secret'" in caplog.text


def test_an_output_that_the_protocol_has_no_name_for(told, caplog):
    async def answer(tensors):
        return {"y": np.zeros(1, np.complex64)}

    with Running([told(answer)]) as running, caplog.at_level(logging.ERROR), refused("INTERNAL"):
        running.infer(asked(ONE))
    assert "dtype complex64 has no name in the protocol" in caplog.text


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "line\nand\x00more \ud800"])
def test_long_and_odd_reasons_arrive(told, text):
    with Running([told(failing(ValueError(text)))]) as running, refused("INVALID_ARGUMENT") as caught:
        running.infer(asked(ONE))
    assert caught.value.details()[:5] == text[:5]


def test_priority_and_time_reach_the_model(told):
    slot = told(echo)
    request = asked(ONE, name="x")
    request.parameters["priority"].uint64_param = 2
    with Running([slot], seconds=50.0) as running:
        np.testing.assert_array_equal(outputs(running.infer(request, timeout=15))["x"], ONE)
        assert slot.asked["priority"] == 4
        assert 0 < slot.asked["timeout"] <= 15.5
        # The shorter of what the request says and what its sender waits; else what the server allows.
        request.parameters["timeout"].int64_param = 5_000_000
        running.infer(request, timeout=15)
        assert slot.asked["timeout"] == 5.0
        running.infer(asked(ONE), timeout=None)
        assert slot.asked["timeout"] == 50.0
        assert slot.asked["priority"] == 3
        request.parameters["priority"].int64_param = -1
        with refused("INVALID_ARGUMENT", 'infer: the parameter "priority" is a whole number from 0, -1 came'):
            running.infer(request)


def test_no_more_than_so_many_are_inside(told):
    begun, release = threading.Event(), threading.Event()

    async def slow(tensors):
        begun.set()
        while not release.is_set():
            await asyncio.sleep(0.01)
        return dict(tensors)

    with Running([told(slow)], requests=1) as running:
        future = running.channel.unary_unary(f"/{SERVICE}/ModelInfer").future(asked(ONE).SerializeToString())
        assert begun.wait(10)
        with refused("RESOURCE_EXHAUSTED", "1 requests are inside, which is all that may be; ask again later"):
            running.infer(asked(ONE))
        release.set()
        assert future.result(10)
        assert running.host.refused == 1
        assert running.host.inside == 0


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("datatype", tensors.DATATYPES)
def test_every_datatype_both_ways(echoing, datatype, raw):
    if datatype == "BYTES":
        x = np.array([["a", ""], ["ü", "\0"]], object)
    else:
        x = tensors.from_json([True, False] if datatype == "BOOL" else [0, 100], [2, 1], datatype)
    request = asked(x, name="x", raw=True)
    request.parameters["binary_data_output"].bool_param = raw
    answer = echoing.infer(request)
    # Floats of 16 bits have no typed form.
    assert bool(answer.raw_output_contents) == (raw or datatype in ("FP16", "BF16"))
    if answer.raw_output_contents:
        np.testing.assert_array_equal(outputs(answer)["x"], x)
    else:
        back = message("ModelInferRequest")(model_name="m")
        back.inputs.add().ParseFromString(answer.outputs[0].SerializeToString())
        back.parameters["binary_data_output"].bool_param = True
        np.testing.assert_array_equal(outputs(echoing.infer(back))["x"], x)


@pytest.fixture(scope="module")
def echoing(image_model):
    slot = Slot("m", Served.of_model(image_model, "m"))

    async def infer(tensors, outputs=(), **options):
        return Answer(dict(tensors), slot.current)

    slot.infer = infer
    with Running([slot], body=1_000_000) as running:
        yield running


def test_messages_too_large(echoing):
    fits = np.zeros((1, 200_000), np.float32)
    np.testing.assert_array_equal(outputs(echoing.infer(asked(fits, name="x")))["x"], fits)
    large = asked(np.zeros((1, 1_000_000), np.float32), name="x")
    with refused("RESOURCE_EXHAUSTED"):
        echoing.infer(large)
    # Small on the wire, and as large as before once it is unpacked.
    with refused("RESOURCE_EXHAUSTED"):
        echoing.infer(large, compression=grpc.Compression.Gzip)


def test_many_at_once(running, image_model, images):
    expected = [image_model.predict(images[k : k + 2]) for k in range(16)]
    method = running.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    calls = [method.future(asked(images[k : k + 2]).SerializeToString(), timeout=30) for k in range(16)]
    for call, wanted in zip(calls, expected, strict=True):
        answer = message("ModelInferResponse").FromString(call.result())
        # Together they may run as a batch of another size, whose last bits may differ.
        np.testing.assert_allclose(outputs(answer)["output"], wanted, rtol=1e-5)


def test_deadlines_and_callers_that_leave(told):
    begun, ended = threading.Event(), []

    async def slow(tensors):
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    with Running([told(slow)]) as running:
        with refused("DEADLINE_EXCEEDED"):
            running.infer(asked(ONE), timeout=1.0)
        begun.clear()
        future = running.channel.unary_unary(f"/{SERVICE}/ModelInfer").future(asked(ONE).SerializeToString())
        assert begun.wait(10)
        future.cancel()
        for _ in range(200):
            if len(ended) == 2:
                break
            running.run(asyncio.sleep(0.05))
        # Nobody waits for an answer that nobody reads.
        assert len(ended) == 2
        assert running.ask("ServerLive").live
        assert running.host.inside == 0


def test_stop_lets_requests_end(told):
    begun = threading.Event()

    async def slow(tensors):
        begun.set()
        await asyncio.sleep(0.5)
        return dict(tensors)

    with Running([told(slow)]) as running:
        method = running.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        future = method.future(asked(ONE, name="x").SerializeToString())
        assert begun.wait(10)
        running.run(running.server.stop(5))
        answer = message("ModelInferResponse").FromString(future.result(10))
        np.testing.assert_array_equal(outputs(answer)["x"], ONE)


def test_an_idle_stream_does_not_hold_up_the_end(told):
    contents = queue.SimpleQueue()
    contents.put(asked(ONE, name="x").SerializeToString())

    with Running([told(echo)]) as other:
        stream = other.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(contents.get, None), timeout=60)
        first = message("ModelStreamInferResponse").FromString(next(stream))
        np.testing.assert_array_equal(outputs(first.infer_response)["x"], ONE)
        started = time.monotonic()
        other.run(other.server.stop(20))
        assert time.monotonic() - started < 10
        with refused("UNAVAILABLE", "the server is stopping; ask another"):
            next(stream)
        contents.put(None)


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as caught:
            asyncio.run(rpc.serve(Host(), f"127.0.0.1:{port}"))
    assert str(caught.value) == f"deploy: port {port} on 127.0.0.1 is in use; port=0 takes a free one"


def test_two_servers_do_not_share_a_port(running):
    with pytest.raises(OSError, match="is in use"):
        asyncio.run(rpc.serve(Host(), running.address))


def test_over_tls(told, certificate):
    with Running([told(echo)], tls=rpc.Tls(*certificate)) as running:
        content = asked(ONE, name="x").SerializeToString()
        with grpc.secure_channel(running.address, grpc.ssl_channel_credentials(certificate[1])) as channel:
            answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(content, timeout=20)
            np.testing.assert_array_equal(outputs(message("ModelInferResponse").FromString(answer))["x"], ONE)
        with refused("UNAVAILABLE"):
            running.infer(asked(ONE))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(set(METHODS) - {"ModelStreamInfer"})), st.binary(max_size=60))
def test_random_bytes_harm_nobody(running, method, content):
    try:
        running.call(method, content)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error


SHAPES = st.lists(st.integers(-1, 40) | st.just(2**62), max_size=4)
LISTS = [field.name for field in message("InferTensorContents").DESCRIPTOR.fields]


@st.composite
def malformed(draw):
    """A message of the right form whose names, shapes, datatypes and contents fit now and then."""
    request = message("ModelInferRequest")(model_name=draw(st.sampled_from(["m", "m", "m", "n"])))
    request.model_version = draw(st.sampled_from(["", "1", "9"]))
    for _ in range(draw(st.integers(0, 2))):
        entry = request.inputs.add(name=draw(st.sampled_from(["input", "x", ""])), shape=draw(SHAPES))
        entry.datatype = draw(st.sampled_from([*tensors.DATATYPES, "FLOAT", ""]))
        for field in draw(st.lists(st.sampled_from(LISTS), max_size=2, unique=True)):
            value = draw(st.integers(0, 1))
            values = [{"bool": bool(value), "bytes": b"\xff" * value}.get(field.partition("_")[0], value)]
            getattr(entry.contents, field).extend(values * draw(st.sampled_from([1, 36])))
        if draw(st.booleans()):
            entry.parameters[draw(st.text(st.characters(exclude_categories=["Cs"])))].string_param = "x"
    for _ in range(draw(st.integers(0, 2))):
        request.raw_input_contents.append(draw(st.binary(max_size=40) | st.just(b"\1" * 36)))
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(st.sampled_from(["output", "label", "x"])))
    content = bytearray(request.SerializeToString())
    if content and draw(st.booleans()):
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


@settings(max_examples=300, deadline=None)
@given(malformed())
def test_malformed_requests_are_the_senders_fault(running, content):
    try:
        assert message("ModelInferResponse").FromString(running.call("ModelInfer", content)).outputs
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error
        assert error.details()
