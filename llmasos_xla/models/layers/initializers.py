"""Initial values of arrays by the names Keras uses."""

from typing import Any

import jax
from jax.nn import initializers as init

from llmasos_xla.errors import unknown

Initializer = jax.nn.initializers.Initializer


def random_uniform(key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> jax.Array:
    """Uniform in [-0.05, 0.05), as Keras' RandomUniform; jax's own spans 0 to its scale."""
    return jax.random.uniform(key, shape, dtype or float, -0.05, 0.05, out_sharding=out_sharding)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": init.zeros,
    "ones": init.ones,
    "glorot_uniform": init.glorot_uniform(),
    "glorot_normal": init.glorot_normal(),
    "he_uniform": init.he_uniform(),
    "he_normal": init.he_normal(),
    "lecun_uniform": init.lecun_uniform(),
    "lecun_normal": init.lecun_normal(),
    "orthogonal": init.orthogonal(),
    "random_normal": init.normal(0.05),
    "normal": init.normal(0.05),
    "truncated_normal": init.truncated_normal(0.05),
    "random_uniform": random_uniform,
    "uniform": random_uniform,
}


def initializer(name: str, who: str = "initializer") -> Initializer:
    """The initializer of that name.

    >>> initializer("he_normal")(jax.random.key(0), (3, 4)).shape
    (3, 4)
    """
    if not isinstance(name, str) or name.lower() not in INITIALIZERS:
        raise unknown(who, "initializer", name, INITIALIZERS)
    return INITIALIZERS[name.lower()]
