"""Token after token with a cache is what the whole rows give, and samplers draw from what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.models.generation import sampling, tokens
from llmasos_xla.models.generation.protocol import functions
from llmasos_xla.models.generation.sampling import Sampling, draw
from llmasos_xla.models.gpt2 import GPT2Config
from llmasos_xla.models.llama import LlamaConfig
from llmasos_xla.models.recurrent_lm import RecurrentLMConfig

VOCAB = 29
MODELS = {
    "gpt2": GPT2Config(VOCAB, context=24, width=12, depth=2, heads=3),
    "llama": LlamaConfig(VOCAB, width=12, depth=2, heads=3, hidden=20),
    "grouped": LlamaConfig(VOCAB, width=12, depth=2, heads=6, kv_heads=2, hidden=20, tied=True, scan=False),
    "gru_lm": RecurrentLMConfig(VOCAB, width=12, hidden=16, depth=1, cell="gru"),
}
every_model = pytest.mark.parametrize(
    "config",
    [
        # Grouped is Llama's, too.
        pytest.param(config, id=name, marks=[pytest.mark.thorough] if name == "llama" else [])
        for name, config in MODELS.items()
    ],
)
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
    calls, drawn = functions(config), Sampling.of(*drawn)
    keys = jax.random.split(jax.random.key(5), len(prompts))
    ends = jnp.asarray([*ends, -1], jnp.int32)
    ids, real = left_padded(prompts, length)
    first = jax.jit(functools.partial(tokens.prefill, calls, config.adjust, new=new, dtype=dtype))
    more = jax.jit(functools.partial(tokens.advance, calls, config.adjust), donate_argnums=2)
    state = first(variables, {}, ids, real, keys, drawn, ends)
    for part in range(1, stop + 1):
        state = more(variables, {}, state, keys, drawn, ends, jnp.asarray(new * part // stop))
    return [row[:n].tolist() for row, n in zip(np.asarray(state.ids), np.asarray(state.lengths), strict=True)]


def uncached(config, prompt, new):
    """The most probable continuation by whole forward passes."""
    variables, apply = made(config)
    row = np.zeros((1, len(prompt) + new), np.int32)
    row[0, : len(prompt)] = prompt
    # What stands behind the last id cannot be seen from it.
    for at in range(len(prompt), row.shape[1]):
        row[0, at] = jnp.argmax(apply(variables, jnp.asarray(row))[0, at - 1])
    return row[0, len(prompt) :].tolist()


@every_model
def test_a_ragged_batch_is_written_as_each_prompt_by_whole_forward_passes(config):
    wanted = [uncached(config, prompt, 9) for prompt in PROMPTS]
    assert len({tuple(row) for row in wanted}) > 1
    assert len({token for row in wanted for token in row}) > 3
    assert written(config, PROMPTS, 9) == wanted
    assert written(config, PROMPTS, 9, length=5, stop=3) == wanted
    assert written(config, PROMPTS[1:2], 9, length=1) == wanted[1:2]


@every_model
def test_a_cache_in_bfloat16_is_near(config):
    variables, _ = made(config)
    calls = functions(config)
    step = tokens.prompt_step(*left_padded(PROMPTS, 8), 8)
    logits = [
        jax.jit(lambda variables, dtype=dtype: calls.decode(variables, step, calls.start(3, 8, dtype), {}))(variables)
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert {a.dtype for a in logits[1][1].values()} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(logits[0][0], logits[1][0], atol=0.1 * float(jnp.std(logits[0][0])))


@every_model
def test_rows_end_at_their_own_ends(config):
    whole = written(config, PROMPTS, 9)
    end = whole[0][4]
    wanted = [row[: row.index(end)] if end in row else row for row in whole]
    assert wanted != whole
    assert written(config, PROMPTS, 9, ends=(end,), stop=3) == wanted


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_rows_beside(unchecked):
    config = MODELS["gpt2"]
    drawn = (1.0, 5, 0.9)
    rows = written(config, PROMPTS, 9, drawn=drawn)
    assert written(config, PROMPTS, 9, drawn=drawn, stop=3) == rows
    assert written(config, PROMPTS[:1], 9, drawn=drawn) != written(config, PROMPTS[:1], 9)
    keys = jax.random.split(jax.random.key(5), 3)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)), jnp.float32)
    alone = [int(draw(logits[i : i + 1], keys[i : i + 1], jnp.asarray(3), Sampling.of(*drawn))[0]) for i in range(3)]
    assert draw(logits, keys, jnp.asarray(3), Sampling.of(*drawn)).tolist() == alone


def test_bounds_keep_what_sorting_would(rng):
    logits = jnp.asarray(rng.normal(size=(4, 101)) * 3, jnp.float32).at[0, :50].set(-jnp.inf)
    ordered = -np.sort(-np.asarray(logits), axis=-1)
    for k in (1, 7, 40):
        kept = np.isfinite(sampling.top_k(logits, jnp.asarray(k)))
        np.testing.assert_array_equal(kept, np.asarray(logits) >= ordered[:, k - 1 : k])
    probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), np.float64)
    for p in (0.05, 0.5, 0.93):
        kept = np.isfinite(sampling.top_p(logits, jnp.asarray(p, jnp.float32)))
        for row in range(4):
            order = np.argsort(-probabilities[row])
            count = int(np.searchsorted(np.cumsum(probabilities[row][order]), p)) + 1
            assert set(np.flatnonzero(kept[row])) == set(order[:count])
    assert np.isfinite(sampling.top_k(logits[1:], jnp.asarray(101))).all()
    ties = jnp.array([[1.0, 2.0, 2.0, 0.0]])
    assert np.isfinite(sampling.top_k(ties, jnp.asarray(1))).tolist() == [[False, True, True, False]]


def test_ids_are_drawn_as_often_as_they_are_probable():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)
    rows = jnp.broadcast_to(logits, (4000, 4))
    for arguments, wanted in (
        ((1.0, None, None), [0.5, 0.3, 0.15, 0.05]),
        ((1.0, 2, None), [0.625, 0.375, 0, 0]),
        ((1.0, None, 0.7), [0.625, 0.375, 0, 0]),
        ((1.0, 3, 0.7), [0.625, 0.375, 0, 0]),
        ((0.5, None, None), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        ((0.0, None, None), [1, 0, 0, 0]),
    ):
        drawn = jax.jit(draw)(rows, keys, jnp.asarray(0), Sampling.of(*arguments))
        np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, wanted, atol=0.03)
