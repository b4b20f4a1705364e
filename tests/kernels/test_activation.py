"""Activations by name: the formulas of the field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from tolerances import assert_close

from llmasos_xla import kernels

FORMULAS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * special.expit(x),
    "swish": lambda x: x * special.expit(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid_keras2": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softmax": lambda x: special.softmax(x, -1),
    "log_softmax": lambda x: special.log_softmax(x, -1),
    "exponential": np.exp,
}
X = np.linspace(-4, 7, 33).reshape(3, 11)


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == kernels.ACTIVATIONS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_are_their_formulas(name):
    assert_close(kernels.activation(name)(jnp.asarray(X, jnp.float32)), FORMULAS[name](X.astype(np.float32)))
    with jax.enable_x64(True):
        assert_close(kernels.activation(name.upper())(jnp.asarray(X)), FORMULAS[name](X))


@pytest.mark.parametrize("name", FORMULAS)
def test_another_axis_is_the_transpose(name):
    x = jnp.asarray(X, jnp.float32)
    assert_close(kernels.activation(name, axis=0)(x.T), kernels.activation(name)(x).T)


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_keep_narrow_types(name):
    assert kernels.activation(name)(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_none_is_the_identity_and_unknown_names_list_the_known(unchecked):
    x = jnp.ones(3)
    assert kernels.activation(None)(x) is x
    with pytest.raises(ValueError, match=r"conv: unknown activation 'rleu'; did you mean 'relu'\? Known: elu, "):
        kernels.activation("rleu", "conv")
    with pytest.raises(ValueError, match="activation: unknown activation 3"):
        kernels.activation(3)
