"""The application: the protocol's routes, answers equal to `predict`, and every refusal with its reason."""

import gzip
import threading
import zlib

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.deployment import protocol
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot


def row(images, n=1, **changes):
    entry = {"name": "input", "shape": [n, 6, 6], "datatype": "UINT8", "data": images[:n].ravel().tolist()}
    return {k: v for k, v in (entry | changes).items() if v is not ...}


def asked(images, n=1, **changes):
    return {"inputs": [row(images, n, **changes)]}


def output(answer, name="output"):
    assert answer.status_code == 200, answer.text
    found = next(o for o in answer.json()["outputs"] if o["name"] == name)
    dtype = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[found["datatype"]]
    return np.array(found["data"], dtype).reshape(found["shape"])


def test_server_health_and_metadata(client):
    import llmasos_xla as lm

    assert client.get("/v2").json() == {
        "name": "llmasos_xla",
        "version": lm.__version__,
        "extensions": ["binary_tensor_data"],
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True, "state": "ready"}
    for path in ("/v2/models/m", "/v2/models/m/versions/1"):
        assert client.get(f"{path}/ready").json() == {"ready": True}
        assert client.get(path).json() == {
            "name": "m",
            "versions": ["1"],
            "platform": "jax",
            "inputs": [{"name": "input", "datatype": "UINT8", "shape": [-1, 6, 6, 1]}],
            "outputs": [
                {"name": "output", "datatype": "FP32", "shape": [-1, 3]},
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
            ],
            "parameters": {"labels": ["ant", "bee", "cat"]},
        }


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_answers_are_those_of_predict_bit_for_bit(client, image_model, images, rows):
    expected = image_model.predict(images[:rows])
    answer = client.infer(asked(images, rows))
    np.testing.assert_array_equal(output(answer), expected)
    assert output(answer, "label").tolist() == [("ant", "bee", "cat")[i] for i in expected.argmax(1)]
    assert answer.json()["model_name"] == "m"
    assert answer.json()["model_version"] == "1"
    assert "id" not in answer.json()


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2, 6, 6, 1]},
        {"shape": [2, 36]},
        {"datatype": "FP32"},
        {"datatype": "INT64"},
        {"parameters": {"anything": [1, {}]}},
    ],
)
def test_inputs_are_taken_as_predict_takes_them(client, image_model, images, changes):
    expected = image_model.predict(images[:2])
    np.testing.assert_array_equal(output(client.infer(asked(images, 2, **changes))), expected)
    nested = images[:2].reshape(changes.get("shape", (2, 6, 6))).tolist()
    np.testing.assert_array_equal(output(client.infer(asked(images, 2, data=nested, **changes))), expected)


def test_id_versions_and_requested_outputs(client, images):
    path = "/v2/models/m/versions/1/infer"
    answer = client.infer({"id": "seven", "outputs": [{"name": "label"}], **asked(images)}, path).json()
    assert answer["id"] == "seven"
    assert [o["name"] for o in answer["outputs"]] == ["label"]
    both = client.infer({"outputs": [], **asked(images)}).json()
    assert [o["name"] for o in both["outputs"]] == ["output", "label"]


def test_binary_tensors_both_ways(client, image_model, images):
    body = protocol.write_request({"input": images[:3]}, ["output"])
    answer = client.request("POST", "/v2/models/m/infer", content=body.content, headers=body.headers)
    found = protocol.read_answer(answer.content, answer.headers[protocol.JSON_LENGTH])
    np.testing.assert_array_equal(found["output"], image_model.predict(images[:3]))
    assert answer.headers["content-type"] == "application/octet-stream"
    # Each output may have a form of its own.
    message = {**asked(images), "outputs": [{"name": "output"}, {"name": "label", "parameters": {"binary_data": True}}]}
    answer = client.infer(message)
    found = protocol.read_answer(answer.content, answer.headers[protocol.JSON_LENGTH])
    assert found["label"].dtype == object
    assert found["output"].shape == (1, 3)


def test_text_goes_as_bytes(client_of, text_model, texts):
    client = client_of(text_model)
    assert client.get("/v2/models/m").json()["inputs"] == [{"name": "input", "datatype": "BYTES", "shape": [-1]}]
    answer = client.infer({"inputs": [{"name": "input", "shape": [4], "datatype": "BYTES", "data": texts}]})
    expected = text_model.predict(texts)
    np.testing.assert_array_equal(output(answer), expected)
    np.testing.assert_array_equal(output(answer, "label"), (expected[:, 0] > 0.5).astype(np.int64))
    refused = client.infer({"inputs": [{"name": "input", "shape": [1], "datatype": "FP32", "data": [1.5]}]})
    assert refused.status_code == 400
    assert "text is wanted" in refused.json()["error"]


