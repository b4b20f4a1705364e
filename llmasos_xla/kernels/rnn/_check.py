"""What the recurrent ops refuse at the door, in words."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._lengths import checked_lengths
from llmasos_xla.kernels.rnn.layer_norm import LayerNorm

GATE_ORDER = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",), "slstm": ("i", "f", "z", "o")}
STATES = {"lstm": ("h0", "c0"), "gru": ("h0",), "rnn": ("h0",), "slstm": ("h0", "c0", "n0", "m0")}


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
    resets: Any = None
    recurrent_mask: Any = None
    layer_norm: LayerNorm | None = None

    @property
    def hidden(self) -> int:
        """Units of the state."""
        return math.prod(self.w_recurrent.shape[:-1])

    @property
    def plain(self) -> str | None:
        """What in this request only the most general versions take, or None."""
        asked = {
            "w_recurrent has heads": self.w_recurrent.ndim == 3,
            "resets are given": self.resets is not None,
            "recurrent_mask is given": self.recurrent_mask is not None,
            "layer_norm is given": self.layer_norm is not None,
        }
        return next((what for what, is_so in asked.items() if is_so), None)


def check(
    op: str,
    x: Any,
    w_input: Any,
    w_recurrent: Any,
    bias: Any,
    recurrent_bias: Any,
    lengths: Any,
    reverse: bool,
    resets: Any = None,
    recurrent_mask: Any = None,
    layer_norm: Any = None,
    **states: Any,
) -> Problem:
    """Refuses what does not fit and converts NumPy arrays; `states` are the initial states by name, or None.

    Raises:
        ValueError: ranks, sizes, lengths or an epsilon that do not fit.
        TypeError: dtypes that are not floating, not the same, not integer for `lengths` or not boolean for `resets`; a
            `layer_norm` of another type.
    """
    gates = len(GATE_ORDER[op])
    columns = "hidden" if gates == 1 else f"{gates} * hidden"
    x, w_input, w_recurrent = _array(x), _array(w_input), _array(w_recurrent)
    _rank(op, "x", x, "batch, time, features")
    _rank(op, "w_input", w_input, f"features, {columns}")
    blocks = w_recurrent.ndim == 3
    if not blocks:
        _rank(op, "w_recurrent", w_recurrent, f"hidden, {columns}")

    batch, time, cin = x.shape
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{op}: x is {x.dtype}, expects a floating dtype; convert it, e.g. x.astype('float32')")
    if batch == 0 or time == 0:
        axis, one = ("batch", "row") if batch == 0 else ("time", "step")
        raise ValueError(
            f"{op}: x {x.shape} = batch, time, features has an empty {axis} axis, expects at least one {one}"
        )
    *heads, head, width = w_recurrent.shape
    hidden = math.prod(heads) * head
    axes = f"heads, head, {columns.replace('hidden', 'head')}" if blocks else f"hidden, {columns}"
    if hidden == 0:
        raise ValueError(f"{op}: w_recurrent is {w_recurrent.shape} = {axes}, expects at least one unit")
    if width != gates * head:
        raise ValueError(
            f"{op}: w_recurrent is {w_recurrent.shape}, expects [{axes}] = {(*heads, head, gates * head)} "
            f"(gates {' '.join(GATE_ORDER[op])})"
        )
    if w_input.shape != (cin, gates * hidden):
        raise ValueError(
            f"{op}: w_input is {w_input.shape}, expects [features, {columns}] = {(cin, gates * hidden)} "
            f"for x {x.shape} = batch, time, features and w_recurrent {w_recurrent.shape} = {axes}"
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
        checked_lengths(op, lengths, "x", batch, time),
        reverse,
        _resets(op, resets, batch, time),
        fit("recurrent_mask", recurrent_mask, (batch, hidden), "batch, hidden"),
        _layer_norm(op, layer_norm, hidden, fit),
    )


def _layer_norm(op: str, given: Any, hidden: int, fit: Callable[..., Any]) -> LayerNorm | None:
    if given is None:
        return None
    if op != "lstm":
        raise ValueError(f"{op}: takes no layer_norm; kernels.lstm does")
    if not isinstance(given, LayerNorm):
        raise TypeError(f"{op}: layer_norm is a {type(given).__name__}, expects kernels.LayerNorm(input_scale, ...)")
    epsilon = given.epsilon
    if not isinstance(epsilon, numbers.Real) or not 0 < epsilon < math.inf:
        raise ValueError(f"{op}: layer_norm.epsilon={epsilon!r} must be a positive number, no array")
    wide, narrow = ((4 * hidden,), "4 * hidden"), ((hidden,), "hidden")
    shapes = {"input_scale": wide, "recurrent_scale": wide, "cell_scale": narrow, "cell_offset": narrow}
    arrays = {name: fit(f"layer_norm.{name}", getattr(given, name), *shape) for name, shape in shapes.items()}
    return LayerNorm(**arrays, epsilon=float(epsilon))


def _resets(op: str, resets: Any, batch: int, time: int) -> Any:
    if resets is None:
        return None
    resets = _array(resets)
    if resets.shape != (batch, time):
        raise ValueError(f"{op}: resets is {resets.shape}, expects [batch, time] = {(batch, time)}")
    if resets.dtype != jnp.bool_:
        raise TypeError(f"{op}: resets is {resets.dtype}, expects bool: True where a step starts from nothing")
    return resets


def _array(a: Any) -> Any:
    return a if isinstance(a, jax.ShapeDtypeStruct) else jnp.asarray(a)


def _rank(op: str, name: str, array: Any, axes: str) -> None:
    wanted = axes.count(",") + 1
    if array.ndim != wanted:
        raise ValueError(f"{op}: {name} is {array.shape}, expects {wanted} axes: [{axes}]")
