"""What a good JAX user writes by hand: one jitted step with donated state, plain lax, a loop over NumPy batches.

Nothing here comes from this package: it is the yardstick. It has no metric but the loss, no padding of ragged batches
and no guard against NaN; XLA has its default options.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from side_by_side.gate import Gate
from side_by_side.rows import CLASSES, Row

Arrays = dict[str, jax.Array]


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains step by step; the losses' sum stays on the device until the epoch ends."""
    params, state, apply = _MODELS[row.kind](jax.random.key(0))
    optimizer = optax.adam(1e-3)
    x, y = row.data()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state, moments, total = carry

        def loss_of(params: Arrays) -> tuple[jax.Array, Arrays]:
            inputs = x.astype(jnp.float32) * (1 / 255) if x.dtype == jnp.uint8 else x
            logits, new = apply(params, state, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        (loss, state), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), state, moments, total + loss

    carry = (params, state, optimizer.init(params), jnp.zeros(()))
    gate.start()
    while True:
        for first in range(0, len(x), row.batch):
            carry = step(carry, x[first : first + row.batch], y[first : first + row.batch])
        *carry, total = carry
        carry = (*carry, jnp.zeros(()))
        if not gate.epoch(float(total) / row.steps):
            return


Model = tuple[Arrays, Arrays, Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, Arrays]]]


def _glorot(key: jax.Array, *shape: int) -> jax.Array:
    return jax.nn.initializers.glorot_uniform()(key, shape)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _cnn(key: jax.Array) -> Model:
    keys = jax.random.split(key, 3)
    params = {
        "conv": _glorot(keys[0], 3, 3, 1, 32),
        "conv_bias": jnp.zeros(32),
        "dense": _glorot(keys[1], 13 * 13 * 32, 128),
        "dense_bias": jnp.zeros(128),
        "head": _glorot(keys[2], 128, CLASSES),
        "head_bias": jnp.zeros(CLASSES),
    }

    def apply(p: Arrays, state: Arrays, x: jax.Array) -> tuple[jax.Array, Arrays]:
        x = jax.nn.relu(_convolve(x, p["conv"], padding="VALID") + p["conv_bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ p["dense"] + p["dense_bias"])
        return x @ p["head"] + p["head_bias"], state

    return params, {}, apply


def _mlp(key: jax.Array) -> Model:
    keys = jax.random.split(key, 2)
    params = {
        "dense": _glorot(keys[0], 784, 128),
        "dense_bias": jnp.zeros(128),
        "head": _glorot(keys[1], 128, CLASSES),
        "head_bias": jnp.zeros(CLASSES),
    }

    def apply(p: Arrays, state: Arrays, x: jax.Array) -> tuple[jax.Array, Arrays]:
        x = jax.nn.relu(x @ p["dense"] + p["dense_bias"])
        return x @ p["head"] + p["head_bias"], state

    return params, {}, apply


def _lstm(key: jax.Array) -> Model:
    keys = jax.random.split(key, 3)
    params = {
        "input": _glorot(keys[0], 64, 4 * 256),
        "recurrent": jax.nn.initializers.orthogonal()(keys[1], (256, 4 * 256)),
        "bias": jnp.zeros(4 * 256).at[256:512].set(1.0),
        "head": _glorot(keys[2], 256, CLASSES),
        "head_bias": jnp.zeros(CLASSES),
    }

    def apply(p: Arrays, state: Arrays, x: jax.Array) -> tuple[jax.Array, Arrays]:
        def cell(carry: tuple[jax.Array, jax.Array], projected: jax.Array) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(projected + h @ p["recurrent"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        projected = jnp.swapaxes(x, 0, 1) @ p["input"] + p["bias"]
        zeros = jnp.zeros((x.shape[0], 256))
        (h, _), _ = lax.scan(cell, (zeros, zeros), projected)
        return h @ p["head"] + p["head_bias"], state

    return params, {}, apply


def _resnet(key: jax.Array) -> Model:
    params: Arrays = {}
    state: Arrays = {}
    blocks = [(16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]

    def add(name: str, size: int, cin: int, cout: int) -> None:
        params[name] = _glorot(jax.random.fold_in(key, len(params)), size, size, cin, cout)
        params[name + "/scale"], params[name + "/bias"] = jnp.ones(cout), jnp.zeros(cout)
        state[name + "/mean"], state[name + "/var"] = jnp.zeros(cout), jnp.ones(cout)

    add("stem", 3, 3, 16)
    for number, (cin, cout) in enumerate(blocks):
        add(f"{number}/a", 3, cin, cout)
        add(f"{number}/b", 3, cout, cout)
        if cin != cout:
            add(f"{number}/shortcut", 1, cin, cout)
    params["head"] = _glorot(jax.random.fold_in(key, len(params)), 64, CLASSES)
    params["head_bias"] = jnp.zeros(CLASSES)

    def apply(p: Arrays, state: Arrays, x: jax.Array) -> tuple[jax.Array, Arrays]:
        new = {}

        def normalized(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
            x = _convolve(x, p[name], stride)
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new[name + "/mean"] = 0.99 * state[name + "/mean"] + 0.01 * lax.stop_gradient(mean)
            new[name + "/var"] = 0.99 * state[name + "/var"] + 0.01 * lax.stop_gradient(var)
            return (x - mean) * (lax.rsqrt(var + 1e-3) * p[name + "/scale"]) + p[name + "/bias"]

        x = jax.nn.relu(normalized(x, "stem"))
        for number, (cin, cout) in enumerate(blocks):
            stride = 1 if cin == cout else 2
            y = jax.nn.relu(normalized(x, f"{number}/a", stride))
            y = normalized(y, f"{number}/b")
            x = jax.nn.relu(y + (x if cin == cout else normalized(x, f"{number}/shortcut", stride)))
        return x.mean((1, 2)) @ p["head"] + p["head_bias"], new

    return params, state, apply


_MODELS = {"cnn": _cnn, "mlp": _mlp, "lstm": _lstm, "resnet": _resnet}