def test_a_table_has_an_input_a_column(client_of, table_model, table):
    client = client_of(table_model)
    assert client.get("/v2/models/m").json()["inputs"] == [
        {"name": "size", "datatype": "FP64", "shape": [-1]},
        {"name": "year", "datatype": "FP64", "shape": [-1]},
        {"name": "kind", "datatype": "BYTES", "shape": [-1]},
    ]
    assert [o["name"] for o in client.get("/v2/models/m").json()["outputs"]] == ["output"]
    inputs = [
        {"name": "kind", "shape": [4], "datatype": "BYTES", "data": ["x", "y", "x", None]},
        {"name": "size", "shape": [4, 1], "datatype": "FP64", "data": [1.0, 2.5, None, 4.0]},
        {"name": "year", "shape": [4], "datatype": "INT64", "data": [1990, 2000, 2010, 2020]},
    ]
    table.loc[3, "kind"] = None
    np.testing.assert_array_equal(output(client.infer({"inputs": inputs})), table_model.predict(table))
    short = client.infer({"inputs": [*inputs[:2], inputs[2] | {"shape": [3], "data": [1, 2, 3]}]})
    assert short.json()["error"] == (
        "infer: the columns have different numbers of rows: {'kind': 4, 'size': 4, 'year': 3}"
    )
    assert client.infer({"inputs": inputs[:2]}).json()["error"] == "infer: the inputs year are missing"
    unknown = client.infer({"inputs": [*inputs, inputs[0] | {"name": "knd"}]})
    assert unknown.json()["error"] == "infer: unknown input 'knd'; did you mean 'kind'? Known: kind, size, year"


def test_series_of_any_length(client_of, series_model):
    client = client_of(series_model)
    assert client.get("/v2/models/m").json()["inputs"][0]["shape"] == [-1, -1, 2]
    x = np.ones((2, 5, 2), np.float32)
    message = {"inputs": [{"name": "input", "shape": [2, 5, 2], "datatype": "FP32", "data": x.tolist()}]}
    answer = client.infer(message)
    np.testing.assert_array_equal(output(answer), series_model.predict(x))
    assert output(answer, "label").dtype == np.int64
    short = {"inputs": [{"name": "input", "shape": [1, 2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    refused = client.infer(short)
    assert refused.status_code == 400, refused.text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({}, 'infer: the request has no "inputs": [{"name", "shape", "datatype", "data"}, ...]'),
        ({"inputs": []}, 'infer: the request has no "inputs": [{"name", "shape", "datatype", "data"}, ...]'),
        ([1], 'infer: the body is an object such as {"inputs": [...]}'),
        ({"inputs": [1]}, 'infer: each input is an object with a "name"'),
        ({"inputs": [{"name": 1}]}, 'infer: each input is an object with a "name"'),
        ({"inputs": [{"name": "input"}]}, 'infer: input \'input\' has no "shape" and no "datatype"'),
        ({"data": ...}, "infer: input 'input' has no \"data\""),
        ({"name": "x"}, "infer: unknown input 'x'; Known: input"),
        ({"shape": [1, 6, 5]}, "infer: input 'input': 36 values came; shape [1, 6, 5] has 30"),
        ({"data": [0] * 35}, "infer: input 'input': 35 values came; shape [1, 6, 6] has 36"),
        ({"shape": [36]}, "infer: 'input': x has shape (36,)"),
        ({"shape": [6, 6]}, "infer: 'input': x has shape (6, 6), which is one sample"),
        ({"shape": [], "data": [1]}, "infer: 'input': a single number came; (rows, 6, 6, 1) is wanted"),
        ({"shape": [0, 6, 6], "data": []}, "infer: input 'input': shape [0, 6, 6] holds no value"),
        (
            {"shape": [1, 5, 5], "data": [0] * 25},
            "infer: 'input': x has shape (1, 5, 5), the model wants (rows, 6, 6, 1)",
        ),
        ({"datatype": "INT9"}, "infer: input 'input': unknown datatype 'INT9'; known: BOOL, UINT8"),
        ({"datatype": "BYTES", "data": ["a"] * 36}, "infer: 'input': text came ('a') where numbers"),
        ({"datatype": "FP32", "data": [None] * 36}, "infer: 'input': 36 NaN of 36 values, the first in row 0"),
        ({"data": [256] * 36}, "infer: input 'input': 256 does not fit UINT8, 0 to 255"),
        ({"parameters": []}, 'infer: "parameters" is an object'),
        ({"parameters": {"binary_data_size": 36}}, "infer: input 'input': binary_data_size is 36; 0 bytes are there"),
        ({"parameters": {"binary_data_size": "x"}}, "infer: input 'input': binary_data_size is x; 0 bytes are there"),
    ],
)
def test_bad_requests_are_told_the_reason(client, images, message, reason):
    if isinstance(message, dict) and "inputs" not in message and message:
        message = asked(images, **message)
    answer = client.request("POST", "/v2/models/m/infer", content=orjson.dumps(message))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(reason)
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"outputs": [{"name": "logits"}]}, "infer: unknown output 'logits'; Known: label, output"),
        ({"outputs": {"name": "label"}}, 'infer: "outputs" is a list of {"name"}'),
        ({"outputs": ["label"]}, 'infer: each of "outputs" is an object with a "name"'),
        ({"id": 7}, 'infer: "id" is a string'),
        ({"parameters": 1}, 'infer: "parameters" is an object'),
    ],
)
def test_bad_messages_are_told_the_reason(client, images, more, reason):
    answer = client.infer({**asked(images), **more})
    assert (answer.status_code, answer.json()) == (400, {"error": reason})


