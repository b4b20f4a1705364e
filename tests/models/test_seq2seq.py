"""Recurrent encoder-decoders: step by step is the whole row, padding changes nothing, they learn and write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.models import Seq2SeqConfig
from llmasos_xla.models.generation.protocol import Step, functions

KINDS = [("gru", "luong"), ("lstm", "luong"), ("gru", "bahdanau"), ("lstm", "bahdanau")]


@pytest.mark.parametrize(("cell", "attention"), KINDS)
def test_the_logits_of_each_step_are_those_of_the_whole_row(cell, attention, rng):
    config = Seq2SeqConfig(11, target_vocab=13, width=6, hidden=8, cell=cell, attention=attention)
    net, calls = config.net(), functions(config)
    variables = jax.tree.map(lambda a: 3 * a if a.ndim > 1 else a, jax.jit(net.init)(jax.random.key(0)))
    rows, steps = (jnp.asarray(rng.integers(1, n, (3, 7)), jnp.int32) for n in (11, 13))
    mask = jnp.arange(7)[None] < jnp.array([7, 4, 1])[:, None]
    x = {"ids": rows, "attention_mask": mask}
    whole = np.asarray(jax.jit(lambda v, x: net.apply(v, x)[0])(variables, {**x, "decoder_input_ids": steps}))
    assert np.std(whole[:, -1] - whole[:, 0]) > 0.1
    memory = jax.jit(calls.encode)(variables, x)
    # The first two ids at the right of five slots, as `generate` has them, then one at a time.
    real = jnp.broadcast_to(jnp.arange(5) >= 3, (3, 5))
    ids = jnp.concatenate([jnp.zeros((3, 3), jnp.int32), steps[:, :2]], axis=1)
    cache = calls.start(3, 10, jnp.float32)
    step = Step(ids, jnp.zeros((3, 5), jnp.int32), real, 0, jnp.pad(real, ((0, 0), (0, 5))))
    logits, cache = calls.decode(variables, step, cache, memory)
    np.testing.assert_allclose(logits, whole[:, 1], atol=3e-5)
    decode, one = jax.jit(calls.decode), jnp.ones((3, 1), bool)
    for at in range(2, 7):
        step = Step(steps[:, at : at + 1], jnp.full((3, 1), at), one, jnp.asarray(3 + at), jnp.ones((3, 10), bool))
        logits, cache = decode(variables, step, cache, memory)
        np.testing.assert_allclose(logits, whole[:, at], atol=3e-5)


def test_padding_changes_nothing(rng):
    config = Seq2SeqConfig(11, width=6, hidden=8, depth=2)
    net = config.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    rows, steps = (rng.integers(1, 11, (2, 5)).astype(np.int32) for _ in range(2))
    padded = {
        "ids": np.pad(rows, ((0, 0), (0, 4)), constant_values=7),
        "attention_mask": np.arange(9)[None] < [[5], [5]],
    }
    alone = net.apply(variables, {"ids": jnp.asarray(rows), "decoder_input_ids": jnp.asarray(steps)})[0]
    given = {name: jnp.asarray(a) for name, a in {**padded, "decoder_input_ids": steps}.items()}
    np.testing.assert_allclose(net.apply(variables, given)[0], alone, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_it_learns_to_turn_rows_around_and_then_writes_them(attention, unchecked):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 5, 256)
    ids = np.where(np.arange(4) < lengths[:, None], rng.integers(3, 10, (256, 4)), 0)
    wanted = np.full((256, 5), -100)
    for row, length in enumerate(lengths):
        wanted[row, : length + 1] = [*ids[row, :length][::-1], 2]
    before = np.concatenate([np.ones((256, 1), int), np.maximum(wanted, 0)[:, :-1]], axis=1)
    x = {"ids": ids, "attention_mask": (ids > 0).astype(int), "decoder_input_ids": before}
    make = lm.models.seq2seq if attention == "luong" else lm.models.seq2seq_bahdanau
    model = make(vocab=10, width=16, hidden=32, dropout=0.0)
    model.compile(lm.Optimizer("adam", 0.01), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x, wanted, epochs=20, batch_size=32, verbose=0)
    assert history.history["accuracy"][-1] > 0.95
    prompts = [row[:length].tolist() for row, length in zip(ids[:20], lengths[:20])]
    rows = lm.generate(model, prompts, max_new_tokens=6)
    assert sum(row == prompt[::-1] for row, prompt in zip(rows, prompts)) >= 16


def test_what_the_decoder_reads_must_come():
    with pytest.raises(ValueError, match="'decoder_input_ids' is missing: the wanted ids behind start_id"):
        lm.models.seq2seq(vocab=5, width=2, hidden=2)(np.ones((1, 3), np.int32))
