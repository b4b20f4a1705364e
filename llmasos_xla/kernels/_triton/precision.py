"""What the kernels multiply, and how."""

from typing import Any

import jax

DTYPES = ("float32", "bfloat16", "float16")
"""Of the arrays that the kernels take."""

_TF32 = ("default", "tensorfloat32", "tf32", "fastest")


def dot_precision(dtype: Any, asked: Any = None) -> str:
    """What `tl.dot` is told: of float32, TF32 only where JAX is told so, else three of it, which make a float32.

    `asked` is the precision of the call, as in lax; None for `jax_default_matmul_precision`.

    >>> dot_precision("bfloat16"), dot_precision("float32"), dot_precision("float32", jax.lax.Precision.DEFAULT)
    ('ieee', 'tf32x3', 'tf32')
    """
    if str(dtype) != "float32":
        return "ieee"
    if asked is None:
        asked = getattr(jax.config, "jax_default_matmul_precision", None)
    names = [str(a).lower() for a in (asked if isinstance(asked, tuple) else (asked,))]
    if all(n in _TF32 for n in names):
        return "tf32"
    return "ieee" if any(n in ("highest", "float32") for n in names) else "tf32x3"


def dot_precisions(dtype: Any) -> tuple[str, ...]:
    """The same for a kernel whose weights stay on chip, the best first: three of TF32 keep them twice.

    Plain multiply-adds, many times slower, are for weights that do not fit so, not for who asks for "highest".

    >>> dot_precisions("float32")
    ('tf32x3', 'ieee')
    """
    one = dot_precision(dtype)
    return (one,) if one == "tf32" or str(dtype) != "float32" else ("tf32x3", "ieee")
