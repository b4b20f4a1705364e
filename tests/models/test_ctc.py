"""Recognizers by CTC: padding changes nothing, chunks give the whole, decoders find what is most probable."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens.seeded import sound

from llmasos_xla import models
from llmasos_xla.models.ctc import CTCConfig
from llmasos_xla.models.layers import LogMel
from llmasos_xla.training.losses import check_targets, loss_by_name
from llmasos_xla.training.optimizers import Optimizer

MEL = LogMel(rate=8000, mels=8, window=40, hop=20)
BODIES = {
    "lstm": CTCConfig(5, width=6, depth=2, channels=3, features=MEL),
    "gru": CTCConfig(5, width=6, depth=2, channels=3, features=MEL, body="gru", subsampling=2),
    "conformer": CTCConfig(5, 8, 2, "conformer", channels=3, features=MEL, num_heads=2, left=4, window=3),
}
every_body = pytest.mark.parametrize("body", BODIES)


def made(config):
    net = config.net()
    variables = jax.jit(net.init)(jax.random.key(1))
    return variables, jax.jit(lambda variables, x: net.apply(variables, x, train=False)[0])


@every_body
def test_chunks_give_the_whole(body):
    config = BODIES[body]
    variables, apply = made(config)
    x = sound(0, 2, config.stride * 23 + 11)
    whole = apply(variables, jnp.asarray(x))
    assert whole.shape == (2, 23, 5)
    stream = models.Stream(config, variables, batch=2, chunk=3 * config.stride)
    pieces = [stream(x[:, :50]), stream(x[:, 50 : 7 * config.stride]), stream(x[:, 7 * config.stride :])]
    got = np.concatenate([*pieces, stream.finish()], axis=1)
    np.testing.assert_allclose(got, whole, atol=2e-5)
    assert {a.shape for a in jax.tree.leaves(stream._state)} == {
        a.shape for a in jax.tree.leaves(config.stream_state(2))
    }


@every_body
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing_before_it(body, causal):
    config = BODIES[body]
    config = CTCConfig(**{**config._given(), "causal": causal})
    variables, apply = made(config)
    x, lengths = sound(1, 2, config.stride * 12), np.array([config.stride * 12, config.stride * 5 + 3], np.int32)
    short = apply(variables, jnp.asarray(x[1:, : lengths[1]]))
    x[1, lengths[1] :] = 0.5
    padded = apply(variables, config.bind(jnp.asarray(x), lengths=jnp.asarray(lengths)))
    np.testing.assert_allclose(padded[1, :5], short[0], atol=2e-5)
    assert (jax.nn.softmax(padded[1, 5:])[:, 0] > 1 - 1e-6).all()
    assert np.std(short) > 1e-2


def test_long_sound_is_attended_in_blocks():
    config = CTCConfig(**{**BODIES["conformer"]._given(), "left": 5})
    variables, apply = made(config)
    x = jnp.asarray(sound(2, 1, config.stride * 37))
    far = x.at[:, : config.stride * 4].set(0.3)
    moved = np.abs(apply(variables, x) - apply(variables, far)).max(axis=(0, 2))
    # Two blocks see 5 steps each, their convolutions 2, the strided ones less than 2 and the window one.
    assert (moved[: 4 + 1] > 1e-4).all()
    assert (moved[4 + 2 * (5 + 2) + 3 :] == 0).all()


def test_the_loss_is_optax_and_skips_padding():
    config = BODIES["lstm"]
    variables, apply = made(config)
    x, lengths = jnp.asarray(sound(3, 2, config.stride * 12)), jnp.array([960, 480])
    logits = apply(variables, config.bind(x, lengths=lengths))
    labels = jnp.array([[1, 2, 2, 3], [4, 1, 0, 0]])
    loss = loss_by_name("ctc")(logits, logits, labels)
    alone = [
        optax.ctc_loss(logits[i : i + 1, :steps], jnp.zeros((1, steps)), labels[i : i + 1, :n], jnp.zeros((1, n)))[0]
        for i, (steps, n) in enumerate(((12, 4), (6, 2)))
    ]
    np.testing.assert_allclose(loss, jnp.stack(alone), rtol=1e-5)


@pytest.mark.thorough
def test_a_fit_learns_to_read():
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 4, (48, 3)).astype(np.int32)
    labels[::3, 2] = 0
    tones = np.sin(2 * np.pi * np.array([0, 400, 1100, 2300])[:, None] * np.arange(800) / 8000)
    x = (0.3 * tones[labels] + 0.01 * rng.standard_normal((48, 3, 800))).astype(np.float32).reshape(48, 2400)
    x = np.pad(x.reshape(48, 3, 800), ((0, 0), (0, 0), (0, 160))).reshape(48, -1)
    network = models.ctc_gru(vocab=4, width=32, depth=1, channels=8, dropout=0.0, features=MEL)
    network.compile(Optimizer("adam", 0.02, clip_norm=1.0), "ctc")
    history = network.fit(x, labels, epochs=80, batch_size=16, verbose=0).history
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    wanted = ["".join(map(str, row[row > 0])) for row in labels]
    read = models.ctc_text(network(x), ["", "1", "2", "3"])
    assert np.mean([a == b for a, b in zip(read, wanted)]) > 0.9


def collapsed(path):
    return tuple(label for label, _ in itertools.groupby(path) if label)


def test_beam_search_finds_the_most_probable_labels(rng):
    logits = rng.normal(size=(3, 5, 3)).astype(np.float32) * 1.5
    logs = np.asarray(jax.nn.log_softmax(logits))
    for row, readings in zip(logs, models.beam_search(logits, width=200, least=-np.inf)):
        sums = {}
        for path in itertools.product(range(3), repeat=5):
            probability = np.exp(sum(row[t, i] for t, i in enumerate(path)))
            sums[collapsed(path)] = sums.get(collapsed(path), 0.0) + probability
        best = max(sums, key=sums.get)
        assert readings[0].labels == best
        found = {reading.labels: np.exp(reading.score) for reading in readings}
        assert found.keys() == sums.keys()
        for labels, probability in sums.items():
            np.testing.assert_allclose(found[labels], probability, rtol=1e-4)
    longer = models.beam_search(logits, width=200, bonus=3.0)
    assert all(len(a[0].labels) >= len(b[0].labels) for a, b in zip(longer, models.beam_search(logits, width=200)))


def test_greedy_collapses_the_best_path(rng):
    paths = rng.integers(0, 3, (6, 9))
    rows = np.asarray(jax.jit(models.greedy)(jax.nn.one_hot(paths, 3)))
    assert [tuple(row[row > 0]) for row in rows] == [collapsed(path) for path in paths.tolist()]
    assert models.ctc_text(jax.nn.one_hot(paths, 3), " ab") == ["".join(" ab"[i] for i in row if i) for row in rows]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.array([[1.0, 2.0]]), "wants integer labels"),
        (np.array([[1, 5]]), "label 5 of row 0 is out of range: the model has 5 outputs, so labels go from 1 to 4"),
        (np.array([[1, 2], [0, 2]]), "row 1 has a 0 before a label"),
        (np.array([[1, 1, 2]]), "the labels of row 0 need 4 steps of output, the model gives 3"),
    ],
)
def test_labels_that_cannot_be(labels, text):
    with pytest.raises(ValueError, match=text):
        check_targets(loss_by_name("ctc"), labels, (3, 5))


def test_refusals():
    with pytest.raises(ValueError, match="streaming wants causal=True"):
        models.streaming(CTCConfig(causal=False))
    with pytest.raises(ValueError, match="subsampling wants a power of 2, got 3"):
        CTCConfig(subsampling=3)
    with pytest.raises(ValueError, match="without features= give input_shape"):
        CTCConfig(features=None).net()
    with pytest.raises(ValueError, match="500 samples are no step of 640"):
        CTCConfig().output_shape((500,))
    with pytest.raises(ValueError, match="unknown body 'rnn'"):
        CTCConfig(body="rnn")
    small: Any = models.conformer_small(vocab=5, width=8, depth=1, num_heads=2, channels=4)
    for lengths in ([9], [9, 9, 9]):
        with pytest.raises(ValueError, match="one length for each row is wanted, got"):
            small(np.zeros((2, 1280), np.float32), np.array(lengths))