def test_an_input_that_comes_twice(client, images):
    answer = client.infer({"inputs": [row(images), row(images)]})
    assert answer.json() == {"error": "infer: input 'input' comes twice"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "infer: the body is no JSON: "),
        (b"{", "infer: the body is no JSON: "),
        (b"\xff\xfe", "infer: the body is no JSON: "),
        (b'{"inputs": [NaN]}', "JSON has no NaN and no Infinity"),
        (b'{"inputs": [-Infinity]}', "JSON has no NaN and no Infinity"),
        (b'{"inputs": [1e999]}', "number is infinity"),
        (b"[" * 100_000, "depth limit exceeded"),
        (b'{"inputs":' * 50_000, "depth limit exceeded"),
        (b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}", 'infer: each input is an object with a "name"'),
    ],
)
def test_what_is_no_json_is_refused(client, body, reason):
    answer = client.request("POST", "/v2/models/m/infer", content=body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


def test_deeply_nested_data_are_refused(client, images):
    deep = 36.0
    for _ in range(900):
        deep = [deep]
    answer = client.infer(asked(images, data=[deep] * 36))
    assert answer.status_code == 400
    assert (
        answer.json()["error"] == "infer: input 'input': the data have length 36 at axis 0; shape [1, 6, 6] has 1 there"
    )


@pytest.mark.parametrize("length", ["-1", "1e3", "99999", "9" * 30, "\u0663"])
def test_a_wrong_json_length_is_refused(client, images, length):
    content, headers = orjson.dumps(asked(images)), {protocol.JSON_LENGTH: length.encode()}
    answer = client.request("POST", "/v2/models/m/infer", content=content, headers=headers)
    assert answer.status_code == 400
    assert protocol.JSON_LENGTH in answer.json()["error"]


def test_bytes_that_belong_to_no_tensor_are_refused(client, images):
    content = orjson.dumps(asked(images))
    headers = {protocol.JSON_LENGTH: str(len(content))}
    answer = client.request("POST", "/v2/models/m/infer", content=content + b"more", headers=headers)
    assert answer.json() == {"error": "infer: 4 bytes are left over behind the last tensor"}


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v2/models/n", 404, "unknown model 'n'; this server has 'm'"),
        ("POST", "/v2/models/n/infer", 404, "unknown model 'n'; this server has 'm'"),
        ("GET", "/v2/models/n/ready", 404, "unknown model 'n'; this server has 'm'"),
        ("GET", "/v2/models/m/versions/2", 404, "model 'm' has no version '2'; it has '1'"),
        ("GET", "/v1", 404, "there is nothing at '/v1'; known: /v1/models, /v1/completions"),
        ("GET", "/page", 404, "there is nothing at '/page'; known: /v1/models"),
        ("GET", "/v2/models/m/infer", 405, "method GET came at '/v2/models/m/infer'; it takes POST"),
        ("DELETE", "/v2/models/m", 405, "method DELETE came at '/v2/models/m'; it takes "),
    ],
)
def test_wrong_addresses_and_methods(client, method, path, status, reason):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(reason)
    assert (status == 405) == ("allow" in answer.headers)


