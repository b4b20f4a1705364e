"""Silero VAD: the published net on published sound, whole and window by window."""

import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.seeded import sound

from llmasos_xla import models
from llmasos_xla.models.pretrained.fill import fill
from llmasos_xla.models.silero import SileroVADConfig


@pytest.fixture(scope="module")
def published(shared_data):
    """The published variables, 20 s of sound, and the probabilities that they give."""
    from safetensors.numpy import load_file

    folder = shared_data / "weights_silero_vad"
    variables = fill(SileroVADConfig(), load_file(folder / "silero_vad_16k.safetensors"), "torch")
    with wave.open(str(folder / "test_20s.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    return variables, samples, np.load(folder / "ref.npz")["probs_safetensors"]


def test_the_published_net_gives_its_probabilities(published):
    variables, samples, wanted = published
    network = models.silero_vad()
    network.variables = jax.tree.map(jnp.asarray, variables)
    got = network.predict(samples[None])[0]
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert 0.1 < np.mean(wanted > 0.5) < 0.99
    np.testing.assert_allclose(jax.nn.sigmoid(network(samples[None]))[0], got, atol=1e-6)


def test_the_published_net_streams(published):
    variables, samples, wanted = published
    network = models.silero_vad()
    network.variables = jax.tree.map(jnp.asarray, variables)
    stream = network.stream()
    pieces = [stream(piece) for piece in np.split(samples, [300, 301, 4000, 100000])]
    assert pieces[0].shape == (1, 0)
    logits = np.concatenate([*pieces, stream.finish()], axis=1)[0]
    np.testing.assert_allclose(jax.nn.sigmoid(logits), wanted, atol=1e-4)


def test_windows_give_the_whole():
    config = SileroVADConfig(window=32, context=4, fft_length=16, widths=(6, 5, 5, 6), hidden=4)
    variables = config.net().init(jax.random.key(0))
    x = sound(0, 2, 32 * 9 + 5)
    whole = config.net().apply(variables, jnp.asarray(x), train=False)[0]
    stream = models.Stream(config, variables, batch=2, chunk=64)
    got = np.concatenate([stream(x[:, :100]), stream(x[:, 100:]), stream.finish()], axis=1)
    assert got.shape == whole.shape == (2, 9)
    np.testing.assert_allclose(got, whole, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([stream(x), stream.finish()], axis=1), got)


def test_refusals():
    config = SileroVADConfig()
    variables = config.net().init(jax.random.key(0))
    with pytest.raises(ValueError, match="whole strides of 512 samples is wanted, got 700"):
        models.Stream(config, variables, chunk=700)
    with pytest.raises(ValueError, match=r"samples \[2, time\] are wanted, got \(1, 512\)"):
        models.Stream(config, variables, batch=2)(np.zeros(512))
    with pytest.raises(ValueError, match="511 samples are no whole window of 512"):
        config.output_shape((511,))
    with pytest.raises(ValueError, match="give 8"):
        SileroVADConfig(window=1024)
    with pytest.raises(ValueError, match="it does not stream"):
        models.Stream(models.VGGConfig.vgg11(), variables)
