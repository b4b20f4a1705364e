"""Laws that hold for every layer there is; a layer without a sample fails the first test."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla.core import Net, Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.config import Config
from llmasos_xla.models.stack import Stack

IMAGE, TIME, VOLUME = (5, 6, 4), (7, 3), (4, 3, 5, 2)

SAMPLES: tuple[tuple[L.Layer, tuple[int, ...]], ...] = (
    (L.Dense(5, activation="relu"), (6,)),
    (L.Dense(5, use_bias=False), TIME),
    (L.Conv1D(4, 3, padding="causal", dilation_rate=2), TIME),
    (L.Conv2D(4, (3, 2), strides=2, groups=2, activation="tanh"), IMAGE),
    (L.Conv3D(4, 2, padding="same"), VOLUME),
    (L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", activation="relu"), IMAGE),
    (L.SeparableConv2D(3, 3, depth_multiplier=2), IMAGE),
    (L.Conv2DTranspose(3, (3, 2), strides=(2, 3), padding="same", output_padding=(1, 0)), IMAGE),
    (L.Conv2DTranspose(3, 2, strides=3, dilation_rate=1), IMAGE),
    (L.MaxPooling1D(3, strides=2), TIME),
    (L.MaxPooling2D((2, 3), padding="same"), IMAGE),
    (L.MaxPooling3D(2), VOLUME),
    (L.AveragePooling1D(3, strides=1, padding="same"), TIME),
    (L.AveragePooling2D(2), IMAGE),
    (L.AveragePooling3D(2, padding="same"), VOLUME),
    (L.GlobalAveragePooling1D(), TIME),
    (L.GlobalAveragePooling2D(keepdims=True), IMAGE),
    (L.GlobalAveragePooling3D(), VOLUME),
    (L.GlobalMaxPooling1D(keepdims=True), TIME),
    (L.GlobalMaxPooling2D(), IMAGE),
    (L.GlobalMaxPooling3D(keepdims=True), VOLUME),
    (L.Flatten(), IMAGE),
    (L.Reshape((3, -1)), IMAGE),
    (L.Permute((2, 1)), TIME),
    (L.RepeatVector(3), (6,)),
    (L.ZeroPadding1D((2, 0)), TIME),
    (L.ZeroPadding2D((1, (0, 2))), IMAGE),
    (L.ZeroPadding3D(1), VOLUME),
    (L.Cropping1D((2, 0)), TIME),
    (L.Cropping2D((1, (0, 2))), IMAGE),
    (L.Cropping3D(1), (4, 3, 5, 2)),
    (L.UpSampling1D(3), TIME),
    (L.UpSampling2D((2, 3)), IMAGE),
    (L.UpSampling2D(2, interpolation="bilinear"), IMAGE),
    (L.UpSampling3D((1, 2, 2)), VOLUME),
    (L.Activation("gelu"), IMAGE),
    (L.ReLU(max_value=0.5, negative_slope=0.1), IMAGE),
    (L.LeakyReLU(), TIME),
    (L.PReLU(alpha_initializer="ones", shared_axes=(1, 2)), IMAGE),
    (L.ELU(0.5), TIME),
    (L.Softmax(axis=1), TIME),
    (L.Rescaling(0.5, offset=-1.0), IMAGE),
    (L.Dropout(0.3), IMAGE),
    (L.SpatialDropout1D(0.3), TIME),
    (L.SpatialDropout2D(0.3), IMAGE),
    (L.GaussianNoise(0.3), IMAGE),
    (L.GaussianDropout(0.3), TIME),
    (L.BatchNormalization(), IMAGE),
    (L.BatchNormalization(axis=1, momentum=0.5, scale=False), TIME),
    (L.LayerNormalization(axis=(-1, 1)), IMAGE),
    (L.GroupNormalization(2), IMAGE),
    (L.GroupNormalization(-1, axis=1), IMAGE),
    (L.Embedding(9, 4, mask_zero=True), (7,)),
    (L.Masking(0.5), TIME),
    (L.LogMel(rate=16, mels=3, window=4, hop=2, fft_length=5), (11,)),
    (L.LogMel(rate=16, mels=3, window=4, hop=2, log="decibel", range_db=20.0, padding="reflect"), (11,)),
    (L.SimpleRNN(4, return_sequences=True), TIME),
    (L.GRU(4, go_backwards=True, return_sequences=True), TIME),
    (L.GRU(4, reset_after=False, dropout=0.2), TIME),
    (L.LSTM(4), TIME),
    (L.LSTM(4, layer_norm=True, return_sequences=True), TIME),
    (L.Bidirectional(L.LSTM(4, layer_norm=True)), TIME),
    (L.MinGRU(4, "tanh", dropout=0.2, return_sequences=True), TIME),
    (L.MinGRU(4, use_bias=False, go_backwards=True), TIME),
    (L.Bidirectional(L.MinGRU(4)), TIME),
    (L.Bidirectional(L.LSTM(4, return_sequences=True)), TIME),
    (L.Bidirectional(L.GRU(4), merge_mode="ave"), TIME),
    (L.TimeDistributed(L.Dense(4, activation="softmax")), IMAGE),
    (L.MultiHeadAttention(2, 3, value_dim=5, causal=True, dropout=0.1), TIME),
    (L.Residual([L.Conv2D(3, 3, strides=2, padding="same"), L.BatchNormalization()], [L.Conv2D(3, 1, 2)]), IMAGE),
    (L.Residual([L.LayerNormalization(), L.MultiHeadAttention(1, 4)]), TIME),
    (L.RMSNormalization(), IMAGE),
    (L.MixtureOfExperts(3, 5), (7, 4)),
    (L.MixtureOfExperts(4, 3, experts_per_token=1, prediction_capacity_factor=2.0), (7, 4)),
    (L.Decoder(3, 4, kv_heads=2, hidden_dim=6, dropout=0.1), (7, 8)),
    (L.Decoder(2, 1, key_dim=4, causal=False, rematerialize="block"), TIME),
    (L.Decoder(2, 2, key_dim=2, experts=2, hidden_dim=3, rematerialize="dots"), TIME),
    (L.Add([[L.Dense(4), L.Dense(3)], [], L.Dense(3)]), TIME),
    (L.Average([L.Dense(4), L.Dense(4)]), TIME),
    (L.Concatenate([[], L.MaxPooling2D(3, 1, "same"), [L.Conv2D(2, 1)]]), IMAGE),
    (L.Concatenate([[], L.Dense(3)], axis=1), TIME),
    (L.Maximum([L.Dense(4), L.Dense(4)]), TIME),
    (L.Minimum([L.Dense(4), L.Dense(4)]), TIME),
    (L.Multiply([[], L.Dense(3, activation="sigmoid")]), TIME),
    (L.Subtract([L.Dense(4), L.Dense(4)]), TIME),
    (L.Conv2D(4, 3, strides=2, padding=((1, 0), (2, 1))), IMAGE),
    (L.MaxPooling2D(3, strides=2, padding=1), IMAGE),
    (L.RandomFlip("both"), IMAGE),
    (L.RandomShift((1, 2)), IMAGE),
)

IDS = [f"{type(layer).__name__}-{i}" for i, (layer, _) in enumerate(SAMPLES)]
FIRST = {type(layer): (i,) for i, (layer, _) in reversed([*enumerate(SAMPLES)])}
each_sample = pytest.mark.parametrize("number", range(len(SAMPLES)), ids=IDS)
each_type = pytest.mark.parametrize("number", slow_but(FIRST.values(), range(len(SAMPLES))), ids=IDS)


@functools.cache
def prepared(number: int) -> tuple[Net, Variables, jax.Array]:
    layer, shape = SAMPLES[number]
    net = pure(lambda rngs: Stack([layer], shape, rngs=rngs))
    rng = np.random.default_rng(number)
    x = rng.integers(0, 9, (3, *shape)) if layer.tokens else rng.normal(size=(3, *shape))
    return net, net.init(jax.random.key(number)), jnp.asarray(x, jnp.int32 if layer.tokens else jnp.float32)


def test_every_layer_has_a_sample():
    sampled = {type(layer) for layer, _ in SAMPLES}
    # Networks of the shelf are layers too; they have a contract of their own.
    assert sampled == {layer for layer in L.LAYERS.values() if not issubclass(layer, Config)}


@each_sample
def test_output_shape_tells_the_truth_and_jit_agrees_with_eager(number):
    layer, shape = SAMPLES[number]
    net, variables, x = prepared(number)
    y, state = net.apply(variables, x, train=False)
    assert y.shape == (3, *layer.output_shape(shape))
    jitted, jitted_state = jax.jit(functools.partial(net.apply, train=False))(variables, x)
    assert_close(jitted, y)
    assert jitted_state.keys() == state.keys() == variables.state.keys()


@each_type
def test_training_gives_finite_gradients_for_all_arrays(number):
    layer, _ = SAMPLES[number]
    net, variables, x = prepared(number)

    def loss(params):
        y, state = net.apply(Variables(params, variables.state), x, train=True, key=jax.random.key(1))
        return jnp.sum(jnp.square(y + 0.1)), state

    gradient, state = jax.jit(jax.grad(loss, has_aux=True))(variables.params)
    for name, leaf in {**gradient, **state}.items():
        assert np.isfinite(leaf).all(), name
    for name, leaf in gradient.items():
        # A bias is lost to the mean that normalization takes, an attention's key bias to the softmax.
        assert np.any(leaf) or "key/bias" in name or isinstance(layer, L.Residual), name


@pytest.mark.thorough
@each_type
def test_bfloat16_in_gives_bfloat16_out_close_to_float32(number):
    layer, _ = SAMPLES[number]
    net, variables, x = prepared(number)
    narrow = Variables({name: a.astype(jnp.bfloat16) for name, a in variables.params.items()}, variables.state)
    x16 = x if layer.tokens else x.astype(jnp.bfloat16)
    y, state = jax.jit(functools.partial(net.apply, train=True))(narrow, x16, key=jax.random.key(1))
    assert y.dtype == jnp.bfloat16
    assert {name: a.dtype for name, a in state.items()} == {name: a.dtype for name, a in variables.state.items()}
    y, _ = jax.jit(functools.partial(net.apply, train=False))(narrow, x16)
    wide = Variables({name: a.astype(jnp.float32) for name, a in narrow.params.items()}, variables.state)
    expected, _ = jax.jit(functools.partial(net.apply, train=False))(wide, x16.astype(x.dtype))
    assert y.dtype == jnp.bfloat16
    # Blocks add up each other's rounding, in other orders on other processors.
    assert_close(y, expected, scale=4 if isinstance(layer, L.Decoder) else 2)


@each_sample
def test_json_round_trip(number):
    layer, _ = SAMPLES[number]
    written = json.dumps(layer.to_json(), allow_nan=False)
    assert L.layer_from_json(json.loads(written)) == layer
    assert hash(L.layer_from_json(json.loads(written))) == hash(layer)


@each_sample
def test_an_axis_of_any_length_stays_one_or_is_refused(number):
    layer, shape = SAMPLES[number]
    known = layer.output_shape(shape)
    try:
        open_shape = layer.output_shape((None, *shape[1:]))
    except ValueError as error:
        assert "must have a known size" in str(error)
        return
    assert len(open_shape) == len(known)
    assert all(a is None or a == b for a, b in zip(open_shape, known, strict=True))


@settings(max_examples=25, deadline=None)
@example(size=1, window=2, stride=1, dilation=1, padding="same", output_padding=0)
@given(
    size=st.integers(1, 12),
    window=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.sampled_from(["valid", "same"]) | st.tuples(st.tuples(st.integers(0, 4), st.integers(0, 4))),
    output_padding=st.none() | st.integers(0, 3),
)
def test_output_shapes_of_windows(size, window, stride, dilation, padding, output_padding):
    chosen = [L.MaxPooling1D(window, stride, padding), L.Conv1D(2, window, stride, padding, dilation)]
    if isinstance(padding, str) and (output_padding is None or output_padding < stride):
        chosen.append(L.Conv2DTranspose(2, (window, 1), (stride, stride), padding, output_padding, (dilation, 1)))
    for layer in chosen:
        shape = (size, 2) if not isinstance(layer, L.Conv2DTranspose) else (size, 3, 2)
        try:
            expected = layer.output_shape(shape)
        except ValueError as error:
            assert "does not fit an axis" in str(error)
            continue
        net = pure(lambda rngs, layer=layer, shape=shape: layer.build(shape, rngs))
        variables = jax.eval_shape(net.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        y = jax.eval_shape(lambda v, x, net=net: net.apply(v, x)[0], variables, x)
        assert y.shape[1:] == expected
