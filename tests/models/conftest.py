"""How a test calls one layer."""

from collections.abc import Callable

import jax
import pytest

from llmasos_xla.core import Variables, pure
from llmasos_xla.models.layers import Layer


def _apply(layer: Layer, x, *, variables=None, train=False, key=None, **inputs):
    net = pure(lambda rngs: layer.build(x.shape[1:], rngs))
    variables = net.init(jax.random.key(0)) if variables is None else variables
    y, state = net.apply(variables, x, train=train, key=key, **inputs)
    return y, Variables(variables.params, state)


@pytest.fixture
def apply_layer() -> Callable:
    """`apply_layer(layer, x, variables=None, train=False, key=None, mask=...) -> (y, variables with the new state)`."""
    return _apply
