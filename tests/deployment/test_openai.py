"""OpenAI's requests: what is read of them, and that what is not done is refused by name."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.deployment.openai import Head, RefusedError, Usage, read

TEXT = {"model": "m", "prompt": "one"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "n", "stop", "seed", "temperature", "top_p",
    "top_k", "stream", "stream_options", "echo", "best_of", "logprobs", "tools", "logit_bias", "response_format",
    "suffix", "presence_penalty", "user", "other",
]  # fmt: skip


def asked(like, **changes):
    return read(orjson.dumps({**like, **changes}), like is CHAT)


def test_what_a_request_says_by_saying_nothing():
    wanted = asked(TEXT)
    assert wanted._replace(seed=0) == ("m", False, ("one",), (), 1, (), 0, 1.0, None, None, 16, False, False, False)
    assert asked(CHAT).most_new is None
    assert asked(CHAT).messages == ({"role": "user", "content": "hi"},)
    assert asked(TEXT, **dict.fromkeys(("n", "stop", "seed", "temperature", "logprobs", "suffix", "best_of")))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("", ("",)), (["a", "b"], ("a", "b")), ([1, 2], ([1, 2],)), ([[1], [2, 3]], ([1], [2, 3]))],
)
def test_prompts_are_texts_or_ids(prompt, prompts):
    assert asked(TEXT, prompt=prompt).prompts == prompts


def test_sampling():
    wanted = asked(TEXT, temperature=0, top_p=0.5, top_k=3, seed=-1, n=2, best_of=2, max_tokens=7, stop="x", echo=True)
    assert (wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed) == (0.0, 0.5, 3, (1 << 31) - 1)
    assert (wanted.n, wanted.most_new, wanted.stops, wanted.echo) == (2, 7, ("x",), True)
    assert asked(TEXT, top_k=-1, top_p=1).top_k is None
    assert asked(TEXT, top_k=0, top_p=0).top_p == 1e-6
    assert asked(TEXT, seed=5) == asked(TEXT, seed=5)
    assert asked(TEXT).seed != asked(TEXT).seed
    assert asked(CHAT, max_completion_tokens=4).most_new == asked(CHAT, max_tokens=4).most_new == 4
    streamed = asked(CHAT, stream=True, stream_options={"include_usage": True})
    assert (streamed.stream, streamed.usage) == (True, True)


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": parts},
        {"role": "user", "content": "c", "name": "d"},
        {"role": "assistant", "content": "e", "tool_calls": None, "refusal": None},
    ]
    assert asked(CHAT, messages=messages).messages == (
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "c", "name": "d"},
        {"role": "assistant", "content": "e"},
    )


@pytest.mark.parametrize(
    ("like", "changes", "param", "reason"),
    [
        (TEXT, {"model": None}, "model", "model is a text; nothing came"),
        (TEXT, {"prompt": None}, "prompt", "a text, a list of texts, of ids or of lists of ids; nothing came"),
        (TEXT, {"prompt": []}, "prompt", "[] came"),
        (TEXT, {"prompt": [1, "a"]}, "prompt", '[1,"a"] came'),
        (TEXT, {"prompt": [1, -1]}, "prompt", "[1,-1] came"),
        (TEXT, {"prompt": [True]}, "prompt", "[true] came"),
        (TEXT, {"prompt": [[1], []]}, "prompt", "[[1],[]] came"),
        (TEXT, {"prompt": ["a"] * 65, "n": 2}, "prompt", "65 prompts times n=2 are more than 128 texts"),
        (TEXT, {"n": 0}, "n", "n is a whole number from 1 to 128; 0 came"),
        (TEXT, {"n": 1.0}, "n", "1.0 came"),
        (TEXT, {"n": True}, "n", "true came"),
        (TEXT, {"best_of": 2}, "best_of", "best_of is not done"),
        (TEXT, {"temperature": 2.1}, "temperature", "temperature is a number from 0 to 2; 2.1 came"),
        (TEXT, {"temperature": "1"}, "temperature", '"1" came'),
        (TEXT, {"top_p": -0.1}, "top_p", "-0.1 came"),
        (TEXT, {"top_k": 1.5}, "top_k", "1.5 came"),
        (TEXT, {"max_tokens": -1}, "max_tokens", "-1 came"),
        (TEXT, {"stop": ["a"] * 5}, "stop", "stop is a text, or up to 4, none of them empty"),
        (TEXT, {"stop": ""}, "stop", '"" came'),
        (TEXT, {"stop": [1]}, "stop", "[1] came"),
        (TEXT, {"stream": 1}, "stream", "stream is true or false; 1 came"),
        (TEXT, {"stream_options": {}}, "stream_options", "goes with stream=true"),
        (TEXT, {"logprobs": 0}, "logprobs", "logprobs=0 is not done here; leave it out"),
        (TEXT, {"suffix": "end"}, "suffix", 'suffix="end" is not done here'),
        (TEXT, {"presence_penalty": 0.5}, "presence_penalty", "presence_penalty=0.5 is not done here"),
        (TEXT, {"logit_bias": {"5": 1}}, "logit_bias", "is not done here"),
        (TEXT, {"messages": []}, "messages", "completions: unknown parameter 'messages'"),
        (CHAT, {"prompt": "a"}, "prompt", "chat/completions: unknown parameter 'prompt'"),
        (CHAT, {"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        (CHAT, {"logprobs": True}, "logprobs", "logprobs=true is not done here"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools", "is not done here"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format", "is not done here"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "max_tokens is a whole number from 1"),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "say different things"),
        (CHAT, {"messages": "hi"}, "messages", 'messages is a list of at least one message; "hi" came'),
        (CHAT, {"messages": []}, "messages", "[] came"),
        (CHAT, {"messages": ["hi"]}, "messages[0]", "is an object with role and content"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", '"tool" came'),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "is a text; nothing came"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
            'the one that is read here; "image_url" came',
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "is not done here",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(like, changes, param, reason):
    with pytest.raises(RefusedError) as refused:
        asked(like, **changes)
    assert reason in str(refused.value)
    told = refused.value.to_json()["error"]
    assert (refused.value.status, told["param"], told["type"]) == (400, param, "invalid_request_error")


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]},
        {"logprobs": False, "top_logprobs": None, "user": "a", "store": True},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"metadata": {"a": "b"}, "parallel_tool_calls": True, "top_logprobs": 0, "reasoning_effort": None},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_taken(changes):
    assert asked(CHAT, **changes)._replace(seed=0) == asked(CHAT)._replace(seed=0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'"a"', b"\xff", b"[" * 2000])
def test_what_is_no_request(content):
    with pytest.raises(RefusedError, match="the body is"):
        read(content, False)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4), st.booleans())
def test_whatever_comes_is_read_or_refused(changes, chat):
    try:
        wanted = read(orjson.dumps({**(CHAT if chat else TEXT), **changes}), chat)
    except RefusedError as error:
        assert 400 <= error.status < 500
        assert isinstance(error.to_json()["error"]["message"], str)
    else:
        assert 0 <= wanted.temperature <= 2
        assert 1 <= wanted.n <= 128


def test_answers_have_the_protocols_shapes():
    head = Head.of(asked(TEXT), "3")
    answer = head.answer([("a", "stop"), ("b", "length")], Usage(2, 5))
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert [(c["index"], c["text"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert answer["system_fingerprint"] == "3"
    head = Head.of(asked(CHAT), "3")
    assert head.answer([("a", "stop")], Usage(1, 1))["choices"][0]["message"] == {"role": "assistant", "content": "a"}
    assert head.piece(0, "", None, first=True)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert head.piece(0, None, "stop")["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
