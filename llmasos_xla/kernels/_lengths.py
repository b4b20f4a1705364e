"""The lengths of ragged batches, as the ops over time take them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checked_lengths(op: str, lengths: Any, name: str, batch: Any, time: Any) -> Any:
    """The lengths of the rows of an array `[batch, time, ...]` of that name, as an array; None stays None.

    Raises:
        ValueError: if there is not one for each row, or one that is known when the program is traced is not in 0..time.
        TypeError: if they are no integers.
    """
    if lengths is None:
        return None
    array = lengths if isinstance(lengths, jax.ShapeDtypeStruct) else jnp.asarray(lengths)
    if array.shape != (batch,):
        raise ValueError(
            f"{op}: lengths is {array.shape}, expects [batch] = {(batch,)}, one length for each row of {name}"
        )
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
            f"{op}: lengths run from {values.min()} to {values.max()}, {name} has {time} steps; "
            f"expects 0 <= length <= {time} (pad {name}, or clip the lengths)"
        )
    return array
