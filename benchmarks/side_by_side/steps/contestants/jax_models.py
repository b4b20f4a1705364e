"""The rows' models as a good JAX user writes them: plain lax, parameters and statistics in flat dictionaries.

Nothing here comes from this package: it is the yardstick. A model is its initial arrays and
`apply(params, state, x, train) -> (logits, new state)`, in the dtype of params and x.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from side_by_side.steps.architectures import BASIC_BLOCKS, EPSILON, HIDDEN, RESNET50, VGG11, VGG11_DENSE, weights
from side_by_side.steps.rows import CLASSES

Arrays = dict[str, jax.Array]


class Model(NamedTuple):
    """Initial arrays and the function of them."""

    params: Arrays
    state: Arrays
    apply: Callable[[Arrays, Arrays, jax.Array, bool], tuple[jax.Array, Arrays]]


def _glorot(key: jax.Array, *shape: int) -> jax.Array:
    return jax.nn.initializers.glorot_uniform()(key, shape)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _max_pool(x: jax.Array, size: int, stride: int, padding: str = "VALID") -> jax.Array:
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def _dense(x: jax.Array, p: Arrays, name: str) -> jax.Array:
    return x @ p[name + "/kernel"] + p[name + "/bias"]


def cnn() -> Model:
    """3x3 convolution, max-pool, two dense layers."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "conv/kernel": _glorot(keys[0], 3, 3, 1, 32),
        "conv/bias": jnp.zeros(32),
        "dense/kernel": _glorot(keys[1], 13 * 13 * 32, 128),
        "dense/bias": jnp.zeros(128),
        "head/kernel": _glorot(keys[2], 128, CLASSES),
        "head/bias": jnp.zeros(CLASSES),
    }

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        x = jax.nn.relu(_convolve(x, p["conv/kernel"], padding="VALID") + p["conv/bias"])
        x = _max_pool(x, 2, 2)
        x = jax.nn.relu(_dense(x.reshape(x.shape[0], -1), p, "dense"))
        return _dense(x, p, "head"), state

    return Model(params, {}, apply)


