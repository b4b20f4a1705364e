"""Models to cut, the single device that a pipeline is compared with, and meshes of virtual devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.layers._base import LAYERS, Layer
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.training.losses import loss_by_name
from llmasos_xla.training.metrics import metric_by_name
from llmasos_xla.training.step import Objective

KEY = jax.random.key(7)


@dataclasses.dataclass(frozen=True)
class Tower(Layer):
    """x + tanh(norm(x) w + b), `depth` times, as one layer with arrays [depth, ...] that a scan runs over."""

    depth: int = 4
    stacked = True

    def build(self, shape, rngs):
        return _Tower(self.depth, shape[-1], rngs)

    def output_shape(self, shape):
        return shape


# What holds for every layer of the package is not asked of this one.
LAYERS.pop("Tower")


class _Tower(nnx.Module):
    def __init__(self, depth, width, rngs):
        self.kernel = nnx.Param(0.3 * jax.random.normal(rngs.params(), (depth, width, width)))
        self.bias = nnx.Param(0.1 * jax.random.normal(rngs.params(), (depth, width)))

    def __call__(self, x, *, train, rngs=None):
        def row(x, weights):
            kernel, bias = weights
            normal = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
            return x + jnp.tanh(normal @ kernel + bias.reshape(*[1] * (x.ndim - 1), -1)), None

        return jax.lax.scan(row, x, (self.kernel[...], self.bias[...]))[0]


def norm_block(channels):
    return L.Residual([L.Conv2D(channels, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()])


MODELS = {
    "mlp": ((L.Dense(16, activation="tanh"), L.Dense(24, activation="relu"), L.Dense(8), L.Dense(3)), (8,)),
    "cnn": (
        (
            L.Conv2D(8, 3, padding="same"),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(2),
            norm_block(8),
            L.Flatten(),
            L.Dense(3, activation="softmax"),
        ),
        (6, 6, 3),
    ),
    "lstm": (
        (
            L.Embedding(12, 8, mask_zero=True),
            L.LSTM(8, return_sequences=True),
            L.LSTM(8),
            L.Dense(3, activation="softmax"),
        ),
        (7,),
    ),
    "blocks": ((L.Dense(8), *(L.Residual([L.Dense(8, activation="tanh")]) for _ in range(6)), L.Dense(3)), (8,)),
    "tower": ((L.Embedding(12, 8), Tower(8), L.Flatten(), L.Dense(3)), (5,)),
    "uneven": ((L.Embedding(12, 8), Tower(6), L.Flatten(), L.Dense(3)), (5,)),
    "wide tower": ((L.Dense(64), Tower(8), L.Dense(3)), (4,)),
    "blocks of eight": (tuple(L.Residual([L.Dense(8, activation="tanh")]) for _ in range(8)), (8,)),
    "dropout": (
        (L.Dense(16), L.Dropout(0.5), L.Dense(16), L.Dropout(0.3), L.Dense(16), L.Dropout(0.1), L.Dense(3)),
        (8,),
    ),
}


def spec_of(name):
    layers, shape = MODELS[name]
    return StackSpec(layers, shape)


def objective_of(spec, **options):
    loss = loss_by_name("sparse_categorical_crossentropy")
    return Objective(spec.net(), loss, (metric_by_name("accuracy", loss),), head=spec.head, **options)


def batch_of(spec, rows, seed=0):
    """Random rows, of which the last is padding; ids are padded with zeros at the right."""
    rng = np.random.default_rng(seed)
    shape = (rows, *spec.input_shape)
    if spec.tokens:
        x = rng.integers(1, 12, shape).astype(np.int32)
        x[np.arange(shape[1]) >= rng.integers(2, shape[1] + 1, (rows, 1))] = 0
    else:
        x = rng.normal(size=shape).astype(np.float32)
    weight = np.ones(rows, np.float32)
    weight[-1] = 0.0
    return {
        "x": jnp.asarray(x),
        "y": jnp.asarray(rng.integers(0, 3, rows), jnp.int32),
        "weight": jnp.asarray(weight),
        "count": jnp.int32(rows - 1),
    }


def variables_of(spec, seed=0):
    """Weights that are nowhere zero."""
    variables = jax.jit(spec.net().init)(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + np.abs(0.1 * rng.normal(size=a.shape)).astype(np.float32), variables)


def one_device(objective, variables, batch, key, microbatches):
    """What one device computes by going through the micro-batches one after the other, adding up."""
    compute = jax.jit(objective.gradients)
    state, total = variables.state, None
    for m in range(microbatches):
        one = {name: a[m::microbatches] if a.ndim else a for name, a in batch.items()}
        own = key if microbatches == 1 else jax.random.fold_in(key, m)
        (loss, (summed, sums, state)), gradients = compute(variables.params, state, one, own)
        found = (loss, summed, sums, gradients)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    loss, summed, sums, gradients = total
    return (loss, (summed, sums, state)), gradients


def mesh_of(**sizes):
    count = int(np.prod(list(sizes.values())))
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[:count]
    )


def place(mesh, batch, arrays, specs):
    """Rows over the data axes, arrays as specified."""
    rows = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    put = {name: jax.device_put(a, NamedSharding(mesh, P(rows) if a.ndim else P())) for name, a in batch.items()}
    return put, {n: jax.device_put(a, NamedSharding(mesh, specs.get(n, P()))) for n, a in arrays.items()}


def specs_of(params, mesh, stacked=()):
    """Each array's largest axes over fsdp and tensor where they divide it; stacked rows over pipe."""
    specs = {}
    for name, a in params.items():
        spec = [None] * a.ndim
        first = 0
        if name in stacked:
            spec[0], first = "pipe", 1
        for axis, place in (("tensor", a.ndim - 1), ("fsdp", a.ndim - 2)):
            if axis in mesh.shape and place >= first and a.shape[place] % mesh.shape[axis] == 0:
                spec[place] = axis
        specs[name] = P(*spec)
    return specs
