"""Stacks: names of arrays, errors that say where, the head, the watcher."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.core import Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.layers._base import layer_names
from llmasos_xla.models.layers.conv import _ConvModule
from llmasos_xla.models.layers.normalization import _BatchNormalization
from llmasos_xla.models.stack import Stack, output_shapes, split_head

SEED_CNN = [
    L.Conv2D(4, (3, 3), activation="relu", input_shape=(8, 8, 1)),
    L.MaxPooling2D((2, 2)),
    L.Flatten(),
    L.Dense(8, activation="relu"),
    L.Dense(3, activation="softmax"),
]


def test_arrays_have_readable_names():
    block = L.Residual([L.Conv2D(4, 1), L.BatchNormalization()], [L.Conv2D(4, 1, name="project")])
    layers = [block, block, L.Bidirectional(L.LSTM(2)), L.Dense(2, name="last")]
    layers[2:2] = [L.Reshape((-1, 4)), L.TimeDistributed(L.Dense(3))]
    net = pure(lambda rngs: Stack(layers, (4, 4, 2), rngs=rngs))
    variables = net.init(jax.random.key(0))
    assert {
        "residual/layers/conv2d/kernel",
        "residual_1/shortcut/project/bias",
        "time_distributed/layer/kernel",
        "bidirectional/backward/recurrent_kernel",
        "last/bias",
    } <= variables.params.keys()
    assert {
        "residual/layers/batch_normalization/mean",
        "residual_1/layers/batch_normalization/var",
    } <= variables.state.keys()


def test_names_are_those_of_keras():
    kinds = (
        L.Conv2DTranspose(1, 1),
        L.MaxPooling1D(),
        L.SimpleRNN(1),
        L.LSTM(1),
        L.GlobalAveragePooling2D(),
        L.PReLU(),
    )
    names = ("conv2d_transpose", "max_pooling1d", "simple_rnn", "lstm", "global_average_pooling2d", "p_re_lu")
    assert layer_names(kinds) == names


def test_made_up_names_go_around_given_ones():
    layers = [L.Dense(1), L.Dense(1, name="dense_1"), L.Dense(1), L.Dense(1)]
    assert layer_names(layers) == ("dense", "dense_1", "dense_2", "dense_3")


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([L.Dense(1, name="a"), L.Dense(1, name="a")], "the name 'a' is given twice"),
        ([L.Dense(1, name="train")], "the name 'train' is taken by nnx.Module itself"),
    ],
)
def test_names_that_cannot_be(layers, text):
    with pytest.raises(ValueError, match=text):
        layer_names(layers)


def test_building_says_which_layer_does_not_fit():
    text = (
        r"layer 2 \(Conv2D\) does not fit its input \(36,\): Conv2D: wants samples of shape \(height, width, channels\)"
    )
    with pytest.raises(ValueError, match=text):
        output_shapes([L.Conv2D(4, 3), L.Flatten(), L.Conv2D(4, 3)], (5, 5, 1))
    with pytest.raises(ValueError, match=text):
        pure(lambda rngs: Stack([L.Conv2D(4, 3), L.Flatten(), L.Conv2D(4, 3)], (5, 5, 1), rngs=rngs))


def test_a_call_says_which_layer_failed_and_with_what():
    net = pure(lambda rngs: Stack([L.Dense(3), L.Residual([L.Dense(3), L.Dropout(0.5)])], (4,), rngs=rngs))
    variables = net.init(jax.random.key(0))
    text = (
        r"layer 1 \(residual\), called with float32\[2, 3\]: layer 1 \(dropout\), called with float32\[2, 3\]: "
        r"Dropout: is random in training"
    )
    with pytest.raises(ValueError, match=text):
        net.apply(variables, jnp.ones((2, 4)), train=True)
    with pytest.raises(ValueError, match=r"layer 0 \(dense\), called with float32\[2, 5\]: dense: x has shape"):
        net.apply(variables, jnp.ones((2, 5)))


def test_the_watcher_sees_all_outputs():
    net = pure(lambda rngs: Stack(SEED_CNN, (8, 8, 1), rngs=rngs))
    variables = net.init(jax.random.key(0))
    seen = {}
    y, _ = net.apply(variables, jnp.ones((2, 8, 8, 1)), watch=lambda name, value: seen.update({name: value}))
    assert list(seen) == ["conv2d", "max_pooling2d", "flatten", "dense", "dense_1"]
    assert [v.shape[1:] for v in seen.values()] == output_shapes(SEED_CNN, (8, 8, 1))
    assert_close(seen["dense_1"], y)


@pytest.mark.parametrize(
    ("last", "head"),
    [
        (L.Dense(3, activation="softmax"), "softmax"),
        (L.Dense(1, activation="sigmoid"), "sigmoid"),
        (L.Activation("softmax"), "softmax"),
        (L.Softmax(), "softmax"),
        (L.TimeDistributed(L.Dense(3, activation="softmax")), "softmax"),
        (L.Conv1D(3, 1, activation="sigmoid"), "sigmoid"),
    ],
)
def test_the_head_put_back_is_what_was_there(last, head):
    layers = [L.Dense(4), last]
    body, name = split_head(layers)
    assert name == head
    x = jax.random.normal(jax.random.key(2), (2, 5, 3))
    whole, parts = (pure(lambda rngs, chosen=chosen: Stack(chosen, (5, 3), rngs=rngs)) for chosen in (layers, body))
    variables = whole.init(jax.random.key(0))
    logits, _ = parts.apply(variables, x)
    assert_close(getattr(jax.nn, head)(logits), whole.apply(variables, x)[0])


@pytest.mark.parametrize(
    "layers", [[], [L.Dense(3)], [L.LSTM(3, activation="sigmoid")], [L.Softmax(axis=1)], [L.Flatten()]]
)
def test_what_is_no_head_stays(layers):
    assert split_head(layers) == (tuple(layers), None)


def test_branches_read_the_same_input():
    x = jax.random.normal(jax.random.key(2), (2, 5, 3))
    net = pure(lambda rngs: Stack([L.Subtract([[], [L.Dense(3, use_bias=False)]])], (5, 3), rngs=rngs))
    variables = net.init(jax.random.key(0))
    y, _ = net.apply(variables, x)
    assert_close(y, x - x @ variables.params["subtract/branch_1/dense/kernel"])


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_pooling_ahead_of_bias_and_activation_changes_no_bit(activation, padding):
    layers = (
        L.Conv2D(3, 3, activation=activation, bias_initializer="ones"),
        L.MaxPooling2D(2, padding=padding),
        L.Flatten(),
    )
    net = pure(lambda rngs: Stack(layers, (7, 6, 2), rngs=rngs))
    variables = net.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 7, 6, 2))
    seen = []
    one_by_one, _ = net.apply(variables, x, train=False, watch=lambda name, y: seen.append(name))
    assert seen == ["conv2d", "max_pooling2d", "flatten"]
    np.testing.assert_array_equal(net.apply(variables, x, train=False)[0], one_by_one)

    def total(params, **watch):
        y, _ = net.apply(Variables(params, {}), x, train=False, **watch)
        return jnp.sum(jnp.sin(y))

    expected = jax.grad(partial(total, watch=lambda name, y: None))(variables.params)
    chex.assert_trees_all_close(jax.grad(total)(variables.params), expected, rtol=1e-5, atol=1e-6)


def norm(**options):
    return [L.Conv2D(16, 3, padding="same", use_bias=False, **options), L.BatchNormalization()]


# Layers, how many normalizations take a ReLU, and how many in a stack that is watched: those inside of its layers.
FOLLOWED = {
    "activation": ([*norm(), L.Activation("relu")], 1, 0),
    "layer": ([*norm(), L.ReLU(name="rectify")], 1, 0),
    "after a sum": ([*norm(), L.Residual([*norm()]), L.Activation("relu")], 1, 0),
    "twice": ([*norm(), L.Activation("relu"), L.Residual([*norm(), L.ReLU(), *norm()], norm()), L.ReLU()], 3, 1),
    "capped": ([*norm(), L.ReLU(max_value=6.0)], 0, 0),
    "leaky": ([*norm(), L.LeakyReLU()], 0, 0),
    "tanh": ([*norm(), L.Activation("tanh")], 0, 0),
    "no normalization last": ([L.Residual([*norm(), L.Activation("relu")]), L.Activation("relu")], 1, 1),
    "zeros": ([L.BatchNormalization(gamma_initializer="zeros"), L.ReLU()], 1, 0),
    "masked": ([L.Masking(), L.BatchNormalization(), L.ReLU()], 1, 0),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_layer_that_takes_the_relu_behind_it_changes_nothing(name, train, monkeypatch):
    layers, taken, taken_inside = FOLLOWED[name]
    shape = (5, 16) if name == "masked" else (6, 6, 16)
    net = pure(lambda rngs: Stack(layers, shape, rngs=rngs))
    variables = net.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    if name == "masked":
        x = x.at[1, 3:].set(0)
    calls = []
    original = _BatchNormalization.masked

    def counting(self, *args, **kwargs):
        calls.append(kwargs.get("activation"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(_BatchNormalization, "masked", counting)
    # Otherwise the convolution takes up the normalization (test_normalization.py).
    monkeypatch.setattr(_ConvModule, "absorbs", lambda self, x: False)

    def loss(params, **watch):
        y, state = net.apply(Variables(params, variables.state), x, train=train, **watch)
        return (jnp.sin(y) ** 2).sum(), (y, state)

    (_, fused), gradients = jax.value_and_grad(loss, has_aux=True)(variables.params)
    assert calls.count("relu") == taken
    calls.clear()
    # A stack that is watched shows each layer's own output.
    wanted = jax.value_and_grad(partial(loss, watch=lambda name, y: None), has_aux=True)(variables.params)
    assert calls.count("relu") == taken_inside
    jax.tree.map(partial(assert_close, scale=30), (fused, gradients), (wanted[0][1], wanted[1]))
