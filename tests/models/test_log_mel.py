"""Log-mel spectrograms: librosa's, Whisper's, and the same ones chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.golden import folder, read
from goldens.seeded import sound

from llmasos_xla.models.layers import LogMel

GOLDENS = [path for path in sorted((folder() / "features").glob("*.npz")) if read(path).kind == "LogMel"]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_the_original_gave_the_same(path):
    golden = read(path)
    layer = LogMel(**golden.config)
    (case,) = golden.cases
    x = np.pad(sound(0, *case["samples"]), ((0, 0), (0, int(case["zeros"]))))
    got = np.asarray(jax.jit(layer)(jnp.asarray(x)))
    assert got.shape[1:] == layer.output_shape(x.shape[1:])
    wanted, got = case["output"], got[:, case["steps"]]
    assert np.std(wanted) > 1e-3 * np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    if layer.log == "none":
        # Weak filters too: librosa's own float32 leaves them this much.
        np.testing.assert_allclose(got, wanted, rtol=2e-3)


def test_goldens_are_there():
    assert len(GOLDENS) >= 4


@pytest.mark.parametrize("fft_length", [None, 47])
def test_chunks_give_the_whole(fft_length):
    layer = LogMel(rate=8000, mels=11, window=40, hop=16, fft_length=fft_length)
    x = jnp.asarray(sound(3, 2, 16 * 21))
    whole = layer(x)
    assert whole.shape == (2, 21, 11)
    state, parts = jnp.zeros((2, layer.kept)), []
    for start, stop in ((0, 1), (1, 2), (2, 7), (7, 21)):
        part, state = layer.stream(x[:, 16 * start : 16 * stop], state)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(layer(x[:, : 16 * 9 + 5]), whole[:, :9], rtol=1e-6, atol=1e-6)


def test_silence_and_its_gradient_are_finite():
    layer = LogMel(rate=8000, mels=11, window=40, hop=16, power=1.0)
    value, gradient = jax.value_and_grad(lambda x: layer(x).sum())(jnp.zeros((1, 64)))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"hop": 500}, "hop <= window <= fft_length is wanted, got 500, 400, 400"),
        ({"highest": 9000.0}, "highest <= 8000 Hz"),
        ({"log": "ln"}, "unknown log 'ln'"),
        ({"range_db": 0.0}, "range_db wants a positive number"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        LogMel(**arguments)


def test_what_looks_ahead_does_not_stream():
    with pytest.raises(ValueError, match="looks at the whole sound"):
        LogMel.whisper().stream(jnp.zeros((1, 160)), jnp.zeros((1, 240)))
    with pytest.raises(ValueError, match="whole hops of 160 samples are wanted, got 161"):
        LogMel().stream(jnp.zeros((1, 161)), jnp.zeros((1, 240)))
    with pytest.raises(ValueError, match="150 samples make no frame"):
        LogMel().output_shape((150,))
