"""How products inside of kernels are taken."""

from typing import Any

import jax


def dot_precision(dtype: Any, asked: Any = None) -> str:
    """What `tl.dot` is told: of float32, TF32 only where JAX is told so, else three of it, which make a float32.

    `asked` is the precision of the call, as in lax; None for `jax_default_matmul_precision`.

    >>> dot_precision("bfloat16"), dot_precision("float32"), dot_precision("float32", jax.lax.Precision.DEFAULT)
    ('ieee', 'tf32x3', 'tf32')
    """
    if str(dtype) != "float32":
        return "ieee"
    names = [str(a).lower() for a in (asked if isinstance(asked, tuple) else (asked,))]
    if asked is None:
        names = [str(getattr(jax.config, "jax_default_matmul_precision", None)).lower()]
    if all(n in ("default", "tensorfloat32", "tf32", "fastest") for n in names):
        return "tf32"
    return "ieee" if any(n in ("highest", "float32") for n in names) else "tf32x3"
