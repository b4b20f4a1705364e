"""`lm.generate`: texts, streams and stops over the loops of models/generation."""

import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.data.tokenizers import Characters, load_tokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ."
PROMPTS = ["one", "the other day", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return Characters(CHARACTERS)


@pytest.fixture(scope="module")
def model():
    """Weights so large that what comes next depends on what stands before."""
    network = lm.models.gpt2(
        vocab=len(CHARACTERS), context=64, width=16, depth=2, heads=2, end=None, activation="gelu_tanh"
    )
    rng = np.random.default_rng(2)
    params = {}
    for name, a in network.variables.params.items():
        size = 0.1 if a.ndim < 2 else 0.4 if name.endswith("embeddings") else 2 / np.sqrt(a.shape[0])
        params[name] = jnp.asarray(name.endswith("scale") + size * rng.standard_normal(a.shape), jnp.float32)
    network.variables = network.variables._replace(params=params)
    return network


@pytest.fixture(scope="module")
def texts(model, tokenizer):
    """What it writes after each prompt by itself."""
    return [lm.generate(model, prompt, max_new_tokens=20, tokenizer=tokenizer) for prompt in PROMPTS]


def test_several_prompts_give_what_each_gives(model, tokenizer, texts):
    assert len(set(texts)) == 3
    assert [len(text) for text in texts] == [20, 20, 20]
    assert lm.generate(model, PROMPTS, max_new_tokens=20, tokenizer=tokenizer) == texts
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert lm.generate(model, ids, max_new_tokens=20) == [tokenizer.encode(text) for text in texts]
    assert lm.generate(model, np.array(ids[0]), max_new_tokens=20) == tokenizer.encode(texts[0])


def test_it_is_the_whole_rows_most_probable_continuation(model, tokenizer, texts):
    row = tokenizer.encode(PROMPTS[0] + texts[0])
    best = np.asarray(model(np.array([row], np.int32))[0]).argmax(-1).tolist()
    assert tokenizer.decode(best[len(PROMPTS[0]) - 1 : -1]) == texts[0]


def test_streamed_pieces_are_the_text(model, tokenizer, texts):
    pieces = list(lm.generate(model, PROMPTS[0], max_new_tokens=20, tokenizer=tokenizer, stream=True))
    assert len(pieces) > 2
    assert all(pieces)
    assert "".join(pieces) == texts[0]
    steps = list(lm.generate(model, PROMPTS, max_new_tokens=20, tokenizer=tokenizer, stream=True))
    assert ["".join(pieces) for pieces in zip(*steps, strict=True)] == texts
    ids = list(lm.generate(model, tokenizer.encode(PROMPTS[0]), max_new_tokens=20, stream=True))
    assert ids == tokenizer.encode(texts[0])


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends_ahead_of_its_stop(model, tokenizer, texts, stream):
    stop = texts[0][5:8]
    wanted = [text[: text.index(stop)] if stop in text else text for text in texts]
    found = lm.generate(model, PROMPTS, max_new_tokens=20, tokenizer=tokenizer, stop=[stop, "?!"], stream=stream)
    found = ["".join(pieces) for pieces in zip(*found, strict=True)] if stream else found
    assert found == wanted
    assert len(wanted[0]) < 20
    end = tokenizer.encode(texts[0][4])[0]
    by_id = lm.generate(model, PROMPTS[0], max_new_tokens=20, tokenizer=tokenizer, stop=end)
    assert by_id == texts[0][: texts[0].index(texts[0][4])]


def test_the_cache_ends_where_the_model_does(model, tokenizer, texts):
    text = lm.generate(model, PROMPTS[0], max_new_tokens=500, tokenizer=tokenizer)
    assert len(text) == 64 - len(PROMPTS[0])
    assert text.startswith(texts[0])
    with pytest.raises(ValueError, match="the prompt has 64 ids, the model reads 64 at most"):
        lm.generate(model, "a" * 64, tokenizer=tokenizer)


@pytest.mark.thorough
@pytest.mark.parametrize("beams", [1, 3])
def test_a_short_prompt_beside_a_long_one_has_all_the_room_that_it_has_alone(model, tokenizer, beams):
    prompts = ["one", "a" * 59, "the other day " * 3]
    options = {"max_new_tokens": 30, "tokenizer": tokenizer, "num_beams": beams}
    alone = [lm.generate(model, prompt, **options) for prompt in prompts]
    assert [len(text) for text in alone] == [30, 5, 22]
    assert lm.generate(model, prompts, **options) == alone
    if beams == 1:
        pieces = zip(*lm.generate(model, prompts, stream=True, **options), strict=True)
        assert ["".join(each) for each in pieces] == alone


def test_a_tokenizer_may_be_a_path(model, tokenizer, texts, tmp_path):
    tokenizer.save(tmp_path / "characters.json")
    assert lm.generate(model, PROMPTS[0], max_new_tokens=20, tokenizer=tmp_path) == texts[0]


def test_drawing_follows_the_seed(model, tokenizer, texts):
    def drawn(**more):
        return lm.generate(model, PROMPTS, max_new_tokens=20, tokenizer=tokenizer, temperature=0.9, top_k=9, **more)

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn(seed=1) != texts


def test_beams_find_a_text_at_least_as_likely(model, tokenizer, texts):
    def likelihood(prompt, text):
        row = np.array([tokenizer.encode(prompt + text)], np.int32)
        logits = np.asarray(model(row)[0], np.float64)
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = np.arange(len(prompt) - 1, row.shape[1] - 1)
        return scores[at, row[0, at + 1]].sum()

    found = lm.generate(model, PROMPTS, max_new_tokens=20, tokenizer=tokenizer, num_beams=3)
    gains = [likelihood(p, f) - likelihood(p, t) for p, f, t in zip(PROMPTS, found, texts, strict=True)]
    assert max(gains) > 0.1
    assert min(gains) > -1.0


def test_new_weights_write_new_texts_with_the_same_programs(tokenizer):
    network = lm.models.gpt2(vocab=28, context=32, width=8, depth=1, heads=2, end=None, seed=1)
    first = lm.generate(network, "abc", max_new_tokens=5, tokenizer=tokenizer)
    programs = len(network.learner.compiled)
    params = {name: -a if name.endswith("last_norm/scale") else a for name, a in network.variables.params.items()}
    network.variables = network.variables._replace(params=params)
    assert lm.generate(network, "abc", max_new_tokens=5, tokenizer=tokenizer) != first
    assert len(network.learner.compiled) == programs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "a", "tokenizer": None}, "the prompt is a text; pass tokenizer="),
        ({"prompt": []}, "there is no prompt"),
        ({"prompt": [[]]}, "a prompt has no ids"),
        ({"prompt": [99]}, "'ids' has values from 0 to 27, got 99"),
        ({"prompt": [[0.5]]}, "a prompt is a text or a list of ids"),
        ({"max_new_tokens": 0}, "max_new_tokens wants an int of at least 1, got 0"),
        ({"temperature": -1.0}, "temperature wants 0 or more"),
        ({"temperature": float("nan")}, "temperature wants 0 or more, got nan"),
        ({"prompt": None}, "a prompt is a text or a list of ids, got NoneType"),
        ({"stop": ["x", ""]}, "a stop text is empty"),
        ({"top_k": 5}, "nothing is drawn at temperature 0"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p wants a probability above 0, got 1.5"),
        ({"num_beams": 2, "stream": True}, "no temperature, no stream"),
        ({"stop": ["x"], "tokenizer": None, "prompt": [1]}, "stop texts need a tokenizer"),
        ({"decoder_prompt": [1]}, "GPT2Config has no encoder"),
    ],
)
def test_refusals(model, tokenizer, arguments, says):
    with pytest.raises(ValueError, match=says):
        lm.generate(model, **{"prompt": "a", "tokenizer": tokenizer, **arguments})


