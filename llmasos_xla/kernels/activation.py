"""Activation functions by name, as Keras and the field spell them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llmasos_xla.errors import unknown

Activation = Callable[[jax.Array], jax.Array]


def hard_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """relu6(x + 3) / 6, as in Keras 3 and PyTorch."""
    return jax.nn.relu6(x + 3.0) / 6.0


def hard_sigmoid_keras2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """clip(0.2 x + 0.5, 0, 1): what Keras 1 and 2 called hard_sigmoid; their saved recurrent models need it."""
    return jnp.clip(0.2 * x + 0.5, 0.0, 1.0)


ACTIVATIONS: dict[str, Activation] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "hard_sigmoid_keras2": hard_sigmoid_keras2,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "exponential": jnp.exp,
}


# These see a whole axis; the others take each element by itself.
_ALONG_AN_AXIS = {"softmax": jax.nn.softmax, "log_softmax": jax.nn.log_softmax}


def activation(name: str | None, who: str = "activation", axis: int = -1) -> Activation:
    """The activation function of that name; None is the identity. `axis` is that of softmax and log_softmax.

    >>> float(activation("ReLU")(jnp.float32(-1.0)))
    0.0
    >>> activation("softmax", axis=0)(jnp.zeros((2, 1))).tolist()
    [[0.5], [0.5]]
    """
    if name is None:
        return ACTIVATIONS["linear"]
    if not isinstance(name, str) or name.lower() not in ACTIVATIONS:
        raise unknown(who, "activation", name, ACTIVATIONS)
    name = name.lower()
    return functools.partial(_ALONG_AN_AXIS[name], axis=axis) if name in _ALONG_AN_AXIS else ACTIVATIONS[name]
