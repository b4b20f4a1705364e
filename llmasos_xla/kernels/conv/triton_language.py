"""Activations and their slopes as device functions. Imports Triton."""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels._triton.language import tanh


@triton.jit
@no_type_check
def activate(z, NAME: tl.constexpr):
    """The activation of that name in float32; "" is the identity."""
    if NAME == "relu":
        # Not maximum(), which loses NaN.
        return tl.where(z < 0, 0.0, z)
    elif NAME == "relu6":
        return tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif NAME == "leaky_relu":
        return tl.where(z < 0, 0.2 * z, z)
    elif NAME == "silu":
        return z * tl.sigmoid(z)
    elif NAME == "gelu":
        return z * _normal_cdf(z)
    elif NAME == "gelu_tanh":
        return 0.5 * z * (1 + tanh(_gelu_argument(z)))
    elif NAME == "tanh":
        return tanh(z)
    elif NAME == "sigmoid":
        return tl.sigmoid(z)
    else:
        tl.static_assert(NAME == "")
        return z


@triton.jit
@no_type_check
def slope(kept, NAME: tl.constexpr):
    """The activation's derivative: from its result where that says it, else from its argument."""
    if NAME == "relu":
        return tl.where(kept > 0, 1.0, 0.0)
    elif NAME == "relu6":
        return tl.where((kept > 0) & (kept < 6), 1.0, 0.0)
    elif NAME == "leaky_relu":
        return tl.where(kept < 0, 0.2, 1.0)
    elif NAME == "silu":
        s = tl.sigmoid(kept)
        return s * (1 + kept * (1 - s))
    elif NAME == "gelu":
        return _normal_cdf(kept) + kept * 0.3989422804014327 * tl.exp(-0.5 * kept * kept)
    elif NAME == "gelu_tanh":
        t = tanh(_gelu_argument(kept))
        inner = 0.7978845608028654 * (1 + 3 * 0.044715 * kept * kept)
        return 0.5 * (1 + t) + 0.5 * kept * (1 - t * t) * inner
    elif NAME == "tanh":
        return 1 - kept * kept
    elif NAME == "sigmoid":
        return kept * (1 - kept)
    else:
        tl.static_assert(NAME == "")
        return kept * 0 + 1


@triton.jit
@no_type_check
def slope_at(z, NAME: tl.constexpr):
    """The activation's derivative from its argument."""
    if NAME == "tanh" or NAME == "sigmoid":
        return slope(activate(z, NAME), NAME)
    else:
        return slope(z, NAME)


@triton.jit
@no_type_check
def _normal_cdf(z):
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
@no_type_check
def _gelu_argument(z):
    return 0.7978845608028654 * (z + 0.044715 * z * z * z)
