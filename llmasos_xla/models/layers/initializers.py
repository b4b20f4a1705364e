"""Initial values of arrays by the names Keras uses."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers as init

from llmasos_xla.errors import unknown

Initializer = jax.nn.initializers.Initializer


def random_uniform(key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> jax.Array:
    """Uniform in [-0.05, 0.05), as Keras' RandomUniform; jax's own spans 0 to its scale."""
    return jax.random.uniform(key, shape, dtype or float, -0.05, 0.05, out_sharding=out_sharding)


# Their spread follows from the array's shape.
_SCALED = {
    "glorot_uniform": init.glorot_uniform,
    "glorot_normal": init.glorot_normal,
    "he_uniform": init.he_uniform,
    "he_normal": init.he_normal,
    "lecun_uniform": init.lecun_uniform,
    "lecun_normal": init.lecun_normal,
}

INITIALIZERS: dict[str, Initializer] = {
    "zeros": init.zeros,
    "ones": init.ones,
    **{name: make() for name, make in _SCALED.items()},
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


def stacked(name: str, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A stack of matrices [..., rows, columns], float32, each as the initializer of that name makes a single one.

    >>> stacked("glorot_uniform", jax.random.key(0), (5, 3, 4)).shape
    (5, 3, 4)
    """
    *stack, rows, columns = shape
    if name == "orthogonal" and stack:
        draw = init.orthogonal()
        keys = jax.random.split(key, math.prod(stack))
        return jax.vmap(lambda key: draw(key, (rows, columns), jnp.float32))(keys).reshape(shape)
    # One draw for all: XLA compiles it eight times faster than a draw for each key of a stack.
    make = _SCALED.get(name)
    draw = initializer(name) if make is None else make(batch_axis=tuple(range(len(stack))))
    return draw(key, shape, jnp.float32)
