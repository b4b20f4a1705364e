"""Clients that nobody here wrote, Triton's over gRPC and over HTTP, against a server process."""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

import llmasos_xla as lm


@pytest.fixture(scope="module")
def server(image_file):
    with lm.Deployer(image_file).deploy(wait=False, grpc_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def clients(server):
    pair = {
        "grpc": over_grpc.InferenceServerClient(server.grpc_url),
        "http": over_http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4),
    }
    yield pair
    for client in pair.values():
        client.close()


@pytest.fixture(params=["grpc", "http"])
def kind(request):
    return {"grpc": over_grpc, "http": over_http}[request.param]


@pytest.fixture
def client(clients, kind):
    return clients["grpc" if kind is over_grpc else "http"]


def tensor(kind, array, datatype="UINT8", **options):
    made = kind.InferInput("input", list(array.shape), datatype)
    made.set_data_from_numpy(array, **options)
    return made


def test_where_it_is(server):
    host, port = server.grpc_url.split(":")
    assert host == "127.0.0.1"
    assert int(port) != server.port


def test_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("insects")
    assert client.is_model_ready("insects", "1")


def test_metadata(client, kind):
    options = {"as_json": True} if kind is over_grpc else {}
    assert client.get_server_metadata(**options)["version"] == lm.__version__
    said = client.get_model_metadata("insects", **options)
    assert said["versions"] == ["1"]
    assert [output["name"] for output in said["outputs"]] == ["output", "label"]
    assert [int(n) for n in said["inputs"][0]["shape"]] == [-1, 6, 6, 1]


@pytest.mark.parametrize("rows", [1, 7])
def test_answers_are_those_of_predict(client, kind, image_model, images, rows):
    expected = image_model.predict(images[:rows])
    labels = [(b"ant", b"bee", b"cat")[i] for i in expected.argmax(1)]
    for x, datatype in ((images[:rows], "UINT8"), (images[:rows].astype(np.float32), "FP32")):
        answer = client.infer("insects", [tensor(kind, x, datatype)], request_id="seven")
        np.testing.assert_array_equal(answer.as_numpy("output"), expected)
        assert answer.as_numpy("label").tolist() == labels
        said = answer.get_response()
        assert (said["id"] if isinstance(said, dict) else said.id) == "seven"


def test_requested_outputs_and_options(client, kind, images):
    options = {"model_version": "1", "priority": 1, "timeout": 5_000_000, "headers": {"who": "me"}}
    wanted = [kind.InferRequestedOutput("label")]
    answer = client.infer("insects", [tensor(kind, images[:2])], outputs=wanted, parameters={"a": "b"}, **options)
    assert answer.as_numpy("label").shape == (2,)
    assert answer.as_numpy("output") is None


def test_json_both_ways(clients, image_model, images):
    x = tensor(over_http, images[:2], binary_data=False)
    outputs = [over_http.InferRequestedOutput(name, binary_data=False) for name in ("output", "label")]
    answer = clients["http"].infer("insects", [x], outputs=outputs)
    np.testing.assert_array_equal(answer.as_numpy("output"), image_model.predict(images[:2]))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed(clients, image_model, images, algorithm):
    expected = image_model.predict(images)
    answer = clients["grpc"].infer("insects", [tensor(over_grpc, images)], compression_algorithm=algorithm)
    np.testing.assert_array_equal(answer.as_numpy("output"), expected)
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    answer = clients["http"].infer("insects", [tensor(over_http, images)], **options)
    np.testing.assert_array_equal(answer.as_numpy("output"), expected)


def test_which_models_there_are(client, kind):
    index = client.get_model_repository_index()
    (listed,) = index if kind is over_http else index.models
    name, state = (listed["name"], listed["state"]) if kind is over_http else (listed.name, listed.state)
    assert (name, state) == ("insects", "READY")


class Answers(queue.SimpleQueue):
    """What the client calls with answers as they come."""

    def __call__(self, result, error):
        self.put((result, error))


def test_asynchronous(clients, image_model, images):
    expected = image_model.predict(images[:1])
    answers = Answers()
    clients["grpc"].async_infer("insects", [tensor(over_grpc, images[:1])], answers)
    answer, error = answers.get(timeout=20)
    assert error is None
    np.testing.assert_array_equal(answer.as_numpy("output"), expected)
    pending = [clients["http"].async_infer("insects", [tensor(over_http, images[:1])]) for _ in range(4)]
    for one in pending:
        np.testing.assert_allclose(one.get_result().as_numpy("output"), expected, rtol=1e-5)


def test_asyncio(server, image_model, images):
    async def ask():
        async with over_grpc_aio.InferenceServerClient(server.grpc_url) as client:
            asked = [client.infer("insects", [tensor(over_grpc, images[k : k + 1])]) for k in range(4)]
            return [answer.as_numpy("output") for answer in await asyncio.gather(*asked)]

    for k, answer in enumerate(asyncio.run(ask())):
        # Together they may run as a batch of another size, whose last bits may differ.
        np.testing.assert_allclose(answer, image_model.predict(images[k : k + 1]), rtol=1e-5)