def test_other_models_write_nothing():
    with pytest.raises(TypeError, match="generate: VGGConfig writes no text"):
        lm.generate(lm.models.vgg11(), "a")


def test_a_model_on_several_devices_writes_the_same(model, tokenizer, texts):
    network = lm.Network(model.config)
    network.variables = model.variables
    network.learner.shard(lm.MeshSpec(data=2, tensor=2))
    assert lm.generate(network, PROMPTS, max_new_tokens=20, tokenizer=tokenizer) == texts


@pytest.fixture(scope="module")
def translator(tokenizer):
    network = lm.models.t5(
        vocab=tokenizer.size, width=16, depth=1, decoder_depth=1, heads=2, key_dim=8, hidden=24, dropout=0.0
    )
    rng = np.random.default_rng(4)
    params = {
        n: a + jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype) for n, a in network.variables.params.items()
    }
    network.variables = network.variables._replace(params=params)
    return network


def test_an_encoder_reads_texts_and_arrays(translator, tokenizer):
    written = lm.generate(translator, ["a tree", "some other words"], max_new_tokens=9, tokenizer=tokenizer)
    assert written[0] != written[1]
    assert lm.generate(translator, "a tree", max_new_tokens=9, tokenizer=tokenizer) == written[0]
    ids = np.zeros((1, 8), np.int32)
    ids[0, :6] = tokenizer.encode("a tree")
    given = {"ids": ids, "attention_mask": (np.arange(8) < 6).astype(np.int32)[None]}
    assert lm.generate(translator, given, max_new_tokens=9, tokenizer=tokenizer) == written[:1]
    best = lm.generate(translator, ["a tree"], max_new_tokens=9, tokenizer=tokenizer, num_beams=2)
    assert isinstance(best[0], str)
    other = lm.generate(translator, "a tree", max_new_tokens=9, tokenizer=tokenizer, decoder_prompt=[0, 5])
    assert isinstance(other, str)
    with pytest.raises(ValueError, match="'ids' has values from 0 to 27, got 28 in row 0"):
        lm.generate(translator, [tokenizer.size])
    with pytest.raises(ValueError, match="'decoder_input_ids' has values from 0 to 27, got 28 in row 0"):
        lm.generate(translator, [1], decoder_prompt=[tokenizer.size])
    with pytest.raises(ValueError, match="the encoder reads ids, attention_mask, not 'images'"):
        lm.generate(translator, {"images": ids})


def test_stories260k_tells_its_story_to_the_letter(shared_data):
    folder = shared_data / "weights_stories260k"
    network = lm.models.stories260k(weights=folder / "stories260K.bin")
    tokenizer = load_tokenizer(folder / "tok512.bin")
    wanted = (folder / "expected_stdout.txt").read_text()
    assert lm.generate(network, "", tokenizer=tokenizer, max_new_tokens=200) == wanted
    assert "".join(lm.generate(network, "", tokenizer=tokenizer, max_new_tokens=200, stream=True)) == wanted
    first, stop = wanted[:40], wanted[60:80]
    gone_on = lm.generate(network, first, tokenizer=tokenizer, max_new_tokens=200, stop=stop)
    assert first + gone_on == wanted[:60]
