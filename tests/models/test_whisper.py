"""Whisper writes with a cache what whole forward passes give, and not what it must not write."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.models.generation import tokens
from llmasos_xla.models.generation.protocol import functions
from llmasos_xla.models.generation.sampling import Sampling
from llmasos_xla.models.whisper import WhisperConfig

CONFIG = WhisperConfig(
    23, 12, 2, 1, 3, mels=5, source=9, context=16, start_ids=(1, 3), end=2, suppressed=(7, 9), suppressed_first=(2, 5)
)
FEATURES = jnp.asarray(np.random.default_rng(0).standard_normal((3, 15, 5)), jnp.float32)


@functools.cache
def made():
    """Variables far enough from zero that ids differ."""
    net = CONFIG.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    rng, params = np.random.default_rng(1), {}
    for name, a in variables.params.items():
        size = 0.1 if a.ndim < 2 else 0.5 if name.endswith("embeddings") else 2 / np.sqrt(a.shape[0])
        params[name] = jnp.asarray(name.endswith("scale") + size * rng.standard_normal(a.shape), jnp.float32)
    return variables._replace(params=params), jax.jit(lambda variables, x: net.apply(variables, x)[0])


def uncached(row, new):
    variables, apply = made()
    ids = list(CONFIG.first_ids)
    for step in range(new):
        # Of one length, so that one program serves; what comes later is not seen.
        filled = jnp.asarray([ids + [0] * (new - step)], jnp.int32)
        logits = np.array(apply(variables, CONFIG.bind(FEATURES[row : row + 1], filled))[0, len(ids) - 1])
        logits[list(CONFIG.suppressed)] = -np.inf
        if step == 0:
            logits[list(CONFIG.suppressed_first)] = -np.inf
        ids.append(int(np.argmax(logits)))
    return ids[len(CONFIG.first_ids) :]


def test_a_batch_is_written_as_each_row_by_whole_forward_passes():
    wanted = [uncached(row, 9) for row in range(3)]
    assert len({tuple(row) for row in wanted}) > 1
    assert len({i for row in wanted for i in row}) > 3
    assert not {i for row in wanted for i in row} & set(CONFIG.suppressed)
    variables, _ = made()
    calls, sampling = functions(CONFIG), Sampling.of(0.0, None, None)
    memory = jax.jit(calls.encode)(variables, FEATURES)
    assert {name: a.shape for name, a in memory.items()} == {"0/key": (3, 3, 8, 4), "0/value": (3, 3, 8, 4)}
    ids = jnp.tile(jnp.asarray([[0, *CONFIG.first_ids]], jnp.int32), (3, 1))
    keys, ends = jax.random.split(jax.random.key(0), 3), jnp.asarray([-1, -1], jnp.int32)
    first = jax.jit(functools.partial(tokens.prefill, calls, CONFIG.adjust, new=9, dtype=jnp.float32))
    state = first(variables, memory, ids, ids > 0, keys, sampling, ends)
    more = jax.jit(functools.partial(tokens.advance, calls, CONFIG.adjust))
    state = more(variables, memory, state, keys, sampling, ends, jnp.asarray(9))
    assert np.asarray(state.ids).tolist() == wanted


def test_what_was_heard_matters_and_padding_does_not():
    variables, apply = made()
    ids = jnp.asarray([[1, 3, 8, 4]] * 3, jnp.int32)
    logits = apply(variables, CONFIG.bind(FEATURES, ids))
    other = apply(variables, CONFIG.bind(FEATURES.at[0, 0].add(1.0), ids))
    moved = np.abs(logits - other).max(axis=(1, 2))
    assert moved[0] > 1e-3
    assert moved[1:].max() == 0
    mask = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], jnp.int32)
    padded = apply(variables, CONFIG.bind(FEATURES, jnp.where(mask > 0, ids, 20), mask))
    np.testing.assert_allclose(np.asarray(padded)[mask > 0], np.asarray(logits)[mask > 0], atol=1e-5)


def test_the_features_are_whispers():
    features = WhisperConfig.large().features(jnp.zeros((1, 16000)))
    assert features.shape == (1, 100, 128)


def test_a_configuration_says_what_a_text_begins_with():
    config = {"decoder_start_token_id": 50258, "forced_decoder_ids": [[2, 50359], [1, 50259], [3, 50363]]}
    assert WhisperConfig.from_huggingface(config).first_ids == (50258, 50259, 50359, 50363)
    assert WhisperConfig.from_huggingface({**config, "forced_decoder_ids": [[1, None], [2, 50359]]}).first_ids == (
        50258,
    )
    variables, apply = made()
    ids = jnp.asarray([CONFIG.first_ids] * 3, jnp.int32)
    # Two programs, whose roundings may differ.
    np.testing.assert_allclose(apply(variables, FEATURES), apply(variables, CONFIG.bind(FEATURES, ids)), atol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match=r"input_features \[batch, frames, 80\] are wanted, got 3000 mels"):
        WhisperConfig().output_shape((80, 3000))
    with pytest.raises(ValueError, match="3001 frames came, it reads 3000 at most"):
        WhisperConfig().output_shape((3001, 80))
    with pytest.raises(ValueError, match="does not divide into 5 heads"):
        WhisperConfig(num_heads=5)
    with pytest.raises(ValueError, match="scale_embedding=True of the config.json is not built here"):
        WhisperConfig.from_huggingface({"scale_embedding": True})
    variables, apply = made()
    with pytest.raises(ValueError, match="rows of 17 ids came, it reads 16 at most"):
        apply(variables, CONFIG.bind(FEATURES, jnp.ones((3, 17), jnp.int32)))


def test_generate_writes_of_features():
    network = Network(CONFIG)
    network.variables = made()[0]
    wanted = [uncached(row, 6) for row in range(3)]
    ended = [row[: row.index(CONFIG.end)] if CONFIG.end in row else row for row in wanted]
    assert lm.generate(network, FEATURES, max_new_tokens=6) == ended
