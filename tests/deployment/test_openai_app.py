"""OpenAI's addresses over a writer that writes what it is told to: streams, refusals, those who go away."""

import asyncio
import gzip
import threading
import time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

import llmasos_xla as lm
from llmasos_xla.data.tokenizers import Characters
from llmasos_xla.deployment.app import App
from llmasos_xla.deployment.asking import refusal
from llmasos_xla.deployment.batching import ExpiredError, QueueFullError
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.trial import Trial

CHARACTERS = Characters("abcdefghijklmnopqrstuvwxyz .:\n", ["end"])
SIZES = {"vocab": CHARACTERS.size, "context": 64, "width": 16, "depth": 1, "heads": 2, "end": 0}
TEXT = {"model": "m", "prompt": "one", "max_tokens": 20, "seed": 0}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 0}


class Scripted:
    """Writes `text` in the place of a model, an id at a time, then stops; keeps what it was asked for."""

    def __init__(self, text="well. done", error=None, refuses=None, waits=0.0):
        self.text, self.error, self.refuses, self.waits = text, error, refuses, waits
        self.prompts, self.ended = [], threading.Event()

    def submit(self, prompt):
        if self.refuses is not None:
            raise self.refuses
        self.prompts.append(prompt)
        threading.Thread(target=self._write, args=(prompt,), daemon=True).start()

    def _write(self, prompt):
        ids = CHARACTERS.pieces(self.text)
        for count, i in enumerate(ids, 1):
            time.sleep(self.waits)
            if prompt.cancelled:
                self.ended.set()
                return
            prompt.tell([i], "length" if count == prompt.most_new else None, None)
            if count == prompt.most_new:
                return
        prompt.tell([], None if self.error else "stop", self.error)


@pytest.fixture(scope="module")
def served():
    network = lm.models.gpt2(**SIZES)
    network.tokenizer = CHARACTERS
    return Served.of_model(network, "m")


@pytest.fixture
def client_with(served, client_of_slot, monkeypatch):
    """A client of a host for whose model a script writes."""

    def made(script=None, **options):
        monkeypatch.setattr(Slot, "writer", script or Scripted(), raising=False)
        return client_of_slot(Slot("m", served), **options)

    return made


def text(client, **changes):
    return client.request("POST", "/v1/completions", json={**TEXT, **changes})


def chat(client, **changes):
    return client.request("POST", "/v1/chat/completions", json={**CHAT, **changes})


def events(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [part.removeprefix("data: ") for part in parts]


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def test_models_are_listed(client_with, image_model, client_of):
    client = client_with()
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["m"]
    assert client.get("/v1/models/m").json() == listed["data"][0]
    assert error(client.get("/v1/models/x"), 404)["code"] == "model_not_found"
    others = client_of(image_model)
    assert others.get("/v1/models").json()["data"] == []
    assert "is at /v2/models/m" in error(others.get("/v1/models/m"), 404)["message"]


def test_a_text(client_with):
    script = Scripted()
    answer = text(client_with(script), top_k=3, top_p=0.5, temperature=0.7)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["choices"] == [{"index": 0, "text": "well. done", "logprobs": None, "finish_reason": "stop"}]
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}
    assert (found["model"], found["system_fingerprint"]) == ("m", "1")
    (prompt,) = script.prompts
    assert (prompt.ids, prompt.most_new, prompt.ends, prompt.draw) == (CHARACTERS.pieces("one"), 20, (0,), 0)
    assert (prompt.top_k, prompt.top_p, prompt.temperature, prompt.seed) == (3, 0.5, 0.7, 0)


def test_several_texts_of_several_prompts(client_with):
    script = Scripted()
    found = text(client_with(script), prompt=["one", "a"], n=2, echo=True, max_tokens=4).json()
    assert [c["text"] for c in found["choices"]] == ["onewell", "onewell", "awell", "awell"]
    assert [c["finish_reason"] for c in found["choices"]] == ["length"] * 4
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}
    assert [(CHARACTERS.decode(p.ids), p.draw) for p in script.prompts] == [("one", 0), ("one", 1), ("a", 0), ("a", 1)]


def test_prompts_as_ids(client_with):
    ids = CHARACTERS.pieces("one")
    assert text(client_with(), prompt=ids, echo=True).json()["choices"][0]["text"] == "onewell. done"
    assert len(text(client_with(), prompt=[ids, ids]).json()["choices"]) == 2
    assert "got 99 in row 0" in error(text(client_with(), prompt=[99]), 400)["message"]


def test_the_context_bounds_what_is_written(client_with):
    script = Scripted("x" * 80)
    found = text(client_with(script), prompt="a" * 60, max_tokens=50).json()
    assert found["choices"][0]["text"] == "xxxx"
    assert script.prompts[0].most_new == 4
    told = error(text(client_with(), prompt="a" * 64), 400)
    assert (told["param"], told["code"]) == ("prompt", "context_length_exceeded")
    assert "has 64 ids, the model reads 64 at most" in told["message"]
    told = error(text(client_with(), prompt="a" * 20000), 400)
    assert "20000 characters are more than the 64 ids" in told["message"]
    assert chat(client_with(script)).json()["choices"][0]["finish_reason"] == "length"


