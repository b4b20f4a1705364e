"""How far a result may be from what is wanted."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The largest difference as a share of the largest value.
_LIMITS = {"float32": 1e-4, "tf32": 5e-3, "float32-default": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}
# A state that is rounded at each of a hundred steps strays further.
_OVER_TIME = {"float32": 5e-4, "tf32": 2e-2, "float32-default": 2e-2, "bfloat16": 0.1, "float16": 2e-2}


def limit(dtype: str, many_steps: bool) -> float:
    """The deviation above which a result is red."""
    return (_OVER_TIME if many_steps else _LIMITS)[dtype]


def deviations(found: Sequence[Any], wanted: Sequence[Any]) -> list[float]:
    """Of each result; infinite where one is not finite or has another shape."""
    return [_deviation(f, w) for f, w in zip(found, wanted, strict=True)]


def _deviation(found: Any, wanted: Any) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if isinstance(found, jax.Array) and isinstance(wanted, jax.Array):
        value = float(_on_device(found, wanted))
    else:
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        value = float(np.max(np.abs(found - wanted)) / max(float(np.max(np.abs(wanted))), 1e-30))
    return value if np.isfinite(value) else float("inf")


@jax.jit
def _on_device(found: jax.Array, wanted: jax.Array) -> jax.Array:
    found, wanted = found.astype(jnp.float32), wanted.astype(jnp.float32)
    return jnp.max(jnp.abs(found - wanted)) / jnp.maximum(jnp.max(jnp.abs(wanted)), 1e-30)