def test_media_types(client, images):
    content = orjson.dumps(asked(images))

    def status(**headers):
        sent = {k.replace("_", "-"): v for k, v in headers.items()}
        answer = client.request("POST", "/v2/models/m/infer", content=content, headers=sent)
        return answer.status_code, answer.json().get("error")

    assert status()[0] == 200
    assert status(Content_Type="Application/JSON; charset=utf-8")[0] == 200
    assert status(Content_Type="application/x-www-form-urlencoded") == (
        415,
        "media type 'application/x-www-form-urlencoded' came, application/json or application/octet-stream is wanted; "
        "name it in Content-Type",
    )
    known = "identity, gzip, x-gzip, deflate"
    assert status(Content_Encoding="zstd") == (415, f"content encoding 'zstd' came; known: {known}")


def test_a_body_too_large_is_refused_whether_or_not_it_says_so(client_of, image_model, images):
    client = client_of(image_model, max_body=1000)
    content = orjson.dumps(asked(images, 40))
    error = "the body is larger than 1000 bytes; send fewer rows a request, or start the server with max_body="

    async def unsaid():
        yield content

    for body in (content, unsaid()):
        answer = client.request("POST", "/v2/models/m/infer", content=body)
        assert (answer.status_code, answer.json()) == (413, {"error": error})
    assert client.infer(asked(images)).status_code == 200


def test_compressed_bodies(client_of, image_model, images):
    client = client_of(image_model, max_body=100_000)

    def ask(content, coding):
        return client.request("POST", "/v2/models/m/infer", content=content, headers={"Content-Encoding": coding})

    body = orjson.dumps(asked(images, 5))
    for coding, packed in (("gzip", gzip.compress(body)), ("Deflate", zlib.compress(body))):
        np.testing.assert_array_equal(output(ask(packed, coding)), image_model.predict(images[:5]))
    answer = ask(gzip.compress(b" " * 1_000_000), "gzip")
    error = "the body is larger than 100000 bytes; send fewer rows a request, or start the server with max_body="
    assert (answer.status_code, answer.json()) == (413, {"error": error})
    answer = ask(gzip.compress(body)[:-9], "gzip")
    assert (answer.status_code, answer.json()) == (400, {"error": "infer: the body is gzip that is cut off"})


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, LookupError, TimeoutError])
def test_a_fault_of_the_model_is_a_500_with_an_id_in_the_log(client_of, image_model, images, caplog, monkeypatch, kind):
    def fail(self, inputs):
        raise kind("secret")

    monkeypatch.setattr(Served, "run", fail)
    answer = client_of(image_model).infer(asked(images))
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error.startswith("the model failed on this request; the server's log has the reason under ")
    assert "secret" not in answer.text
    assert error.split()[-1] in caplog.text
    assert f"{kind.__name__}: secret" in caplog.text


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError])
def test_a_fault_in_telling_the_outputs_is_the_models_too(client_of, image_model, images, caplog, monkeypatch, kind):
    client = client_of(image_model)
    slot = client.host.slot("m")

    def fail(found, wanted):
        raise kind("secret")

    monkeypatch.setattr(slot.find().face, "finish", fail)
    answer = client.infer(asked(images))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"].split()[-1] in caplog.text
    assert "secret" in caplog.text
    assert (slot.requests, slot.failures) == (1, 1)


def test_nan_outputs_are_told_and_never_null(client, images, monkeypatch):
    monkeypatch.setattr(Served, "run", lambda self, inputs: {"output": np.full((1, 3), np.nan, np.float32)})
    answer = client.infer(asked(images))
    assert answer.status_code == 500
    assert answer.json()["error"] == (
        "infer: the model's 'output' holds NaN or infinity, which JSON cannot carry; ask for binary data to see it"
    )
    assert client.infer({**asked(images), "parameters": {"binary_data_output": True}}).status_code == 200


def test_the_page_is_whole_in_itself(client):
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http-equiv", "")


def test_figures_for_prometheus(client_of, image_model, images):
    from prometheus_client.parser import text_string_to_metric_families

    client = client_of(image_model)
    for rows in (1, 3):
        assert client.infer(asked(images, rows)).status_code == 200
    assert client.infer(asked(images, shape=[1, 5, 5])).status_code == 400
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["llmasos_requests_total", "m"] == 2
    assert found["llmasos_rows_total", "m"] == 4
    assert found["llmasos_request_seconds_count", "m"] == found["llmasos_request_seconds_bucket", "+Inf", "m"] == 2
    assert found["llmasos_version_info", "m", "1"] == 1
    assert found["llmasos_ready",] == 1
    assert found["llmasos_weight_bytes", "m"] == sum(a.nbytes for a in image_model.variables.params.values())


