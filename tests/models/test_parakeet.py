"""Parakeet's features, and what its padding changes; its logits are held against transformers' in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.golden import folder, read
from goldens.seeded import sound

from llmasos_xla import models
from llmasos_xla.models.parakeet import ParakeetConfig


def test_the_extractor_made_the_same_of_sound():
    (case,) = read(folder() / "features" / "parakeet.npz").cases
    made = jax.jit(ParakeetConfig().features)(jnp.asarray(sound(0, *case["samples"])), jnp.asarray(case["lengths"]))
    np.testing.assert_array_equal(made["attention_mask"], case["mask"])
    wanted = case["output"]
    # What float32 knows of weak bands, which the division by their deviation makes as large as the others.
    np.testing.assert_allclose(made["input_features"][:, case["steps"]], wanted, atol=1e-4 * np.abs(wanted).max())


def test_padding_changes_nothing_before_it():
    config = ParakeetConfig(vocab=6, width=8, depth=2, num_heads=2, window=3, channels=4, subsampling=4, mels=8)
    net = config.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    apply = jax.jit(lambda x: net.apply(variables, x, train=False)[0])
    x = np.random.default_rng(1).standard_normal((2, 30, 8)).astype(np.float32)
    mask = (np.arange(30)[None] < np.array([30, 17])[:, None]).astype(np.int32)
    x[1, 17:] = 0.0
    logits = apply(config.bind(jnp.asarray(x), jnp.asarray(mask)))
    np.testing.assert_allclose(logits[1, :5], apply(jnp.asarray(x[1:, :17]))[0], atol=2e-5)
    assert (jax.nn.softmax(logits[1, 5:])[:, 0] > 1 - 1e-6).all()
    assert models.greedy(logits)[1, 5:].sum() == 0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"pad_token_id": 0}, "is wanted as the last id, 1024"),
        ({"encoder_config": {"attention_bias": False}}, "attention_bias=False of the config.json is not built here"),
    ],
)
def test_configurations_that_are_not_built(config, text):
    with pytest.raises(ValueError, match=text):
        ParakeetConfig.from_huggingface(config)


def test_refusals():
    with pytest.raises(ValueError, match=r"input_features \[batch, frames, 80\] are wanted, got 40 mels"):
        ParakeetConfig().output_shape((100, 40))
    with pytest.raises(ValueError, match="power of 2 above 1, got 6"):
        ParakeetConfig(subsampling=6)
