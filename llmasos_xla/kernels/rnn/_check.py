"""What the recurrent ops refuse at the door, in words."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GATE_ORDER = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}


class Problem(NamedTuple):
    """A request whose arrays fit each other. To be explained, not run, they may be `jax.ShapeDtypeStruct`."""

    x: Any
    w_input: Any
    w_recurrent: Any
    bias: Any
    recurrent_bias: Any
    states: tuple[Any, ...]
    lengths: Any
    reverse: bool


def check(
    op: str,
    x: Any,
    w_input: Any,
    w_recurrent: Any,
    bias: Any,
    recurrent_bias: Any,
    lengths: Any,
    reverse: bool,
    **states: Any,
) -> Problem:
    """Refuses what does not fit and converts NumPy arrays; `states` are the initial states by name, or None.

    Raises:
        ValueError: ranks, sizes or lengths that do not fit.
        TypeError: dtypes that are not floating, not the same, or not integer for `lengths`.
    """
    gates = len(GATE_ORDER[op])
    columns = "hidden" if gates == 1 else f"{gates} * hidden"
    x, w_input, w_recurrent = _array(x), _array(w_input), _array(w_recurrent)
    _rank(op, "x", x, "batch, time, features")
    _rank(op, "w_input", w_input, f"features, {columns}")
    _rank(op, "w_recurrent", w_recurrent, f"hidden, {columns}")

    batch, time, cin = x.shape
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{op}: x is {x.dtype}, expects a floating dtype; convert it, e.g. x.astype('float32')")
    if batch == 0 or time == 0:
        axis, one = ("batch", "row") if batch == 0 else ("time", "step")
        raise ValueError(
            f"{op}: x {x.shape} = batch, time, features has an empty {axis} axis, expects at least one {one}"
        )
    hidden = w_recurrent.shape[0]
    if hidden == 0:
        raise ValueError(f"{op}: w_recurrent is {w_recurrent.shape} = hidden, {columns}, expects at least one unit")
    if w_recurrent.shape[1] != gates * hidden:
        raise ValueError(
            f"{op}: w_recurrent is {w_recurrent.shape}, expects [hidden, {columns}] = {(hidden, gates * hidden)} "
            f"(gates {' '.join(GATE_ORDER[op])})"
        )
    if w_input.shape != (cin, gates * hidden):
        raise ValueError(
            f"{op}: w_input is {w_input.shape}, expects [features, {columns}] = {(cin, gates * hidden)} "
            f"for x {x.shape} = batch, time, features and w_recurrent {w_recurrent.shape} = hidden, {columns}"
        )

    def fit(name: str, array: Any, shape: tuple[int, ...], axes: str) -> Any:
        if array is None:
            return None
        array = _array(array)
        if array.shape != shape:
            raise ValueError(f"{op}: {name} is {array.shape}, expects [{axes}] = {shape}")
        if array.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {array.dtype}, x is {x.dtype}; convert one of them with .astype")
        return array

    fit("w_input", w_input, w_input.shape, "")
    fit("w_recurrent", w_recurrent, w_recurrent.shape, "")
    return Problem(
        x,
        w_input,
        w_recurrent,
        fit("bias", bias, (gates * hidden,), columns),
        fit("recurrent_bias", recurrent_bias, (gates * hidden,), columns),
        tuple(fit(name, state, (batch, hidden), "batch, hidden") for name, state in states.items()),
        _lengths(op, lengths, batch, time),
        reverse,
    )


def _array(a: Any) -> Any:
    return a if isinstance(a, jax.ShapeDtypeStruct) else jnp.asarray(a)


def _rank(op: str, name: str, array: Any, axes: str) -> None:
    wanted = axes.count(",") + 1
    if array.ndim != wanted:
        raise ValueError(f"{op}: {name} is {array.shape}, expects {wanted} axes: [{axes}]")


def _lengths(op: str, lengths: Any, batch: int, time: int) -> Any:
    if lengths is None:
        return None
    array = _array(lengths)
    if array.shape != (batch,):
        raise ValueError(f"{op}: lengths is {array.shape}, expects [batch] = {(batch,)}, one length for each row of x")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{op}: lengths is {array.dtype}, expects an integer dtype")
    if isinstance(array, jax.ShapeDtypeStruct):
        return array
    try:
        values = np.asarray(lengths)
    except jax.errors.TracerArrayConversionError:
        return array
    if values.min() < 0 or values.max() > time:
        raise ValueError(
            f"{op}: lengths run from {values.min()} to {values.max()}, x has {time} steps; "
            f"expects 0 <= length <= {time} (pad x, or clip the lengths)"
        )
    return array
