"""The published weights of llama2.c's stories260K: its logits, and its greedy ids exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.models import pretrained
from llmasos_xla.models.generation import tokens
from llmasos_xla.models.generation.protocol import functions
from llmasos_xla.models.generation.sampling import Sampling
from llmasos_xla.models.llama import LlamaConfig


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "weights_stories260k"


@pytest.fixture(scope="module")
def model(folder):
    arrays = pretrained.read(folder / "stories260K.bin")
    assert arrays.config is not None
    config = LlamaConfig.from_llama2c(arrays.config)
    return config, pretrained.load(config, arrays)


def test_the_header_says_the_named_sizes(model):
    assert model[0] == LlamaConfig.stories260k()


@pytest.mark.parametrize("scan", [True, False])
def test_logits(model, folder, scan):
    config, variables = model
    config, variables = (config, variables) if scan else config.serving(variables)
    assert config.scan == scan
    reference = np.load(folder / "ref.npz")
    ids = jnp.asarray(reference["token_ids"][None, :64])
    logits = jax.jit(config.net().apply)(variables, ids)[0][0]
    np.testing.assert_allclose(logits, reference["logits_first_64"], rtol=1e-4, atol=1e-4)


def test_its_greedy_ids(model, folder):
    config, variables = model[0].serving(model[1])
    reference = np.load(folder / "ref.npz")["token_ids"]
    calls, keys, ends = functions(config), jax.random.split(jax.random.key(0), 1), jnp.array([-1])
    new = len(reference) - 1
    run = jax.jit(
        lambda variables, ids, real: tokens.advance(
            calls,
            config.adjust,
            variables,
            {},
            tokens.prefill(
                calls, config.adjust, variables, {}, ids, real, keys, Sampling.of(0.0, None, None), ends, new=new,
                dtype=jnp.float32,
            ),
            keys,
            Sampling.of(0.0, None, None),
            ends,
            jnp.asarray(new),
        )
    )  # fmt: skip
    written = np.asarray(run(variables, jnp.array([[1]]), jnp.array([[True]])).ids[0])
    np.testing.assert_array_equal(written, reference[1:])
