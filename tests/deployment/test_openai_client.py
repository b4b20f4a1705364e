"""The package `openai`, which nobody here wrote, against a server process: it gets what `lm.generate` writes."""

import concurrent.futures
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.data.tokenizers import Characters
from llmasos_xla.deployment.control import ControlError
from llmasos_xla.models.pretrained.exporting import export

openai = pytest.importorskip("openai", reason="openai is not installed")

TOKENIZER = Characters("abcdefghijklmnopqrstuvwxyz .:\n", ["end"])
SIZES = {"vocab": TOKENIZER.size, "context": 128, "width": 24, "depth": 2, "heads": 3}
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}a:"


def network_of(seed):
    """Weights so large that what comes next depends on what stands before."""
    network = lm.models.gpt2(seed=seed, end=None, **SIZES)
    rng = np.random.default_rng(seed)
    params = {}
    for name, a in network.variables.params.items():
        size = 0.1 if a.ndim < 2 else 0.4 if name.endswith("embeddings") else 2 / np.sqrt(a.shape[0])
        params[name] = jnp.asarray(name.endswith("scale") + size * rng.standard_normal(a.shape), jnp.float32)
    network.variables = network.variables._replace(params=params)
    network.tokenizer, network.chat_template = TOKENIZER, TEMPLATE
    return network


@pytest.fixture(scope="module")
def network():
    return network_of(0)


@pytest.fixture(scope="module")
def server(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    network.save(folder / "m.safetensors")
    network_of(1).save(folder / "other.safetensors")
    (folder / "keys").write_text("s3cret\n")
    with lm.Deployer(folder / "m.safetensors").deploy(keys=folder / "keys") as server:
        server.folder = folder
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret", max_retries=0, timeout=60) as client:
        yield client


def written(network, prompt, **options):
    return lm.generate(network, prompt, **{"max_new_tokens": 24, "temperature": 0.0, **options})


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "m"
    assert client.models.retrieve("m") == model
    with pytest.raises(openai.NotFoundError, match="unknown model 'x'; this server has 'm'"):
        client.models.retrieve("x")


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 5}, {"seed": 5, "temperature": 0.7, "top_p": 0.8}])
def test_a_text_is_what_generate_writes(options, client, network):
    found = client.completions.create(model="m", prompt="one", max_tokens=24, **options)
    assert found.choices[0].text == written(network, "one", **{"temperature": 1.0, **options})
    assert found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (3, 24, 27)


def test_the_texts_of_one_prompt_are_the_rows_of_one_seed(client, network):
    found = client.completions.create(model="m", prompt="one", max_tokens=24, n=3, seed=7)
    texts = [choice.text for choice in found.choices]
    assert texts == written(network, ["one"] * 3, temperature=1.0, seed=7)
    assert len(set(texts)) == 3


def test_a_stream_is_the_same_text(client, network):
    with client.completions.create(
        model="m", prompt="one", max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *pieces, counted = list(stream)
    assert "".join(piece.choices[0].text for piece in pieces) == written(network, "one")
    assert pieces[-1].choices[0].finish_reason == "length"
    assert (counted.choices, counted.usage.completion_tokens) == ([], 24)


def test_it_stops_where_it_is_told(client, network):
    whole = written(network, "one")
    stop = whole[10:13]
    found = client.completions.create(model="m", prompt="one", max_tokens=24, temperature=0, stop=[stop])
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    # Each id is a character here.
    assert found.usage.completion_tokens == whole.index(stop) + len(stop)


def test_a_conversation_by_its_template(client, network):
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    whole = written(network, "s: be brief\nu: hi\na:")
    found = client.chat.completions.create(model="m", messages=messages, max_completion_tokens=24, temperature=0)
    assert (found.choices[0].message.role, found.choices[0].message.content) == ("assistant", whole)
    stream = client.chat.completions.create(model="m", messages=messages, max_tokens=24, temperature=0, stream=True)
    pieces = [piece.choices[0] for piece in stream]
    assert pieces[0].delta.role == "assistant"
    assert "".join(piece.delta.content or "" for piece in pieces) == whole
    assert pieces[-1].finish_reason == "length"


def test_many_at_a_time_get_what_each_gets_alone(client, network):
    def ask(seed):
        prompt = "one of many"[: 3 + seed % 8]
        found = client.completions.create(model="m", prompt=prompt, max_tokens=24, seed=seed, temperature=0.8)
        return prompt, seed, found.choices[0].text

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for prompt, seed, text in threads.map(ask, range(16)):
            assert text == written(network, prompt, seed=seed, temperature=0.8)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"logprobs": 2}, openai.BadRequestError, "logprobs=2 is not done here"),
        ({"prompt": "ONE"}, openai.BadRequestError, "is not in the vocabulary"),
        ({"prompt": "a" * 200}, openai.BadRequestError, "has 200 ids, the model reads 128 at most"),
        ({"model": "x"}, openai.NotFoundError, "unknown model 'x'"),
        ({"extra_body": {"other": 1}}, openai.BadRequestError, "unknown parameter 'other'"),
    ],
)
def test_refusals_are_the_packages_errors(options, error, reason, client):
    with pytest.raises(error, match=reason):
        client.completions.create(**{"model": "m", "prompt": "one", **options})