def test_stream(server, image_model, images):
    answers = Answers()
    with over_grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(answers)
        client.async_stream_infer("insects", [tensor(over_grpc, images[:2])], request_id="a")
        client.async_stream_infer("insects", [tensor(over_grpc, images[:2, :5])], request_id="b")
        client.async_stream_infer("insects", [tensor(over_grpc, images[:3])], request_id="c")
        found = [answers.get(timeout=20) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in found] == [True, False, True]
    assert "the model wants" in str(found[1][1])
    assert found[2][0].get_response().id == "c"
    np.testing.assert_array_equal(found[2][0].as_numpy("output"), image_model.predict(images[:3]))


def test_what_is_refused(client, kind, images):
    x = tensor(kind, images[:1])
    for options, reason in (
        ({"model_name": "n"}, "unknown model 'n'; this server has 'insects'"),
        ({"model_name": "insects", "model_version": "2"}, "model 'insects' has no version '2'; it has '1'"),
        ({"inputs": [tensor(kind, images[:1, :5])]}, "the model wants"),
        ({"outputs": [kind.InferRequestedOutput("z")]}, "infer: unknown output 'z'; Known: label, output"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(**({"model_name": "insects", "inputs": [x]} | options))
        assert reason in caught.value.message()
        codes = {"404": "NOT_FOUND", "400": "INVALID_ARGUMENT"}
        code = codes["404" if "model_name" in options else "400"]
        if kind is over_grpc:
            assert caught.value.status() == f"StatusCode.{code}"
        else:
            assert codes[caught.value.status()] == code


def test_texts_and_tables(text_model, table_model, table, texts, tmp_path):
    text_model.save(tmp_path / "text.h5")
    with lm.Deployer(tmp_path / "text.h5").deploy(wait=False, grpc_port=0) as server:
        with over_grpc.InferenceServerClient(server.grpc_url) as client:
            answer = client.infer("text", [tensor(over_grpc, np.array(texts, object), "BYTES")])
            np.testing.assert_array_equal(answer.as_numpy("output"), text_model.predict(texts))
        with over_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            for binary in (True, False):
                x = tensor(over_http, np.array(texts, object), "BYTES", binary_data=binary)
                np.testing.assert_array_equal(client.infer("text", [x]).as_numpy("output"), text_model.predict(texts))


def test_a_grpc_port_in_use(server, image_file):
    port = int(server.grpc_url.split(":")[1])
    with pytest.raises(OSError) as caught:
        lm.Deployer(image_file).deploy(grpc_port=port)
    assert str(caught.value) == f"deploy: port {port} on 127.0.0.1 is in use; port=0 takes a free one"
    with pytest.raises(ValueError, match="deploy: grpc_port is a whole number from 0 to 65535, 70000 came"):
        lm.Deployer(image_file).deploy(grpc_port=70000)


@pytest.mark.skipif(os.name != "posix", reason="kills by a signal")
def test_a_server_that_is_killed_comes_back_where_it_was(image_file, image_model, images):
    with lm.Deployer(image_file).deploy(wait=False, grpc_port=0, restart=True) as server:
        address, before = server.grpc_url, server.pid
        os.kill(before, signal.SIGKILL)
        until = time.monotonic() + 60
        while (server.restarts == 0 or not server.ready()) and time.monotonic() < until:
            time.sleep(0.05)
        assert server.pid != before
        assert server.grpc_url == address
        with over_grpc.InferenceServerClient(address) as client:
            answer = client.infer("insects", [tensor(over_grpc, images[:2])])
        np.testing.assert_array_equal(answer.as_numpy("output"), image_model.predict(images[:2]))


@pytest.mark.skipif(os.name != "posix", reason="stops by a signal")
def test_a_server_that_is_told_to_stop_answers_what_it_has(image_file, images):
    command = [sys.executable, "-m", "llmasos_xla.deployment.server", str(image_file), "--name", "m", "--port", "0"]
    process = subprocess.Popen([*command, "--grpc-port", "0"], stdout=subprocess.PIPE, text=True)
    with process:
        ports = {}
        while "ready" not in ports:
            ports |= json.loads(process.stdout.readline())
        stats = f"http://127.0.0.1:{ports['port']}/v2/stats"
        with over_grpc.InferenceServerClient(f"127.0.0.1:{ports['grpc_port']}") as client:
            answers = Answers()
            client.async_infer("m", [tensor(over_grpc, np.concatenate([images] * 2000))], answers)
            while answers.empty() and not httpx.get(stats).json()["inside"]:
                pass
            process.send_signal(signal.SIGTERM)
            result, error = answers.get(timeout=60)
            assert error is None, str(error)
            assert result.as_numpy("output").shape == (80_000, 3)
        assert process.wait(30) in (0, -signal.SIGTERM)
