"""Layers that are random in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.models import layers as L  # noqa: N812

KINDS = (L.Dropout(0.4), L.GaussianDropout(0.4), L.GaussianNoise(0.4), L.SpatialDropout1D(0.4))


@pytest.fixture
def ones():
    return jnp.ones((50, 40, 30))


@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: type(layer).__name__)
def test_the_mean_stays_in_training_and_all_stays_in_evaluation(ones, apply_layer, layer):
    y, _ = apply_layer(layer, ones, train=True, key=jax.random.key(3))
    assert abs(float(y.mean()) - 1) < 0.05
    np.testing.assert_array_equal(apply_layer(layer, ones, train=False)[0], ones)


@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: type(layer).__name__)
def test_one_key_one_draw(ones, apply_layer, layer):
    a, b, c = (apply_layer(layer, ones, train=True, key=jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_dropout_drops_its_share_and_scales_the_rest(ones, apply_layer):
    y = np.asarray(apply_layer(L.Dropout(0.4), ones, train=True, key=jax.random.key(0))[0])
    assert abs((y == 0).mean() - 0.4) < 0.01
    np.testing.assert_allclose(y[y != 0], 1 / 0.6, rtol=1e-6)


def test_spatial_dropout_drops_whole_channels(ones, apply_layer):
    y = np.asarray(apply_layer(L.SpatialDropout1D(0.4), ones, train=True, key=jax.random.key(0))[0])
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    image = jnp.ones((20, 4, 5, 30))
    y = np.asarray(apply_layer(L.SpatialDropout2D(0.4), image, train=True, key=jax.random.key(0))[0])
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))


def test_noise_has_the_deviation_asked_for(ones, apply_layer):
    y, _ = apply_layer(L.GaussianNoise(0.4), ones, train=True, key=jax.random.key(0))
    assert abs(float(y.std()) - 0.4) < 0.01
    y, _ = apply_layer(L.GaussianDropout(0.4), ones, train=True, key=jax.random.key(0))
    assert abs(float(y.std()) - np.sqrt(0.4 / 0.6)) < 0.01


@pytest.mark.parametrize("layer", [*KINDS, L.LSTM(3, dropout=0.1), L.MultiHeadAttention(1, 2, dropout=0.1)])
def test_no_key_in_training_is_an_error_that_says_what_to_pass(apply_layer, layer):
    with pytest.raises(ValueError, match=r"is random in training and got no key; pass key=jax.random.key"):
        apply_layer(layer, jnp.ones((2, 3, 4)), train=True)


def test_rate_zero_needs_no_key(apply_layer):
    y, _ = apply_layer(L.Dropout(0.0), jnp.ones((2, 3)), train=True)
    np.testing.assert_array_equal(y, np.ones((2, 3)))


@pytest.mark.parametrize("kind", [L.SimpleRNN, L.GRU, L.LSTM])
def test_recurrent_dropout_disturbs_the_state_alone(apply_layer, kind):
    layer, x = kind(64, recurrent_dropout=0.5, return_sequences=True), jnp.ones((8, 3, 4))
    still, variables = apply_layer(layer, x)
    y, _ = apply_layer(layer, x, variables=variables, train=True, key=jax.random.key(0))
    # The first step starts from a state of zeros, of which nothing can be dropped.
    np.testing.assert_allclose(y[:, 0], still[:, 0], rtol=1e-6)
    assert not np.allclose(y[:, 1], still[:, 1])
    np.testing.assert_array_equal(apply_layer(layer, x, variables=variables)[0], still)
    with pytest.raises(ValueError, match="recurrent_dropout"):
        kind(4, recurrent_dropout=1.0)
