"""What a good JAX user writes by hand: one jitted function, NumPy batches in a loop, XLA's default options.

In training it has donated state, `optax.adam`, no metric but the loss, no padding of ragged batches and no guard
against NaN.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from side_by_side.steps.architectures import weights
from side_by_side.steps.contestants.jax_models import MODELS, Arrays, Model
from side_by_side.steps.gate import Gate
from side_by_side.steps.rows import Row


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains or predicts batch by batch."""
    model = MODELS[row.kind]()
    if row.trains:
        _train(model, row, gate)
    else:
        _predict(model, row, gate)


def _train(model: Model, row: Row, gate: Gate) -> None:
    """The losses' sum stays on the device until the epoch ends."""
    optimizer = optax.adam(1e-3)
    x, y = row.data()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state, moments, total = carry

        def loss_of(params: Arrays) -> tuple[jax.Array, Arrays]:
            logits, new = _logits(model, row, params, state, x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        (loss, state), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), state, moments, total + loss

    carry = (model.params, model.state, optimizer.init(model.params), jnp.zeros(()))
    gate.start()
    while True:
        for first in range(0, len(x), row.batch):
            carry = step(carry, x[first : first + row.batch], y[first : first + row.batch])
        *carry, total = carry
        carry = (*carry, jnp.zeros(()))
        if not gate.epoch(float(total) / row.steps):
            return


def _predict(model: Model, row: Row, gate: Gate) -> None:
    x, _ = row.data()
    given = weights(row.kind)
    params = {name: jnp.asarray(given[name]) for name in model.params}

    @jax.jit
    def predict(params: Arrays, state: Arrays, x: jax.Array) -> jax.Array:
        return _logits(model, row, params, state, x, train=False)[0]

    gate.start()
    while True:
        batches = (x[first : first + row.batch] for first in range(0, len(x), row.batch))
        found = [np.asarray(predict(params, model.state, batch)) for batch in batches]
        if not gate.epoch(found[0][0]):
            return


def _logits(
    model: Model, row: Row, params: Arrays, state: Arrays, x: jax.Array, *, train: bool
) -> tuple[jax.Array, Arrays]:
    """Float32 logits; parameters and input in the row's precision."""
    x = x.astype(jnp.float32) * (1 / 255) if x.dtype == jnp.uint8 else x
    dtype = jnp.dtype(row.precision)
    params = {name: a.astype(dtype) for name, a in params.items()}
    logits, new = model.apply(params, state, x.astype(dtype), train)
    return logits.astype(jnp.float32), new