def mlp() -> Model:
    """Two dense layers."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "dense/kernel": _glorot(keys[0], 784, 128),
        "dense/bias": jnp.zeros(128),
        "head/kernel": _glorot(keys[1], 128, CLASSES),
        "head/bias": jnp.zeros(CLASSES),
    }

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        return _dense(jax.nn.relu(_dense(x, p, "dense")), p, "head"), state

    return Model(params, {}, apply)


def _recurrent(name: str, gates: int) -> Arrays:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        f"{name}/kernel": _glorot(keys[0], 64, gates * HIDDEN),
        f"{name}/recurrent_kernel": jax.nn.initializers.orthogonal()(keys[1], (HIDDEN, gates * HIDDEN)),
        f"{name}/bias": jnp.zeros(gates * HIDDEN),
        "head/kernel": _glorot(keys[2], HIDDEN, CLASSES),
        "head/bias": jnp.zeros(CLASSES),
    }


def lstm() -> Model:
    """One LSTM over time, a dense layer on its last state."""
    params = _recurrent("lstm", 4)
    params["lstm/bias"] = params["lstm/bias"].at[HIDDEN : 2 * HIDDEN].set(1.0)

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        def cell(carry: tuple[jax.Array, jax.Array], projected: jax.Array) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(projected + h @ p["lstm/recurrent_kernel"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        projected = _dense(jnp.swapaxes(x, 0, 1), p, "lstm")
        zeros = jnp.zeros((x.shape[0], HIDDEN), x.dtype)
        (h, _), _ = lax.scan(cell, (zeros, zeros), projected)
        return _dense(h, p, "head"), state

    return Model(params, {}, apply)


def gru() -> Model:
    """One GRU over time, reset after the product, a dense layer on its last state."""
    params = {**_recurrent("gru", 3), "gru/recurrent_bias": jnp.zeros(3 * HIDDEN)}

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        def cell(h: jax.Array, projected: jax.Array) -> Any:
            r_in, z_in, n_in = jnp.split(projected, 3, axis=-1)
            r_h, z_h, n_h = jnp.split(h @ p["gru/recurrent_kernel"] + p["gru/recurrent_bias"], 3, axis=-1)
            z = jax.nn.sigmoid(z_in + z_h)
            n = jnp.tanh(n_in + jax.nn.sigmoid(r_in + r_h) * n_h)
            return (1 - z) * n + z * h, None

        projected = _dense(jnp.swapaxes(x, 0, 1), p, "gru")
        h, _ = lax.scan(cell, jnp.zeros((x.shape[0], HIDDEN), x.dtype), projected)
        return _dense(h, p, "head"), state

    return Model(params, {}, apply)


def _normalized(x: jax.Array, name: str, stride: int, p: Arrays, state: Arrays, new: Arrays, train: bool) -> jax.Array:
    """Convolution and batch normalization; statistics are float32 whatever the arithmetic is."""
    x = _convolve(x, p[name + "/kernel"], stride)
    wide = x.astype(jnp.float32)
    mean, var = state[name + "/mean"], state[name + "/var"]
    if train:
        batch_mean, batch_var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
        new[name + "/mean"] = 0.99 * mean + 0.01 * lax.stop_gradient(batch_mean)
        new[name + "/var"] = 0.99 * var + 0.01 * lax.stop_gradient(batch_var)
        mean, var = batch_mean, batch_var
    scale = lax.rsqrt(var + EPSILON) * p[name + "/scale"]
    return ((wide - mean) * scale + p[name + "/bias"]).astype(x.dtype)


def basic_blocks(kind: str) -> Model:
    """A ResNet of basic blocks, "resnet" or "resnet18"."""
    params: Arrays = {}
    state: Arrays = {}
    widths = BASIC_BLOCKS[kind]
    blocks = list(pairwise((widths[0], *widths)))
    key = jax.random.key(0)

    def add(name: str, size: int, cin: int, cout: int) -> None:
        params[name + "/kernel"] = _glorot(jax.random.fold_in(key, len(params)), size, size, cin, cout)
        params[name + "/scale"], params[name + "/bias"] = jnp.ones(cout), jnp.zeros(cout)
        state[name + "/mean"], state[name + "/var"] = jnp.zeros(cout), jnp.ones(cout)

    add("stem", 3, 3, widths[0])
    for number, (cin, cout) in enumerate(blocks):
        add(f"{number}/a", 3, cin, cout)
        add(f"{number}/b", 3, cout, cout)
        if cin != cout:
            add(f"{number}/shortcut", 1, cin, cout)
    params["head/kernel"] = _glorot(jax.random.fold_in(key, len(params)), widths[-1], CLASSES)
    params["head/bias"] = jnp.zeros(CLASSES)

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        new: Arrays = {}

        def normalized(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
            return _normalized(x, name, stride, p, state, new, train)

        x = jax.nn.relu(normalized(x, "stem"))
        for number, (cin, cout) in enumerate(blocks):
            stride = 1 if cin == cout else 2
            y = jax.nn.relu(normalized(x, f"{number}/a", stride))
            y = normalized(y, f"{number}/b")
            x = jax.nn.relu(y + (x if cin == cout else normalized(x, f"{number}/shortcut", stride)))
        return _dense(x.mean((1, 2)), p, "head"), new

    return Model(params, state, apply)


def vgg11() -> Model:
    """VGG-11."""
    params = {name: jnp.asarray(a) for name, a in weights("vgg11").items()}

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        number = 0
        for entry in VGG11:
            if entry == "pool":
                x = _max_pool(x, 2, 2)
            else:
                x = jax.nn.relu(_convolve(x, p[f"conv{number}/kernel"]) + p[f"conv{number}/bias"])
                number += 1
        x = x.reshape(x.shape[0], -1)
        for number in range(len(VGG11_DENSE)):
            x = jax.nn.relu(_dense(x, p, f"dense{number}"))
        return _dense(x, p, "head"), state

    return Model(params, {}, apply)


def resnet50() -> Model:
    """ResNet-50."""
    arrays = {name: jnp.asarray(a) for name, a in weights("resnet50").items()}
    carried = {name: a for name, a in arrays.items() if name.endswith(("/mean", "/var"))}

    def apply(p: Arrays, state: Arrays, x: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
        def normalized(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
            return _normalized(x, name, stride, p, state, {}, train)

        x = _max_pool(jax.nn.relu(normalized(x, "stem", 2)), 3, 2, "SAME")
        for block in RESNET50:
            y = jax.nn.relu(normalized(x, f"{block.name}/a"))
            y = jax.nn.relu(normalized(y, f"{block.name}/b", block.stride))
            y = normalized(y, f"{block.name}/c")
            x = jax.nn.relu(y + (normalized(x, f"{block.name}/shortcut", block.stride) if block.projects else x))
        return _dense(x.mean((1, 2)), p, "head"), state

    return Model({name: a for name, a in arrays.items() if name not in carried}, carried, apply)


MODELS = {
    "cnn": cnn,
    "mlp": mlp,
    "lstm": lstm,
    "gru": gru,
    "resnet": partial(basic_blocks, "resnet"),
    "resnet18": partial(basic_blocks, "resnet18"),
    "vgg11": vgg11,
    "resnet50": resnet50,
}
