"""A first convolution by Triton: one to four input channels, the elements of a window as the depth of one product."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._operation import in_batch
from llmasos_xla.kernels._triton.precision import dot_precision
from llmasos_xla.kernels.conv.geometry import Geometry
from llmasos_xla.kernels.conv.triton_first_spec import Blocks, Spec, with_blocks
from llmasos_xla.kernels.conv.triton_operations import Arrays, ahead_of_activation, family, fused, start, summed, wide
from llmasos_xla.kernels.conv.xla import plain_convolution

MOST_CHANNELS = 4
MOST_ELEMENTS = 512


def _constants(s: Spec, blocks: Blocks) -> dict[str, Any]:
    def two(values: Sequence[int], filler: int) -> tuple[int, int]:
        first, second = [filler, *values][-2:]
        return first, second

    low = [low for low, _ in s.pads]
    names = ("H W", "OH OW", "R S", "SH SW", "PH PW", "DH DW")
    values = (s.size, 1), (s.out_size, 1), (s.kernel, 1), (s.stride, 1), (low, 0), (s.dilation, 1)
    pairs = {n: v for both, given in zip(names, values) for n, v in zip(both.split(), two(*given))}
    inside = all(
        low == 0 and (o - 1) * stride + (k - 1) * d < n
        for n, o, k, stride, (low, _), d in zip(s.size, s.out_size, s.kernel, s.stride, s.pads, s.dilation)
    )
    return {
        "N": s.batch, **pairs, "C": s.cin, "F": s.cout, "ACTIVATION": s.activation, "PRECISION": s.precision,
        "INSIDE": inside, "WIDE": wide(s), "BLOCK_M": blocks.block_m, "BLOCK_K": blocks.block_k,
        "BLOCK_F": blocks.block_f,
    }  # fmt: skip


def _forward(s: Spec, x: Any, w: Any, b: Any, with_z: bool) -> Arrays:
    from llmasos_xla.kernels.conv.triton_first_kernels import first_kernel

    blocks = s.forward
    assert blocks is not None
    return start(
        s.device,
        first_kernel,
        -(-s.batch * math.prod(s.out_size) // blocks.block_m) * -(-s.cout // blocks.block_f),
        {"x_ptr": x, "w_ptr": w, "b_ptr": b},
        {"y_ptr": s.struct("y"), "z_ptr": s.struct("z") if with_z else None},
        _constants(s, blocks),
        blocks.warps,
    )


def _backward(s: Spec, x: Any, w: Any, b: Any, kept: Any, dy: Any) -> dict[str, Any]:
    from llmasos_xla.kernels.conv.triton_first_kernels import first_sums_kernel

    blocks, found = s.sums, {}
    assert blocks is not None
    if "x" in s.sought:  # rare, and cuDNN's own backward-data call is as good as any
        dz = ahead_of_activation(s, kept, dy)
        (found["x"],) = jax.linear_transpose(lambda x: plain_convolution(x, w, s.geometry), s.struct("x"))(dz)
    if s.sought != ("x",):
        (sums,) = start(
            s.device,
            first_sums_kernel,
            blocks.programs * -(-(s.depth + 1) // blocks.block_k) * -(-s.cout // blocks.block_f),
            {"x_ptr": x, "g_ptr": dy, "kept_ptr": kept},
            {"part_ptr": jax.ShapeDtypeStruct((blocks.programs, s.depth + 1, s.cout), jnp.dtype(jnp.float32))},
            _constants(s, blocks) | {"PROGRAMS": blocks.programs},
            blocks.warps,
        )
        found |= summed(s, sums, True)
    return found


def _batch(
    s: Spec, size: int, given: Sequence[str], arrays: Arrays, axes: Sequence[Any], made: Sequence[str]
) -> tuple[Spec, Arrays, Any] | None:
    """The mapped axis joins the batch, unless each of its elements has a kernel of its own."""
    if any(axis is not None for n, axis in zip(given, axes) if n in "wb") or not {"w", "b"}.isdisjoint(made):
        return None
    packed = [a if n in "wb" else in_batch(a, axis, size) for n, a, axis in zip(given, arrays, axes)]
    return with_blocks(s._replace(batch=s.batch * size)), packed, lambda r: r.reshape(size, -1, *r.shape[1:])


OPERATIONS = family(
    "first layer", Spec, _forward, _backward, _batch, lambda s: 2.0 * math.prod(s.struct("y").shape) * s.depth
)


def spec_of(g: Geometry, bias: bool, activation: str | None) -> Spec:
    """The description of a geometry without cropping; its activation if a kernel has it."""
    return with_blocks(
        Spec(
            g.batch, g.size, g.cin, g.kernel, g.cout, g.stride, g.pads, g.rhs_dilation, str(g.dtype),
            dot_precision(g.dtype, g.precision), _triton.device(), bias, fused(activation),
        )
    )  # fmt: skip


def unfit(g: Geometry) -> str | None:
    """Why it is no first convolution that the kernels take, or None."""
    if g.groups > 1:
        return f"has {g.groups} groups"
    if g.cin > MOST_CHANNELS:
        return f"has {g.cin} input channels; it is for {MOST_CHANNELS} at most"
    if g.cin * math.prod(g.kernel) > MOST_ELEMENTS:
        return f"a window has {g.cin * math.prod(g.kernel)} elements; it takes at most {MOST_ELEMENTS}"
    return None
