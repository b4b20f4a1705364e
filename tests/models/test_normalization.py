"""Normalization layers against float64 NumPy, and what batch normalization remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.core import Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.stack import Stack


def standardized(x, axes, epsilon=1e-3):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(3.0, 2.0, size=(4, 5, 3, 6)), jnp.float32)


def random_like(variables: Variables, rng) -> Variables:
    fill = {name: jnp.asarray(rng.uniform(0.5, 2, a.shape), jnp.float32) for name, a in variables.params.items()}
    return Variables(fill, variables.state)


@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_normalization_in_training_uses_the_batch_and_moves_towards_it(x, rng, apply_layer, axis):
    layer = L.BatchNormalization(axis=axis, momentum=0.9)
    _, variables = apply_layer(layer, x)
    variables = random_like(variables, rng)
    y, after = apply_layer(layer, x, variables=variables, train=True)

    along = [1] * 4
    along[axis] = x.shape[axis]
    others = tuple(i for i in range(4) if i != axis % 4)
    scale, bias = (np.asarray(variables.params[n]).reshape(along) for n in ("scale", "bias"))
    assert_close(y, standardized(x, others) * scale + bias)
    wide = np.asarray(x, np.float64)
    assert_close(after.state["mean"], 0.9 * 0 + 0.1 * wide.mean(others))
    assert_close(after.state["var"], 0.9 * 1 + 0.1 * wide.var(others))


def test_batch_normalization_in_evaluation_uses_and_keeps_the_moving_statistics(x, apply_layer):
    layer = L.BatchNormalization(epsilon=0.01)
    _, variables = apply_layer(layer, x)
    state = {"mean": jnp.arange(6.0), "var": jnp.arange(1.0, 7.0)}
    y, after = apply_layer(layer, x, variables=Variables(variables.params, state))
    assert_close(y, (np.asarray(x, np.float64) - np.arange(6.0)) / np.sqrt(np.arange(1.0, 7.0) + 0.01))
    assert after.state.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(after.state[name], state[name])


def test_moving_statistics_converge_to_the_data(rng, apply_layer):
    layer, variables = L.BatchNormalization(momentum=0.8), None
    for _ in range(60):
        batch = jnp.asarray(rng.normal(5.0, 3.0, size=(256, 2)), jnp.float32)
        _, variables = apply_layer(layer, batch, variables=variables, train=True)
    np.testing.assert_allclose(variables.state["mean"], 5.0, atol=0.4)
    np.testing.assert_allclose(variables.state["var"], 9.0, atol=1.5)


def test_batch_statistics_leave_padding_out(rng, apply_layer):
    x = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    mask = jnp.array([[True, True, False, False], [True, True, True, False]])
    y, after = apply_layer(L.BatchNormalization(), x, train=True, mask=mask)
    other, after_other = apply_layer(L.BatchNormalization(), jnp.where(mask[..., None], x, 99.0), train=True, mask=mask)
    assert_close(after.state["mean"], after_other.state["mean"])
    assert_close(other[mask], y[mask])
    assert_close(y[mask], standardized(x[mask], 0))


def test_variance_of_large_means_does_not_cancel(rng, apply_layer):
    x = jnp.asarray(4096 + rng.normal(size=(512, 1)), jnp.float32)
    _, after = apply_layer(L.BatchNormalization(momentum=0.0), x, train=True)
    np.testing.assert_allclose(after.state["var"], np.var(np.asarray(x, np.float64)), rtol=1e-3)


def test_batch_normalization_of_bfloat16_keeps_float32_statistics(rng, apply_layer):
    x = jnp.asarray(rng.normal(3.0, 1.0, size=(4096, 1)), jnp.bfloat16)
    y, after = apply_layer(L.BatchNormalization(momentum=0.0), x, train=True)
    assert y.dtype == jnp.bfloat16
    assert after.state["mean"].dtype == jnp.float32
    assert_close(after.state["mean"], np.asarray(x, np.float64).mean(0))


@pytest.mark.parametrize("axis", [-1, 2, (1, 2), (3, 1)])
def test_layer_normalization(x, rng, apply_layer, axis):
    layer = L.LayerNormalization(axis=axis)
    _, variables = apply_layer(layer, x)
    variables = random_like(variables, rng)
    y, _ = apply_layer(layer, x, variables=variables)
    axes = tuple(sorted(a % 4 for a in (axis if isinstance(axis, tuple) else (axis,))))
    along = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    scale, bias = (np.asarray(variables.params[n]).reshape(along) for n in ("scale", "bias"))
    assert_close(y, standardized(x, axes) * scale + bias)


@pytest.mark.parametrize(("groups", "each"), [(1, 6), (2, 3), (-1, 1)])
def test_group_normalization(x, apply_layer, groups, each):
    y, _ = apply_layer(L.GroupNormalization(groups), x)
    for start in range(0, 6, each):
        part = slice(start, start + each)
        assert_close(y[..., part], standardized(x[..., part], (1, 2, 3)))


def test_group_normalization_along_another_axis(x, apply_layer):
    y, _ = apply_layer(L.GroupNormalization(3, axis=3), x)
    moved, _ = apply_layer(L.GroupNormalization(3, axis=1), jnp.moveaxis(x, 3, 1))
    assert_close(jnp.moveaxis(moved, 1, 3), y)


def test_batch_statistics_are_differentiated_through(rng, apply_layer):
    layer = L.BatchNormalization(center=False, scale=False)
    x = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)

    def loss(x):
        return jnp.sum(apply_layer(layer, x, train=True)[0] * weights)

    gradient = jax.grad(loss)(x)
    x64, step = np.asarray(x, np.float64), 1e-6
    for at in [(0, 0), (3, 1)]:
        shift = np.zeros_like(x64)
        shift[at] = step
        ends = [(standardized(x64 + s * shift, 0) * np.asarray(weights, np.float64)).sum() for s in (1, -1)]
        np.testing.assert_allclose(gradient[at], (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_convolution_takes_up_the_normalization_behind_it(
    apply_layer, rng, monkeypatch, activation, residual, use_bias
):
    from llmasos_xla.models.layers.conv import _ConvModule

    path = [L.Conv2D(4, 3, padding="same", use_bias=use_bias), L.BatchNormalization()]
    layers = [L.Residual(path)] if residual else path
    x = jnp.asarray(rng.normal(size=(3, 6, 5, 4)), jnp.float32)
    made = [*layers, *([L.Activation(activation)] if activation else [])]
    net = pure(lambda rngs: Stack(made, x.shape[1:], rngs=rngs))
    variables = net.init(jax.random.key(0))
    params = {n: jnp.asarray(rng.normal(size=a.shape), jnp.float32) for n, a in variables.params.items()}
    state = {n: jnp.asarray(rng.uniform(0.5, 2, size=a.shape), jnp.float32) for n, a in variables.state.items()}
    taken = []
    normalized = _ConvModule.normalized
    monkeypatch.setattr(_ConvModule, "normalized", lambda *a: taken.append(1) or normalized(*a))
    folded, _ = net.apply(Variables(params, state), x, train=False)
    assert taken
    monkeypatch.setattr(_ConvModule, "absorbs", lambda self, x: False)
    plain, _ = net.apply(Variables(params, state), x, train=False)
    assert len(taken) == 1
    assert_close(folded, plain, scale=5)


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_depthwise_convolution_takes_up_the_normalization_behind_it(rng, monkeypatch, use_bias):
    from llmasos_xla.models.layers.separable import _Depthwise

    layers = [L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=use_bias), L.BatchNormalization(), L.ReLU()]
    x = jnp.asarray(rng.normal(size=(3, 6, 5, 4)), jnp.float32)
    net = pure(lambda rngs: Stack(layers, x.shape[1:], rngs=rngs))
    variables = net.init(jax.random.key(0))
    params = {n: jnp.asarray(rng.normal(size=a.shape), jnp.float32) for n, a in variables.params.items()}
    state = {n: jnp.asarray(rng.uniform(0.5, 2, size=a.shape), jnp.float32) for n, a in variables.state.items()}
    folded, _ = net.apply(Variables(params, state), x, train=False)
    called = []
    monkeypatch.setattr(_Depthwise, "absorbs", lambda self, x: called.append(1))
    plain, _ = net.apply(Variables(params, state), x, train=False)
    assert called
    assert_close(folded, plain, scale=5)
