"""What the recurrent ops refuse at the door, in words."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GATE_ORDER = {"lstm": "i f g o", "gru": "r z n", "rnn": "h"}


class Problem(NamedTuple):
    """A request whose arrays are known to fit each other."""

    x: jax.Array
    w_input: jax.Array
    w_recurrent: jax.Array
    bias: jax.Array | None
    states: tuple[jax.Array, ...]
    recurrent_bias: jax.Array | None
    lengths: jax.Array | None


def check(
    op: str,
    x: jax.Array,
    w_input: jax.Array,
    w_recurrent: jax.Array,
    bias: jax.Array | None,
    states: dict[str, jax.Array | None],
    recurrent_bias: jax.Array | None,
    lengths: jax.Array | np.ndarray | None,
) -> Problem:
    """Refuses what does not fit, fills in zeros for states that are None, and converts NumPy arrays.

    Raises:
        ValueError: ranks, sizes or lengths that do not fit.
        TypeError: dtypes that are not floating, not the same, or not integer for `lengths`.
    """
    x, w_input, w_recurrent = (jnp.asarray(a) for a in (x, w_input, w_recurrent))
    gates = len(GATE_ORDER[op].split())
    for name, array, axes in (
        ("x", x, "batch, time, features"),
        ("w_input", w_input, f"features, {_times(gates)}hidden"),
        ("w_recurrent", w_recurrent, f"hidden, {_times(gates)}hidden"),
    ):
        if array.ndim != axes.count(",") + 1:
            raise ValueError(f"{op}: {name} has {array.ndim} axes {array.shape}, expects {axes.count(',') + 1}: [{axes}]")
    batch, time, cin = x.shape
    hidden = w_recurrent.shape[0]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{op}: x is {x.dtype}, expects a floating dtype; convert with x.astype('float32')")
    if batch == 0 or time == 0:
        empty = "batch" if batch == 0 else "time"
        raise ValueError(f"{op}: x {x.shape} has an empty {empty} axis; expects at least one row and one step")
    if w_recurrent.shape[1] != gates * hidden or hidden == 0:
        raise ValueError(
            f"{op}: w_recurrent {w_recurrent.shape} is not [hidden, {_times(gates)}hidden] (gates {GATE_ORDER[op]}); "
            f"with hidden {hidden} it would be {(hidden, gates * hidden)}"
        )
    if w_input.shape[0] != cin:
        raise ValueError(
            f"{op}: x has {cin} features, w_input expects {w_input.shape[0]} "
            f"(x {x.shape} = batch, time, features; w_input {w_input.shape} = features, {_times(gates)}hidden)"
        )
    if w_input.shape[1] != gates * hidden:
        raise ValueError(
            f"{op}: w_input {w_input.shape} ends in {w_input.shape[1]}, w_recurrent {w_recurrent.shape} says "
            f"{_times(gates)}hidden = {gates * hidden}"
        )

    def fit(name: str, array: jax.Array, shape: tuple[int, ...], axes: str) -> jax.Array:
        array = jnp.asarray(array)
        if array.shape != shape:
            raise ValueError(f"{op}: {name} is {array.shape}, expects {shape} = [{axes}]")
        if array.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {array.dtype}, x is {x.dtype}; convert one of them with .astype")
        return array

    fit("w_input", w_input, w_input.shape, "")
    fit("w_recurrent", w_recurrent, w_recurrent.shape, "")
    per_gate = (gates * hidden,), f"{_times(gates)}hidden"
    bias = None if bias is None else fit("bias", bias, *per_gate)
    recurrent_bias = None if recurrent_bias is None else fit("recurrent_bias", recurrent_bias, *per_gate)
    full = tuple(
        jnp.zeros((batch, hidden), x.dtype) if s is None else fit(name, s, (batch, hidden), "batch, hidden")
        for name, s in states.items()
    )
    return Problem(x, w_input, w_recurrent, bias, full, recurrent_bias, _lengths(op, lengths, batch, time))


def _lengths(op: str, lengths: jax.Array | np.ndarray | None, batch: int, time: int) -> jax.Array | None:
    if lengths is None:
        return None
    array = jnp.asarray(lengths)
    if array.shape != (batch,):
        raise ValueError(f"{op}: lengths is {array.shape}, expects {(batch,)} = [batch], one length for each row of x")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{op}: lengths is {array.dtype}, expects an integer dtype")
    # Only host arrays are looked into: reading a device array here would wait for it in the middle of a program.
    if not isinstance(lengths, jax.Array):
        values = np.asarray(lengths)
        if values.min() < 0 or values.max() > time:
            raise ValueError(
                f"{op}: lengths run from {values.min()} to {values.max()}, but x has {time} steps; "
                f"expects 0 <= length <= {time}"
            )
    return array


def _times(gates: int) -> str:
    return f"{gates} * " if gates > 1 else ""
