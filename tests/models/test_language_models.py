"""GPT-2 and Llama: known sizes, padding, dropout, and what their configurations refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.models.gpt2 import GPT2Config
from llmasos_xla.models.llama import LlamaConfig

SMALL = {
    "gpt2": GPT2Config(24, context=16, width=12, depth=2, heads=2),
    "llama": LlamaConfig(24, width=12, depth=2, heads=2, hidden=20, scan=False),
}
each = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


@functools.cache
def made(config):
    net = config.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    # Norms' scales and biases are all alike at first, and kernels small.
    moved = {
        name: a + 0.3 * jax.random.normal(jax.random.key(i), a.shape)
        for i, (name, a) in enumerate(variables.params.items())
    }
    return variables._replace(params=moved), jax.jit(net.apply, static_argnames="train")


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (GPT2Config.gpt2(), 124_439_808),
        (GPT2Config.gpt2_medium(), 354_823_168),
        (GPT2Config.gpt2_large(), 774_030_080),
        (GPT2Config.nanogpt(), 804_096),
        (LlamaConfig.llama(), 6_738_415_616),
        (LlamaConfig.llama2_13b(), 13_015_864_320),
        (LlamaConfig.llama3_8b(), 8_030_261_248),
        (LlamaConfig.llama32_1b(), 1_235_814_400),
        (LlamaConfig.tinyllama(), 1_100_048_384),
    ],
    ids=lambda value: None if isinstance(value, int) else f"{value.family}-{value.width}-{value.vocab}",
)
def test_named_sizes_have_the_published_number_of_parameters(config, count):
    params = jax.eval_shape(config.net().init, jax.random.key(0)).params
    assert sum(a.size for a in params.values()) == count


@each
def test_padding_on_either_side_changes_nothing(config):
    variables, apply = made(config)
    rng = np.random.default_rng(0)
    row = rng.integers(0, 24, (1, 5)).astype(np.int32)
    plain = apply(variables, jnp.asarray(row))[0]
    for before in (0, 4):
        ids = rng.integers(0, 24, (1, 9)).astype(np.int32)
        ids[:, before : before + 5] = row
        mask = np.zeros((1, 9), np.int32)
        mask[:, before : before + 5] = 1
        padded = apply(variables, {"ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)})[0]
        np.testing.assert_allclose(padded[:, before : before + 5], plain, rtol=1e-4, atol=1e-4)


@each
def test_positions_that_are_given_are_used(config):
    variables, apply = made(config)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 6)), jnp.int32)
    counted = apply(variables, ids)[0]
    same = apply(variables, {"ids": ids, "positions": jnp.broadcast_to(jnp.arange(6), (2, 6))})[0]
    np.testing.assert_allclose(same, counted, rtol=1e-5, atol=1e-5)
    spread = apply(variables, {"ids": ids, "positions": jnp.broadcast_to(2 * jnp.arange(6), (2, 6))})[0]
    assert not np.allclose(spread, counted, atol=1e-3)


@each
def test_dropout_follows_its_key_and_looks_at_nothing_later(config):
    config = dataclasses.replace(config, dropout=0.4)
    variables, apply = made(config)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 24, (3, 6)), jnp.int32)

    def trained(ids, key):
        return np.asarray(apply(variables, ids, train=True, key=jax.random.key(key))[0])

    still = np.asarray(apply(variables, ids)[0])
    np.testing.assert_array_equal(trained(ids, 1), trained(ids, 1))
    assert not np.allclose(trained(ids, 1), trained(ids, 2))
    assert not np.allclose(trained(ids, 1), still)
    later = ids.at[:, 4:].set((ids[:, 4:] + 1) % 24)
    np.testing.assert_allclose(trained(later, 1)[:, :4], trained(ids, 1)[:, :4], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="is random in training and got no key"):
        apply(variables, ids, train=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GPT2Config(width=10, heads=3), "a width of 10 does not divide into 3 heads"),
        (lambda: GPT2Config.from_huggingface({"activation_function": "quick"}), "activation_function 'quick'"),
        (lambda: GPT2Config.from_huggingface({"scale_attn_weights": False}), "scale_attn_weights=False"),
        (lambda: LlamaConfig(width=12, heads=4, kv_heads=3), "wants to be a multiple of kv_heads"),
        (lambda: LlamaConfig(rope_scaling=(1.0, 2.0)), r"wants \(factor,\) or \(factor, low, high, context\)"),
        (lambda: LlamaConfig.from_huggingface({"mlp_bias": True}), "mlp_bias=True of the config.json is not built"),
        (lambda: LlamaConfig.from_huggingface({"rope_scaling": {"type": "yarn"}}), "rope_type 'yarn'"),
        (lambda: list(LlamaConfig().names("keras")), "no table of names for weights of the source 'keras'"),
        (lambda: made(SMALL["gpt2"])[1](made(SMALL["gpt2"])[0], jnp.zeros((1, 17), jnp.int32)), "it reads 16 at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(make, says, unchecked):
    with pytest.raises(ValueError, match=says):
        make()
