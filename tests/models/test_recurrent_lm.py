"""Recurrent language models: token after token is the whole row, padding on either side changes nothing, they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.models import RecurrentLMConfig
from llmasos_xla.models.generation.protocol import Step, functions


def louder(variables):
    return jax.tree.map(lambda a: 3 * a if a.ndim > 1 else a, variables)


@pytest.mark.parametrize(
    "config",
    [
        RecurrentLMConfig(13, width=6, depth=2, tied=True),
        RecurrentLMConfig(13, width=6, hidden=8, depth=1),
        RecurrentLMConfig(13, width=6, hidden=8, depth=2, cell="gru"),
    ],
    ids=["tied", "lstm", "gru"],
)
def test_the_logits_of_each_step_are_those_of_the_whole_row(config, rng):
    net, calls = config.net(), functions(config)
    variables = louder(jax.jit(net.init)(jax.random.key(0)))
    rows = rng.integers(0, 13, (3, 9)).astype(np.int32)
    whole = np.asarray(jax.jit(lambda v, x: net.apply(v, x)[0])(variables, jnp.asarray(rows)))
    assert np.std(whole[:, -1] - whole[:, 0]) > 0.1
    # Prompts of 6, 3 and 1 ids at the right of 6 slots, then one id of each row at a time.
    given = np.array([6, 3, 1])
    real = np.arange(6)[None] >= 6 - given[:, None]
    ids = np.zeros((3, 6), np.int32)
    for row, length in enumerate(given):
        ids[row, 6 - length :] = rows[row, :length]
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    seen = np.pad(real, ((0, 0), (0, 3)))
    cache = calls.start(3, 9, jnp.float32)
    step = Step(jnp.asarray(ids), jnp.asarray(positions), jnp.asarray(real), 0, jnp.asarray(seen))
    decode = jax.jit(calls.decode)
    logits, cache = calls.decode(variables, step, cache, {})
    for more in range(4):
        wanted = np.stack([whole[row, given[row] - 1 + more] for row in range(3)])
        np.testing.assert_allclose(logits, wanted, atol=2e-5)
        ids = np.stack([rows[row, given[row] + more] for row in range(3)])[:, None] if more < 3 else None
        if ids is not None:
            places = jnp.asarray(given[:, None] + more, jnp.int32)
            one = Step(jnp.asarray(ids), places, jnp.ones((3, 1), bool), jnp.asarray(6 + more), jnp.ones((3, 9), bool))
            logits, cache = decode(variables, one, cache, {})


def test_it_learns_to_count_and_goes_on(unchecked):
    rows = (np.arange(9)[None] + np.arange(40)[:, None]) % 7
    model = lm.models.gru_lm(vocab=7, width=16, depth=1, dropout=0.0)
    model.compile(lm.Optimizer("adam", 0.02), "sparse_categorical_crossentropy")
    model.fit(rows[:, :-1], rows[:, 1:], epochs=15, batch_size=8, verbose=0)
    assert lm.generate(model, [[2, 3], [6]], max_new_tokens=5) == [[4, 5, 6, 0, 1], [0, 1, 2, 3, 4]]


def test_a_tied_table_of_another_width_is_refused():
    with pytest.raises(ValueError, match="tied=True wants hidden = width, got 8 and 6"):
        RecurrentLMConfig(13, width=6, hidden=8, tied=True)
