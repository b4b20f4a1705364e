"""Token after token with a cache is what the whole rows give, and samplers draw from what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.models.generation import tokens
from llmasos_xla.models.generation.protocol import functions
from llmasos_xla.models.generation.sampling import Sampling
from llmasos_xla.models.gpt2 import GPT2Config
from llmasos_xla.models.llama import LlamaConfig

VOCAB = 29
MODELS = {
    "gpt2": GPT2Config(VOCAB, context=24, width=12, depth=2, heads=3),
    "llama": LlamaConfig(VOCAB, width=12, depth=2, heads=3, hidden=20),
    "grouped": LlamaConfig(VOCAB, width=12, depth=2, heads=6, kv_heads=2, hidden=20, tied=True, scan=False),
}
every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


@functools.cache
def made(config):
    """Variables far enough from zero that tokens differ."""
    net = config.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    rng, params = np.random.default_rng(1), {}
    for name, a in variables.params.items():
        size = 0.1 if a.ndim < 2 else 0.4 if name.endswith("embeddings") else 2 / np.sqrt(a.shape[0])
        params[name] = jnp.asarray(name.endswith("scale") + size * rng.standard_normal(a.shape), jnp.float32)
    return variables._replace(params=params), jax.jit(lambda variables, x: net.apply(variables, x)[0])


def left_padded(prompts, length):
    ids, real = np.zeros((len(prompts), length), np.int32), np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :], real[row, length - len(prompt) :] = prompt, True
    return jnp.asarray(ids), jnp.asarray(real)


def written(config, prompts, new, *, drawn=(0.0, None, None), ends=(), length=8, dtype=jnp.float32, stop=1):
    """What the loop writes after the prompts, in dispatches of `new / stop` ids."""
    variables, _ = made(config)
    calls, sampling = functions(config), Sampling.of(*drawn)
    keys = jax.random.split(jax.random.key(5), len(prompts))
    ends = jnp.asarray([*ends, -1], jnp.int32)
    ids, real = left_padded(prompts, length)
    first = jax.jit(functools.partial(tokens.prefill, calls, config.adjust, new=new, dtype=dtype))
    more = jax.jit(functools.partial(tokens.advance, calls, config.adjust), donate_argnums=2)
    state = first(variables, {}, ids, real, keys, sampling, ends)
    for part in range(1, stop + 1):
        state = more(variables, {}, state, keys, sampling, ends, jnp.asarray(new * part // stop))
    return [row[:n].tolist() for row, n in zip(np.asarray(state.ids), np.asarray(state.lengths), strict=True)]


def uncached(config, prompt, new):
    """The most probable continuation by whole forward passes."""
    variables, apply = made(config)
    row = list(prompt)
    for _ in range(new):
        row.append(int(jnp.argmax(apply(variables, jnp.asarray([row], jnp.int32))[0, -1])))
    return row[len(prompt) :]


@every_model
def test_a_ragged_batch_is_written_as_each_prompt_by_whole_forward_passes(config):
    wanted = [uncached(config, prompt, 9) for prompt in PROMPTS]
    assert len({tuple(row) for row in wanted}) > 1
    assert len({token for row in wanted for token in row}) > 3
    assert written(config, PROMPTS, 9) == wanted
    assert written(config, PROMPTS, 9, length=5, stop=3) == wanted
    assert written(config, PROMPTS[1:2], 9, length=1) == wanted[1:2]
