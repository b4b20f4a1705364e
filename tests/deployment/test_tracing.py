"""Traces: a span for each request, under its sender's, with what it waited for below it."""

import asyncio
import http.server
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.data.tokenizers import Characters
from llmasos_xla.deployment.app import App
from llmasos_xla.deployment.host import Host, Limits
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot

WANTED = "opentelemetry is not installed"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PATH = "/v2/models/m/infer"


@pytest.fixture
def spans():
    pytest.importorskip("opentelemetry.sdk", reason=WANTED)
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    from llmasos_xla.deployment.tracing import Tracing

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Tracing(provider)


@pytest.fixture
def slot(image_model):
    found = Slot("m", Served.of_model(image_model, "m"), delay=0.2, most_rows=4)
    yield found
    found.batcher.close()


@pytest.fixture
def ask(tracing, slot):
    from llmasos_xla.deployment.tracing import Traced

    def ask(*messages, path=PATH, headers=None, app=None, **limits):
        wrapped = Traced(app or App(Host([slot], limits=Limits(**limits))), tracing)

        async def asked():
            transport = httpx.ASGITransport(app=wrapped, client=("127.0.0.1", 1), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await asyncio.gather(*(client.post(path, json=each, headers=headers or {}) for each in messages))

        return [answer.status_code for answer in asyncio.run(asked())]

    return ask


def message(rows=1, **parameters):
    data = np.zeros((rows, 6, 6), int).tolist()
    tensor = {"name": "input", "shape": [rows, 6, 6], "datatype": "UINT8", "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def by_name(spans):
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_request_is_a_span_whose_children_follow_each_other(ask, spans):
    assert ask(message(), headers={"traceparent": PARENT, "tracestate": "a=b", "user-agent": "some/1"}) == [200]
    found = by_name(spans)
    whole = found.pop("POST /v2/models/{name}/infer")
    assert whole.kind.name == "SERVER"
    assert whole.parent.span_id == 0xB7AD6B7169203331
    assert whole.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert whole.context.trace_state["a"] == "b"
    assert dict(whole.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v2/models/{name}/infer",
        "url.path": PATH,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "test",
        "client.address": "127.0.0.1",
        "user_agent.original": "some/1",
        "llmasos.model": "m",
        "llmasos.version": "1",
    }
    assert whole.status.is_unset
    parts = [found.pop(name) for name in ("read", "queue", "run", "write")]
    assert not found
    assert {part.parent.span_id for part in parts} == {whole.context.span_id}
    times = [whole.start_time, *(t for part in parts for t in (part.start_time, part.end_time)), whole.end_time]
    assert times == sorted(times)
    # The first waited for others that did not come.
    assert parts[1].end_time - parts[1].start_time > 0.15e9


def test_a_batch_tells_how_many_rows_ran_together(ask, spans):
    assert ask(message(1), message(3)) == [200, 200]
    runs = [span for span in spans.get_finished_spans() if span.name == "run"]
    assert sorted(span.attributes["llmasos.rows"] for span in runs) == [1, 3]
    assert [span.attributes["llmasos.batch.rows"] for span in runs] == [4, 4]
    assert len({(span.start_time, span.parent.span_id) for span in runs}) == 2


def test_without_a_sender_it_is_a_root(ask, spans):
    assert ask(message(), headers={"traceparent": "no such thing"}) == [200]
    assert by_name(spans)["POST /v2/models/{name}/infer"].parent is None


def test_a_sender_that_keeps_no_trace_gets_none(ask, spans):
    assert ask(message(), headers={"traceparent": PARENT[:-1] + "0"}) == [200]
    assert not spans.get_finished_spans()


def test_what_the_sender_got_wrong_is_no_error_of_the_server(ask, spans):
    assert ask({"inputs": []}, path=f"{PATH[:-6]}/versions/1/infer") == [400]
    assert ask({}, path="/nowhere") == [404]
    (wrong, lost) = spans.get_finished_spans()
    assert (wrong.name, lost.name) == ("POST /v2/models/{name}/versions/{version}/infer", "POST")
    assert wrong.attributes["http.response.status_code"] == 400
    assert "http.route" not in lost.attributes
    assert wrong.status.is_unset
    assert lost.status.is_unset


def test_a_request_whose_time_is_over_waited_and_never_ran(ask, spans):
    assert ask(message(timeout=20_000)) == [504]
    found = by_name(spans)
    assert sorted(found) == ["POST /v2/models/{name}/infer", "queue", "read"]
    whole = found["POST /v2/models/{name}/infer"]
    assert whole.status.status_code.name == "ERROR"
    assert whole.attributes["error.type"] == "504"


def test_a_fault_of_the_model_is_an_error(ask, spans, slot, monkeypatch, caplog):
    def fail(inputs):
        raise MemoryError("no room")

    monkeypatch.setattr(slot.current, "run", fail)
    assert ask(message()) == [500]
    found = by_name(spans)
    assert found["POST /v2/models/{name}/infer"].attributes["error.type"] == "500"
    assert found["run"].end_time <= found["POST /v2/models/{name}/infer"].end_time


def test_a_fault_of_the_application_is_told_and_passed_on(ask, spans):
    async def broken(scope, receive, send):
        raise KeyError("mine")

    assert ask({}, app=broken) == [500]
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == "KeyError"
    assert "http.response.status_code" not in span.attributes


def test_what_asks_about_a_model_is_not_traced(tracing, slot, spans):
    from llmasos_xla.deployment.tracing import Traced

    async def asked():
        transport = httpx.ASGITransport(app=Traced(App(Host([slot])), tracing))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [(await client.get(path)).status_code for path in ("/metrics", "/v2/health/live", "/v2/models/m")]

    assert asyncio.run(asked()) == [200, 200, 200]
    assert not spans.get_finished_spans()


def test_texts_are_a_part_like_others(ask, spans):
    tokenizer = Characters("abcdefgh")
    network = lm.models.gpt2(vocab=8, context=64, width=16, depth=1, heads=2, end=None)
    network.tokenizer = tokenizer
    writing = Slot("w", Served.of_model(network, "w"))
    asked = {"model": "w", "prompt": "abc", "max_tokens": 9, "n": 2}
    for stream in (False, True):
        spans.clear()
        path = "/v1/completions"
        assert ask({**asked, "stream": stream}, app=App(Host([writing])), path=path) == [200]
        found = by_name(spans)
        assert sorted(found) == [f"POST {path}", "queue", "read", "run", "write"]
        assert found[f"POST {path}"].attributes["llmasos.model"] == "w"
        assert dict(found["run"].attributes) == {
            "llmasos.texts": 2, "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 18,
        }  # fmt: skip
        times = [
            t for name in ("read", "queue", "run", "write") for t in (found[name].start_time, found[name].end_time)
        ]
        assert times == sorted(times)
    writing.writer.close()


def test_over_grpc(tracing, slot, spans):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    from starlette.exceptions import HTTPException

    from llmasos_xla.deployment.rpc import Service
    from llmasos_xla.deployment.rpc_messages import message

    service = Service(Host([slot]), tracing)
    request = message("ModelInferRequest")(model_name="m")
    request.inputs.add(name="input", shape=[1, 6, 6], datatype="UINT8")
    request.raw_input_contents.append(bytes(36))
    headers = {b"traceparent": PARENT.encode()}
    asyncio.run(service.answer("ModelInfer", request.SerializeToString(), headers))
    whole = by_name(spans)["inference.GRPCInferenceService/ModelInfer"]
    assert whole.parent.span_id == 0xB7AD6B7169203331
    assert whole.attributes["rpc.response.status_code"] == "OK"
    assert whole.attributes["rpc.system.name"] == "grpc"
    assert by_name(spans)["run"].parent.span_id == whole.context.span_id

    spans.clear()
    with pytest.raises(HTTPException):
        asyncio.run(service.answer("ModelInfer", b"", {}))
    asyncio.run(service.stream_answer(b"", {}))
    asyncio.run(service.answer("ServerLive", b"", {}))
    found = spans.get_finished_spans()
    assert [span.name.rpartition("/")[2] for span in found] == ["ModelInfer", "ModelStreamInfer"]
    assert [span.attributes["rpc.response.status_code"] for span in found] == ["NOT_FOUND", "NOT_FOUND"]
    assert all(span.status.is_unset for span in found)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came.append((self.path, ExportTraceServiceRequest.FromString(content)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_server_sends_its_traces_to_a_collector(image_file, images, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=WANTED)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.came = []
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{collector.server_port}"
            with lm.Deployer(image_file).deploy(wait=False, tracing=url) as server:
                server.predict(images[:2])
        finally:
            collector.shutdown()
            thread.join()
    assert {path for path, _ in collector.came} == {"/v1/traces"}
    resources = [resource for _, request in collector.came for resource in request.resource_spans]
    about = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert about["service.name"] == "llmasos_xla"
    names = [span.name for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v2/models/{name}/infer", "queue", "read", "run", "write"]


def test_a_collector_that_is_away_holds_nobody_up(image_file, image_model, images, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=WANTED)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with lm.Deployer(image_file).deploy(wait=False, tracing="http://127.0.0.1:9/") as server:
        np.testing.assert_array_equal(server.predict(images[:2]), image_model.predict(images[:2]))


def test_an_endpoint_that_is_none(image_file):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=WANTED)
    with pytest.raises(ValueError, match="deploy: tracing is the address of a collector .* 'digits.lmx' came"):
        lm.Deployer(image_file).deploy(tracing="digits.lmx")


def test_off_it_imports_nothing_and_without_the_packages_says_so():
    code = (
        "import sys, llmasos_xla.deployment.server, llmasos_xla.deployment.app; print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    from llmasos_xla.deployment.tracing import start

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ImportError, match=r'tracing needs opentelemetry: pip install "llmasos_xla\[tracing\]"'):
        start()
