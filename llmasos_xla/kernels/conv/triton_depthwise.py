"""Depthwise convolution by Triton: what is launched for the forward pass and the gradients, and what it takes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._operation import in_batch, mapped
from llmasos_xla.kernels.conv.geometry import Geometry
from llmasos_xla.kernels.conv.triton_depthwise_spec import Plane, Spec, slide_programs, with_blocks
from llmasos_xla.kernels.conv.triton_operations import Arrays, ahead_of_activation, family, fused, start, summed, wide


def _slide(s: Spec, read: Any, w: Any, b: Any, kept: Any, transposed: bool, results: dict[str, Any]) -> Arrays:
    from llmasos_xla.kernels.conv.triton_depthwise_kernels import slide_kernel

    p, blocks = s.plane, s.back if transposed else s.forward
    assert blocks is not None
    p = Plane(p.OH, p.OW, p.H, p.W, *p[4:]) if transposed else p
    constants = {"N": s.batch, "C": s.channels, **p._asdict(), "TRANSPOSED": transposed}
    constants |= {"ACTIVATION": "" if transposed and kept is None else s.activation}
    constants |= {"WIDE": wide(s), "ROWS": blocks.rows, "TAPS": blocks.taps}
    return start(
        s.device,
        slide_kernel,
        slide_programs(s.batch, s.channels, p, transposed, blocks),
        {"x_ptr": read, "w_ptr": w, "b_ptr": b, "kept_ptr": kept},
        results,
        constants | {"BLOCK_P": blocks.block_p, "BLOCK_C": blocks.block_c},
        blocks.warps,
    )


def _forward(s: Spec, x: Any, w: Any, b: Any, with_z: bool) -> Arrays:
    results = {"y_ptr": s.struct("y"), "z_ptr": s.struct("z") if with_z else None}
    return _slide(s, x, w, b, None, False, results)


def _backward(s: Spec, x: Any, w: Any, b: Any, kept: Any, dy: Any) -> dict[str, Any]:
    from llmasos_xla.kernels.conv.triton_depthwise_kernels import short_backward_kernel, taps_kernel

    p, with_bias = s.plane, "b" in s.sought
    constants = {"N": s.batch, "C": s.channels, "ACTIVATION": s.activation, "BIAS": with_bias, "WIDE": wide(s)}
    blocks = s.short or s.sums
    assert blocks is not None
    constants |= {"ROWS": blocks.rows, "PROGRAMS": blocks.programs, "BLOCK_P": blocks.block_p}
    constants |= {"BLOCK_C": blocks.block_c}
    programs = blocks.programs * -(-s.channels // blocks.block_c)
    parts = jax.ShapeDtypeStruct((blocks.programs, p.R * p.S + with_bias, s.channels), jnp.dtype(jnp.float32))
    if s.short is not None:
        dx, sums = start(
            s.device,
            short_backward_kernel,
            programs,
            {"x_ptr": x, "w_ptr": w, "b_ptr": b, "g_ptr": dy},
            {"dx_ptr": s.struct("x"), "part_ptr": parts},
            constants | {"T": p.H, "OT": p.OH, "R": p.R, "P": p.PH, "D": p.DH},
            blocks.warps,
        )
        return {"x": dx, **summed(s, sums, with_bias)}
    if s.keep == "z":
        # Each element is read for every column of taps: too often for a slope with an exponential in it.
        kept, dy = None, ahead_of_activation(s, kept, dy)
    found = {}
    if "x" in s.sought:
        (found["x"],) = _slide(s, dy, w, None, kept, True, {"y_ptr": s.struct("x"), "z_ptr": None})
    if s.sums is not None and s.sought != ("x",):
        (sums,) = start(
            s.device,
            taps_kernel,
            programs * -(-p.S // s.sums.span),
            {"x_ptr": x, "g_ptr": dy, "kept_ptr": kept},
            {"part_ptr": parts},
            constants | {**p._asdict(), "SPAN": s.sums.span},
            blocks.warps,
            # Left alone, the assembler spills to have room for one more program.
            255,
        )
        found |= summed(s, sums, with_bias)
    return found


def _batch(
    s: Spec, size: int, given: Sequence[str], arrays: Arrays, axes: Sequence[Any], made: Sequence[str]
) -> tuple[Spec, Arrays, Any]:
    """The mapped axis joins the batch, or the channels where each of its elements has a kernel of its own."""
    of_kernel = any(axis is not None for n, axis in zip(given, axes) if n in "wb") or not {"w", "b"}.isdisjoint(made)
    if of_kernel:
        apart = [jnp.moveaxis(mapped(a, axis, size), 0, -2) for a, axis in zip(arrays, axes)]
        packed = [a.reshape(*a.shape[:-2], -1) for a in apart]
        wider = with_blocks(s._replace(channels=s.channels * size))
        return wider, packed, lambda r: jnp.moveaxis(r.reshape(*r.shape[:-1], size, -1), -2, 0)
    packed = [a if n in "wb" else in_batch(a, axis, size) for n, a, axis in zip(given, arrays, axes)]
    longer = with_blocks(s._replace(batch=s.batch * size))
    return longer, packed, lambda r: r.reshape(size, -1, *r.shape[1:])


OPERATIONS = family(
    "depthwise", Spec, _forward, _backward, _batch, lambda s: 2.0 * s.struct("y").size * s.plane.R * s.plane.S
)


def spec_of(g: Geometry, bias: bool, activation: str | None) -> Spec:
    """The description of a geometry without cropping; its activation if a kernel has it."""
    return with_blocks(
        Spec(
            g.batch, g.size, g.cin, g.kernel, g.stride, g.pads, g.rhs_dilation, str(g.dtype), _triton.device(), bias,
            fused(activation),
        )
    )  # fmt: skip


def unfit(g: Geometry) -> str | None:
    """Why it is no depthwise convolution that the kernels take, or None."""
    if g.groups == 1 or g.groups != g.cin:
        return f"has {g.cin // g.groups} input channel(s) in each of {g.groups} group(s)"
    if g.cout != g.cin:
        return f"has {g.cout // g.cin} output channels for each input channel"
    if any(k > 31 for k in g.kernel):
        return f"the kernel is {'x'.join(map(str, g.kernel))}; it takes at most 31 along an axis"
    if any(s > 8 for s in g.stride):
        return f"the stride is {g.stride}; it takes at most 8"
    if any(s > 1 and d > 1 for s, d in zip(g.stride, g.rhs_dilation)):
        return "stride and dilation are both above 1"
    return None
