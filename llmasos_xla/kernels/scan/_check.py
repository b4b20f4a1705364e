"""What `linear_scan` refuses at the door, in words."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._lengths import checked_lengths
from llmasos_xla.kernels.scan.recurrence import state_dtype

AXES = "batch, time, channels"


class Problem(NamedTuple):
    """A request whose arrays fit each other. To be explained, not run, they may be `jax.ShapeDtypeStruct`."""

    a: Any
    b: Any
    h0: Any
    lengths: Any
    resets: Any
    reverse: bool


def check(a: Any, b: Any, h0: Any, lengths: Any, resets: Any, reverse: bool) -> Problem:
    """Refuses what does not fit and converts NumPy arrays.

    Raises:
        ValueError: ranks, sizes or lengths that do not fit.
        TypeError: dtypes that are not what their array is for.
    """
    a, b = _array(a), _array(b)
    for name, array in (("a", a), ("b", b)):
        if array.ndim != 3:
            raise ValueError(f"linear_scan: {name} is {array.shape}, expects 3 axes: [{AXES}]")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"linear_scan: {name} is {array.dtype}, expects a real floating dtype")
    if 0 in b.shape:
        raise ValueError(f"linear_scan: b {b.shape} = {AXES} has an empty axis, expects at least one element")
    if any(n not in (1, full) for n, full in zip(a.shape, b.shape)):
        raise ValueError(
            f"linear_scan: a is {a.shape}, expects [{AXES}] = {b.shape} as b, or 1 on an axis that it is shared along"
        )
    high = state_dtype(b.dtype)
    _same("a", a, b, high)
    if h0 is not None:
        h0 = _array(h0)
        _shape("h0", h0, (b.shape[0], b.shape[2]), "batch, channels")
        _same("h0", h0, b, high)
    if resets is not None:
        resets = _array(resets)
        _shape("resets", resets, b.shape[:2], "batch, time")
        if resets.dtype != jnp.bool_:
            raise TypeError(f"linear_scan: resets is {resets.dtype}, expects bool: True where a new sequence starts")
    return Problem(a, b, h0, checked_lengths("linear_scan", lengths, "b", *b.shape[:2]), resets, reverse)


def _array(x: Any) -> Any:
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)


def _shape(name: str, array: Any, shape: tuple[int, ...], axes: str) -> None:
    if array.shape != shape:
        raise ValueError(f"linear_scan: {name} is {array.shape}, expects [{axes}] = {shape}")


def _same(name: str, array: Any, b: Any, high: Any) -> None:
    if array.dtype not in (b.dtype, high):
        or_high = "" if high == b.dtype else f" or {high}"
        raise TypeError(
            f"linear_scan: {name} is {array.dtype}, b is {b.dtype}: expects {b.dtype}{or_high}; convert it with .astype"
        )