def test_keys(images, image_model, client_of):
    client = client_of(image_model, keys=("s3cret", "other"))
    assert client.get("/v2/health/ready").status_code == 200
    for path in ("/v2", "/v2/models/m", "/metrics", "/v2/stats"):
        assert client.get(path).status_code == 401
    answer = client.infer(asked(images))
    assert (answer.status_code, answer.json()) == (401, {"error": "a key is wanted: Authorization: Bearer KEY"})
    for headers, status in (
        ({"Authorization": "Bearer s3cret"}, 200),
        ({"X-API-Key": "other"}, 200),
        ({"Authorization": "Bearer s3cre"}, 401),
        ({"Authorization": "Basic s3cret"}, 401),
        ({"X-API-Key": ""}, 401),
    ):
        content = orjson.dumps(asked(images))
        assert client.request("POST", "/v2/models/m/infer", content=content, headers=headers).status_code == status


def test_too_many_inside_are_told_when_to_come_back(client_of, image_model, images):
    client = client_of(image_model, requests=0)
    answer = client.infer(asked(images))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


def test_priority_and_timeout(client, images):
    for name in ("priority", "timeout"):
        answer = client.infer({**asked(images), "parameters": {name: -1}})
        assert answer.status_code == 400
        assert answer.json()["error"] == f'infer: the parameter "{name}" is a whole number from 0, -1 came'
    assert client.infer({**asked(images), "parameters": {"priority": 1, "timeout": 60_000_000}}).status_code == 200


def test_a_request_that_takes_too_long_is_told_so(client_of, image_model, images, monkeypatch):
    go = threading.Event()

    def wait(self, inputs):
        assert go.wait(20)
        return {"output": np.zeros((1, 3), np.float32)}

    monkeypatch.setattr(Served, "run", wait)
    answer = client_of(image_model).infer({**asked(images), "parameters": {"timeout": 50_000}})
    go.set()
    assert answer.status_code == 504
    assert answer.json()["error"].startswith("no answer within the time that the request gave it")


def test_a_server_that_stops_takes_no_more(client_of, image_model, images):
    client = client_of(image_model)
    client.host.draining = True
    assert client.infer(asked(images)).status_code == 503
    assert client.get("/v2/health/ready").json() == {"ready": False, "state": "draining"}


def test_while_it_loads(client_of_slot, images):
    client = client_of_slot(Slot("m"))
    assert client.get("/v2/health/live").status_code == 200
    for path, more in (("/v2/health/ready", {"state": "loading"}), ("/v2/models/m/ready", {})):
        assert (client.get(path).status_code, client.get(path).json()) == (503, {"ready": False, **more})
    answer = client.infer(asked(images))
    assert (answer.status_code, answer.json()) == (503, {"error": "model 'm' is loading; ask again"})
    assert answer.headers["retry-after"] == "1"


def test_sixteen_threads_at_once_get_their_own_answers(client, image_model, images):
    expected = image_model.predict(images)
    found = {}

    def ask(k):
        found[k] = [output(client.infer(asked(images[k + i :]))) for i in range(4)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, answers in found.items():
        # One row and forty run different programs, which may differ in the last bits.
        np.testing.assert_allclose(np.concatenate(answers), expected[k : k + 4], rtol=1e-5)
    assert len(found) == 16


def test_health_answers_while_the_model_computes(client, images, monkeypatch):
    computing, may_end = threading.Event(), threading.Event()

    def wait(self, inputs):
        computing.set()
        assert may_end.wait(20)
        return {"output": np.zeros((1, 3), np.float32)}

    monkeypatch.setattr(Served, "run", wait)
    thread = threading.Thread(target=client.infer, args=(asked(images),))
    thread.start()
    assert computing.wait(20)
    assert client.get("/v2/health/ready").status_code == 200
    may_end.set()
    thread.join()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


odd_messages = given(
    changes=st.dictionaries(keys, json_values, min_size=1),
    more=st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), json_values),
)


def never_down(client, images, changes, more):
    body = orjson.dumps({**asked(images, **changes), **more})
    answer = client.request("POST", "/v2/models/m/infer", content=body)
    assert answer.status_code in (200, 400), answer.text


@settings(max_examples=150, deadline=None)
@odd_messages
def test_no_message_brings_it_down(client, images, changes, more):
    never_down(client, images, changes, more)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@odd_messages
def test_two_thousand_messages_do_not_bring_it_down(client, images, changes, more):
    never_down(client, images, changes, more)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.none() | st.integers(0, 70))
def test_no_bytes_bring_it_down(client, body, length):
    headers = {} if length is None else {protocol.JSON_LENGTH: str(length)}
    assert client.request("POST", "/v2/models/m/infer", content=body, headers=headers).status_code == 400