def test_a_key_is_wanted(server):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="a key is wanted"),
    ):
        client.completions.create(model="m", prompt="one")


def test_a_reader_that_goes_away_frees_its_row(client, server):
    for _ in range(3):
        stream = client.completions.create(model="m", prompt="one", max_tokens=120, stream=True)
        next(iter(stream))
        stream.close()
    until = time.monotonic() + 20
    while (writing := server.stats()["writing"])["live"] and time.monotonic() < until:
        time.sleep(0.01)
    assert writing["live"] == 0


def test_an_update_between_two_texts(client, server, network):
    server.update(server.folder / "other.safetensors")
    found = client.completions.create(model="m", prompt="one", max_tokens=24, temperature=0)
    assert (found.system_fingerprint, found.choices[0].text) == ("2", written(network_of(1), "one"))
    server.rollback()
    found = client.completions.create(model="m", prompt="one", max_tokens=24, temperature=0)
    assert (found.system_fingerprint, found.choices[0].text) == ("1", written(network, "one"))


def test_logits_are_still_there(server, network):
    pytest.importorskip("httpx", reason="httpx is not installed")
    import httpx

    body = {"inputs": [{"name": "ids", "shape": [1, 4], "datatype": "INT32", "data": [1, 2, 3, 4]}]}
    headers = {"Authorization": "Bearer s3cret"}
    answer = httpx.post(f"{server.url}/v2/models/m/infer", json=body, headers=headers).json()
    found = np.array(answer["outputs"][0]["data"], np.float32).reshape(answer["outputs"][0]["shape"])
    np.testing.assert_allclose(found, network.predict(np.array([[1, 2, 3, 4]], np.int32)), rtol=1e-4, atol=1e-4)


def test_stories260k_from_its_folder_and_from_a_bundle(shared_data, tmp_path, unchecked):
    folder = shared_data / "weights_stories260k"
    network = lm.load_pretrained(folder / "stories260K.bin")
    network.export(tmp_path / "story.lmx")
    wanted = (folder / "expected_stdout.txt").read_text()
    with (
        lm.Deployer(tmp_path / "story.lmx").deploy() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.completions.create(model="story", prompt=wanted[:40], max_tokens=60, temperature=0, echo=True)
        assert wanted.startswith(found.choices[0].text)
        assert len(found.choices[0].text) > 120
        stream = client.completions.create(model="story", prompt=[[1]], max_tokens=60, temperature=0, stream=True)
        assert wanted.startswith("".join(piece.choices[0].text for piece in stream))


def test_a_folder_of_published_weights_is_served_and_replaced(network, tmp_path):
    folders = [tmp_path / name for name in ("tiny", "other")]
    described = {"model_type": "gpt2", "n_positions": 128, "n_embd": 24, "n_layer": 2, "n_head": 3, "eos_token_id": 0}
    for folder, each in zip(folders, (network, network_of(1))):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**described, "vocab_size": TOKENIZER.size}))
        export(each.config, each.variables, folder / "model.safetensors")
        TOKENIZER.save(folder)
    prompt = {"model": "tiny", "prompt": "one", "max_tokens": 24, "temperature": 0}
    with (
        lm.Deployer(folders[0]).deploy() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        text = written(lm.load_pretrained(folders[0]), "one")
        assert client.completions.create(**prompt).choices[0].text == text
        server.update(folders[1])
        assert client.completions.create(**prompt).choices[0].text == written(lm.load_pretrained(folders[1]), "one")
        (folders[1] / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
        with pytest.raises(ControlError, match="not on the shelf"):
            server.update(folders[1])
        assert client.completions.create(**prompt).system_fingerprint == "2"


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        lm.Deployer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(FileNotFoundError, match="has no file of weights"):
        lm.Deployer(tmp_path).deploy()
