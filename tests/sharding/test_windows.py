"""Windows over an axis that seq divides: one device's gradients, whatever window and stride."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from repetitions import thorough_but

from llmasos_xla.core import pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.stack import Stack
from llmasos_xla.sharding import MeshSpec
from llmasos_xla.sharding.placement import Placement, using

STEPS = {
    "conv": lambda: L.Conv1D(6, 3, padding="same"),
    "valid": lambda: L.Conv1D(6, 4),
    "dilated": lambda: L.Conv1D(6, 3, padding="same", dilation_rate=3),
    "by twos": lambda: L.Conv1D(6, 3, strides=2, padding="same"),
    "by threes": lambda: L.Conv1D(6, 2, strides=3, padding="same"),
    "max": lambda: L.MaxPooling1D(2),
    "overlapping": lambda: L.MaxPooling1D(3, strides=1),
    "overlapping, same": lambda: L.MaxPooling1D(2, strides=1, padding="same"),
    "average": lambda: L.AveragePooling1D(3, strides=2),
}
SPACE = {
    "image": lambda: L.Conv2D(6, 3, strides=2, padding="same"),
    "depthwise": lambda: L.DepthwiseConv2D(3, strides=2, padding="same"),
    "separable": lambda: L.SeparableConv2D(6, 3, strides=3, padding="same"),
    "transposed": lambda: L.Conv2DTranspose(6, 3, strides=2, padding="same"),
}


EIGHT, THREE = MeshSpec(seq=8), MeshSpec(data=2, tensor=2, seq=2)
CASES = [
    *((name, size, EIGHT) for name in (*STEPS, *SPACE) for size in (8, 16)),
    *((name, 8, THREE) for name in ("conv", "by twos", "image", "transposed")),
]


@pytest.mark.parametrize(("name", "size", "spec"), thorough_but([c for c in CASES if c[1] == 8], CASES), ids=str)
def test_gradients_are_those_of_one_device(name, size, spec):
    layer, shape = (STEPS[name](), (size, 4)) if name in STEPS else (SPACE[name](), (size, 5, 4))
    net = pure(lambda rngs: Stack((layer,), shape, rngs=rngs))
    variables = jax.jit(net.init)(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(size).normal(size=(4, *shape)), jnp.float32)

    def loss(params, x):
        y, _ = net.apply(variables._replace(params=params), x, train=True, key=jax.random.key(1))
        return jnp.sum(jnp.square(jax.nn.relu(y)))

    def gradients(params, x):
        return jax.grad(loss, (0, 1))(params, x)

    wanted = jax.jit(gradients)(variables.params, x)
    placement = Placement(spec)
    params = jax.device_put(variables.params, placement.shardings(variables.params, variables.params))
    with using(placement):
        got = jax.jit(gradients)(params, jax.device_put(x, placement.rows(x.shape, time=size)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *jax.device_get((got, wanted)))