def test_nothing_is_written_where_nothing_is_wanted(client_with):
    found = text(client_with(Scripted(refuses=RuntimeError())), max_tokens=0, echo=True).json()
    assert found["choices"] == [{"index": 0, "text": "one", "logprobs": None, "finish_reason": "length"}]


@pytest.mark.parametrize(
    ("stop", "left"), [("l", "we"), (["x", ". d"], "well"), ("done", "well. "), ("donee", "well. done")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_it_stops_at_texts(stop, left, stream, client_with):
    script = Scripted()
    answer = text(client_with(script), stop=stop, stream=stream)
    if stream:
        found = [orjson.loads(event)["choices"][0] for event in events(answer)[:-1]]
        assert "".join(piece["text"] for piece in found) == left
        assert found[-1]["finish_reason"] == "stop"
    else:
        assert answer.json()["choices"][0]["text"] == left
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert script.prompts[0].cancelled


def test_a_stream_of_texts(client_with):
    answer = text(client_with(), n=2, echo=True, stream=True, stream_options={"include_usage": True})
    *found, last, end = events(answer)
    assert end == "[DONE]"
    found, last = [orjson.loads(event) for event in found], orjson.loads(last)
    for index in (0, 1):
        mine = [event["choices"][0] for event in found if event["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in mine) == "onewell. done"
        assert [piece["finish_reason"] for piece in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert {event["usage"] for event in found} == {None}
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
    assert len({event["id"] for event in [*found, last]}) == 1
    assert {event["object"] for event in found} == {"text_completion"}


def test_a_conversation(client_with):
    script = Scripted(" ho ho\nuser: and")
    found = chat(client_with(script)).json()
    assert CHARACTERS.decode(script.prompts[0].ids) == "user: hi\nassistant:"
    # The next turn is not its own, nor is the blank behind its name.
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "ho ho"}
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["object"] == "chat.completion"


def test_a_stream_of_a_conversation(client_with):
    *found, end = events(chat(client_with(Scripted(" ho ho")), stream=True))
    assert end == "[DONE]"
    found = [orjson.loads(event) for event in found]
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "ho ho"
    assert (deltas[-1], found[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert all("usage" not in event for event in found)


def test_a_conversation_by_its_template(client_with, served, monkeypatch):
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    monkeypatch.setattr(served.face.model, "chat_template", "{{ messages[0].content * 2 }}: ")
    script = Scripted()
    assert chat(client_with(script)).json()["choices"][0]["message"]["content"] == "well. done"
    assert CHARACTERS.decode(script.prompts[0].ids) == "hihi: "
    monkeypatch.setattr(served.face.model, "chat_template", "{{ raise_exception('no') }}")
    told = error(chat(client_with(script)), 400)
    assert told["message"] == "the model's chat template refuses these messages: no"
    assert told["param"] == "messages"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "llmasos_xla[chat]"' in error(chat(client_with(script)), 501)["message"]


@pytest.mark.parametrize(
    ("raised", "status", "kind", "code"),
    [
        (QueueFullError("all rows are taken", 2.5), 429, "rate_limit_error", "rate_limit_exceeded"),
        (ValueError("the prompt is too long"), 400, "invalid_request_error", None),
        (RuntimeError("broken"), 500, "server_error", None),
    ],
)
def test_what_the_writer_refuses(raised, status, kind, code, client_with):
    client = client_with(Scripted(refuses=raised))
    for stream in (False, True):
        answer = text(client, stream=stream)
        found = error(answer, status)
        assert (found["type"], found["code"]) == (kind, code)
        assert answer.headers.get("retry-after") == ("3" if status == 429 else None)
    assert client.host.slots["m"].refused == (2 if status == 429 else 0)
    assert "broken" not in found["message"]


@pytest.mark.parametrize(
    ("told", "status"),
    [(ExpiredError("its time was over"), 504), (QueueFullError("pushed out", 1.0), 429), (RuntimeError("nan"), 500)],
)
def test_errors_before_the_first_id_have_their_status(told, status, client_with):
    client = client_with(Scripted("", told))
    for stream in (False, True):
        error(text(client, stream=stream), status)
    assert client.host.slots["m"].failures == 2
    assert client.host.inside == 0


def test_errors_after_a_stream_began_are_events(client_with):
    client = client_with(Scripted("well", QueueFullError("pushed out", 1.0), waits=0.01))
    *found, last = events(text(client, stream=True))
    assert "".join(orjson.loads(event)["choices"][0]["text"] for event in found) == "well"
    assert orjson.loads(last)["error"]["type"] == "rate_limit_error"
    assert client.host.slots["m"].failures == 1
    assert error(text(client), 429)


def test_keys_limits_and_the_end_of_the_server(client_with):
    client = client_with(keys=["right"])
    for path in ("/v1/models", "/v1/models/m"):
        assert error(client.get(path), 401)["code"] == "invalid_api_key"
    assert error(text(client), 401)["type"] == "authentication_error"
    headers = {"Authorization": "Bearer right"}
    assert client.request("POST", "/v1/completions", json=TEXT, headers=headers).status_code == 200
    answer = text(client_with(requests=0))
    assert error(answer, 429)
    assert answer.headers["retry-after"] == "1"
    assert error(text(client_with(max_body=10)), 413)
    client = client_with()
    client.host.draining = True
    answer = text(client)
    assert "is stopping" in error(answer, 503)["message"]
    assert answer.headers["retry-after"] == "1"


def test_a_model_that_loads(client_of_slot):
    client = client_of_slot(Slot("m"))
    assert client.get("/v1/models").json()["data"] == []
    assert "is loading" in error(text(client), 503)["message"]


def test_time_that_is_over(client_with):
    script = Scripted("x" * 40, waits=0.02)
    client = client_with(script, seconds=0.1)
    assert error(text(client), 504)["code"] == "timeout"
    assert script.ended.wait(2)
    last = events(text(client, stream=True))[-1]
    assert orjson.loads(last)["error"]["code"] == "timeout"
    assert script.prompts[0].deadline is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_sender_that_goes_away_frees_its_row(stream, served, monkeypatch):
    script = Scripted("x" * 60, waits=0.02)
    monkeypatch.setattr(Slot, "writer", script, raising=False)
    host, sent = Host([Slot("m", served)]), []

    async def ask():
        messages = [{"type": "http.request", "body": orjson.dumps({**TEXT, "max_tokens": 60, "stream": stream})}]

        async def receive():
            if messages:
                return messages.pop()
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await App(host)(scope, receive, send)

    asyncio.run(ask())
    assert script.prompts[0].cancelled
    assert script.ended.wait(2)
    assert host.inside == 0
    assert host.slots["m"].failures == 0
    assert [m["type"] for m in sent].count("http.response.start") == 1


def test_a_version_on_trial_writes_its_share(client_with, served):
    client = client_with()
    verdicts = []
    other = Served.of_model(served.face.model, "m", "2", like=served)
    slot = client.host.slots["m"]
    slot.trial = Trial(other, 0.5, requests=3, judged=lambda *verdict: verdicts.append(verdict))
    told = [text(client).json()["system_fingerprint"] for _ in range(6)]
    assert sorted(told) == ["1"] * 3 + ["2"] * 3
    assert verdicts == [("good", "3 of 3 requests answered")]


def test_figures_count_texts(client_with):
    client = client_with()
    text(client)
    stats = client.host.slots["m"].stats()
    assert (stats["requests"], stats["failures"]) == (1, 0)
    assert stats["latency_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v1/completions", 405, "method GET came at '/v1/completions'; it takes POST"),
        ("POST", "/v1/models", 405, "it takes GET"),
        ("DELETE", "/v1/models/m", 405, "it takes GET"),
        ("GET", "/v1/engines", 404, "there is nothing at '/v1/engines'; known: /v1/models,"),
        ("GET", "/v1/models/m/x", 404, "there is nothing at"),
        ("POST", "/v1/embeddings", 404, "there is nothing at"),
    ],
)
def test_other_addresses(method, path, status, reason, client_with):
    assert reason in error(client_with().request(method, path), status)["message"]


def test_models_that_do_not_write(client_of, image_model, client_of_slot):
    told = error(text(client_of(image_model)), 400)
    assert (told["param"], told["message"]) == (
        "model",
        "model 'm' writes no text; it is Sequential; it answers at /v2/models/m/infer",
    )
    network = lm.models.gpt2(**SIZES)
    assert "came without a tokenizer" in error(text(client_of(network)), 400)["message"]
    assert error(text(client_of(network), model="x"), 404)["param"] == "model"


def test_compressed_bodies_and_other_media(client_with):
    client = client_with()
    headers = {"Content-Encoding": "gzip"}
    answer = client.request("POST", "/v1/completions", content=gzip.compress(orjson.dumps(TEXT)), headers=headers)
    assert answer.status_code == 200
    assert error(client.request("POST", "/v1/completions", data={"a": "b"}), 415)
    assert "no JSON" in error(client.request("POST", "/v1/completions", content=b"{"), 400)["message"]
    assert "is not in the vocabulary" in error(text(client, prompt="ONE"), 400)["message"]
    assert "has no ids" in error(text(client, prompt=""), 400)["message"]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "one"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
    ),
    max_leaves=8,
)
NAMES = ["model", "prompt", "messages", "max_tokens", "n", "stop", "stream", "stream_options", "echo", "top_p", "seed"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=3), chats=st.booleans())
def test_whatever_comes_is_no_fault_of_the_servers(changes, chats, client_with):
    answer = (chat if chats else text)(client_with(Scripted("ho")), **changes)
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        error(answer, answer.status_code)


def test_refusals_of_other_protocols_come_in_this_shape():
    from llmasos_xla.deployment.openai import RefusedError

    found = refusal(QueueFullError("full", 0.2))
    assert isinstance(found, HTTPException)
    told = RefusedError.of(found)
    assert (told.status, told.headers, told.code) == (429, {"Retry-After": "1"}, "rate_limit_exceeded")
