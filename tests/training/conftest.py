"""Small models and data that learn in a second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla import pure
from llmasos_xla.models.layers import BatchNormalization, Dense
from llmasos_xla.models.stack import Stack
from llmasos_xla.training.losses import loss_by_name
from llmasos_xla.training.metrics import metric_by_name
from llmasos_xla.training.step import Objective


@pytest.fixture(scope="session")
def net():
    layers = (Dense(8, activation="tanh"), BatchNormalization(), Dense(3))
    return pure(lambda rngs: Stack(layers, (4,), rngs=rngs))


@pytest.fixture(scope="session")
def variables(net):
    return net.init(jax.random.key(0))


@pytest.fixture(scope="session")
def objective(net):
    loss = loss_by_name("sparse_categorical_crossentropy")
    return Objective(net, loss, (metric_by_name("accuracy", loss),), head="softmax")


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return {
        "x": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 3, 6), jnp.int32),
        "weight": jnp.ones(6, jnp.float32),
        "count": jnp.int32(6),
    }
