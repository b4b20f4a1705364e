"""Convolution by Triton, behind the arguments of the XLA formulations: depthwise ones and first layers.

Each kind is a module, `triton_depthwise` and `triton_first`, with its `OPERATIONS`, its `spec_of` a geometry, what is
`unfit` for it, and in a file of its own its spec, its `shape_class` and the tuned table of its forward pass.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.conv import triton_depthwise, triton_depthwise_spec, triton_first, triton_first_spec
from llmasos_xla.kernels.conv.geometry import Geometry, cropped, uncropped

CHOICE = "conv"
"""The tuned table that says by class of shapes how long Triton and XLA took."""


class Kind(NamedTuple):
    """A kind of convolution that has kernels."""

    kernels: ModuleType
    spec: ModuleType

    def cannot(self, g: Geometry, x: Any, w: Any) -> str | None:
        """Why the kernels cannot compute this convolution, or None."""
        why = self.kernels.unfit(g)
        if why is not None:
            return why
        if g.rank > 2:
            return f"has {g.rank} spatial axes"
        if str(g.dtype) not in _triton.DTYPES:
            return f"operands are {g.dtype}; it takes {', '.join(_triton.DTYPES)}"
        if g.preferred is not None and g.preferred != g.dtype:
            return f"the result is {g.preferred}, not {g.dtype} as the operands"
        if any(b > 1 for b in g.lhs_dilation):
            return "lhs_dilation is above 1"
        if any(n + min(low, 0) + min(high, 0) < 1 for n, (low, high) in zip(g.size, g.pads)):
            return "negative padding crops everything"
        return _triton.unfit(x, w) or _triton.refusal()

    def slower(self, g: Geometry) -> str | None:
        """Why XLA is the better choice although the kernels could, or None."""
        if not g.channels_last:
            return "channels are not last: it would transpose the arrays"
        if all(k == 1 for k in g.kernel):
            return "a kernel of size one is a plain product"
        s = self.kernels.spec_of(uncropped(g), False, None)
        return tuned.slower(s.device.name, CHOICE, self.spec.shape_class(s))

    def origin(self, g: Geometry) -> str:
        """Where the block sizes come from, for `explain`."""
        s = self.kernels.spec_of(uncropped(g), False, None)
        measured = tuned.lookup(s.device.name, self.spec.FORWARD, self.spec.shape_class(s)) is not None
        return tuned.origin(s.device.name, measured)

    def conv(
        self, x: jax.Array, w: jax.Array, bias: jax.Array | None, g: Geometry, activation: str | None, named: bool
    ) -> jax.Array:
        """`activation(lax_conv(x, w) + bias)` of channels-last arrays."""
        s = self.kernels.spec_of(uncropped(g), bias is not None, activation)
        arguments = [cropped(x, g), w, *([] if bias is None else [bias.astype(x.dtype)])]
        (y,) = _triton.call(self.kernels.OPERATIONS.inference, s, *arguments, named=named)
        return ACTIVATIONS[activation](y) if activation and not s.activation else y


DEPTHWISE = Kind(triton_depthwise, triton_depthwise_spec)
FIRST_LAYER = Kind(triton_first, triton_first_spec)
