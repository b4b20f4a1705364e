"""T5 beyond the contract of the shelf: writing with a cache, relative positions, training with the wanted ids given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.golden import folder, read
from goldens.seeded import seeded

import llmasos_xla as lm
from llmasos_xla.models import T5Config
from llmasos_xla.models.generation import tokens
from llmasos_xla.models.generation.protocol import functions
from llmasos_xla.models.generation.sampling import Sampling
from llmasos_xla.models.layers._relative import bias_from, bias_within, buckets
from llmasos_xla.models.pretrained.fill import fill

TINY = {"vocab": 14, "width": 32, "depth": 1, "heads": 2, "key_dim": 16, "hidden": 64, "dropout": 0.0}


def written(config, variables, x, new, ends=()):
    """What greedy decoding writes, encoder once and a cache."""
    calls, rows = functions(config), len(x["ids"])
    x = {name: jnp.asarray(a) for name, a in x.items()}
    keys, sampling = jax.random.split(jax.random.key(0), rows), Sampling.of(0.0, None, None)
    ends = jnp.asarray([*ends, -1], jnp.int32)
    first = jnp.full((rows, 1), config.first_ids[0], jnp.int32)

    def run(variables, x):
        memory = calls.encode(variables, x)
        start = functools.partial(tokens.prefill, calls, config.adjust, new=new, dtype=jnp.float32)
        state = start(variables, memory, first, jnp.ones((rows, 1), bool), keys, sampling, ends)
        until = jnp.asarray(new, jnp.int32)
        return tokens.advance(calls, config.adjust, variables, memory, state, keys, sampling, ends, until)

    state = jax.jit(run)(variables, x)
    return [row[:n].tolist() for row, n in zip(np.asarray(state.ids), np.asarray(state.lengths), strict=True)]


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_what_it_writes_with_a_cache_is_what_the_original_writes(name):
    golden = read(folder() / f"{name}.npz")
    config = T5Config.from_huggingface(golden.config)
    arrays = {name: seeded(name, shape) for name, shape in golden.arrays.items()}
    variables = jax.tree.map(jnp.asarray, fill(config, arrays, "huggingface", ignored=config.ignored))
    case = golden.cases[0]
    x = {name: case[name] for name in config.encoder_inputs}
    assert len(np.unique(case["greedy"])) > 3
    assert written(config, variables, x, 12) == case["greedy"].tolist()


def test_relative_positions_are_the_same_from_a_row_and_from_places():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)
    for both in (True, False):
        numbers = buckets(8, 10, both_ways=both)
        for time in (1, 7, 25):
            places = jnp.arange(time, dtype=jnp.int32)
            within = bias_within(table, numbers, time)
            np.testing.assert_array_equal(within, bias_from(table, numbers, places, places))
            np.testing.assert_array_equal(within[..., -1:, :], bias_from(table, numbers, places[-1:], places))
            distances = np.clip(np.arange(time)[None] - np.arange(time)[:, None], -10, 10)
            np.testing.assert_array_equal(within[0], np.asarray(table)[numbers[distances + 10]].transpose(2, 0, 1))


@pytest.mark.parametrize("both", [True, False])
def test_farther_distances_never_fall_into_nearer_buckets(both):
    numbers = buckets(32, 128, both_ways=both)
    past, future = numbers[128::-1], numbers[128:]
    assert (np.diff(past) >= 0).all()
    assert (np.diff(future) >= 0).all() if both else (future == 0).all()
    assert len(np.unique(numbers)) == (31 if both else 32)


@pytest.mark.thorough
def test_it_learns_to_turn_rows_around_and_then_writes_them(unchecked):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 5, 512)
    ids = np.where(np.arange(5) < lengths[:, None], rng.integers(2, 14, (512, 5)), 0)
    wanted = np.full((512, 5), -100)
    for row, length in enumerate(lengths):
        wanted[row, : length + 1] = [*ids[row, :length][::-1], 1]
    read_by_decoder = np.concatenate([np.zeros((512, 1), int), np.maximum(wanted, 0)[:, :-1]], axis=1)
    x = {"ids": ids, "attention_mask": (ids > 0).astype(int), "decoder_input_ids": read_by_decoder}
    model = lm.models.flan_t5_small(**TINY)
    model.compile(lm.Optimizer("adam", 0.003), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x, wanted, epochs=30, batch_size=32, verbose=0)
    assert history.history["accuracy"][-1] > 0.9
    asked = {name: x[name][:20] for name in ("ids", "attention_mask")}
    rows = written(model.config, model.variables, asked, 6, ends=model.config.end_ids)
    right = sum(row == ids[i, : lengths[i]][::-1].tolist() for i, row in enumerate(rows))
    assert right >= 15


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="'decoder_input_ids' is missing: the wanted ids behind start_id"):
        lm.models.t5(**TINY)(np.ones((1, 3), np.int32))
    with pytest.raises(ValueError, match="feed_forward_proj 'gated-tanh' is not built here; known: gelu,"):
        T5Config.from_huggingface({"feed_forward_proj": "gated-tanh"})
    with pytest.raises(ValueError, match="farthest more than half of them, got 32 and 8"):
        T5Config(**TINY, farthest=8)
