"""Depthwise convolution by Triton: forward with bias and activation, and its gradients.

    y        = inference(x, w, b)            what runs where nothing is differentiated
    y, z     = training(x, w, b)             in its place, where the slope needs the activation's argument z
    dy       = tangent(x, w, b, kept, d arguments)
    d arguments = backward(x, w, b, kept, dy)

`tangent` is linear in its last arrays and its transpose is `backward`. Where it really runs, in forward mode, it is
plain JAX, and so are the derivatives of `backward`. What is kept is y where the slope is known from it, z elsewhere,
and nothing for a short convolution over time, whose gradient computes z again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.conv import triton_depthwise_spec as spec
from llmasos_xla.kernels.conv.geometry import Geometry, cropped, uncropped
from llmasos_xla.kernels.conv.triton_depthwise_spec import Spec
from llmasos_xla.kernels.conv.xla import plain_convolution

Arrays = Sequence[Any]


def plain(s: Spec, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    """Arguments to the result in plain JAX."""
    z = _plain_argument(s, x, w, b)
    return ACTIVATIONS[s.activation](z) if s.activation else z


def _plain_argument(s: Spec, x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
    z = plain_convolution(x, w, s.geometry)
    return z if b is None else z + b.reshape((1,) * (z.ndim - 1) + (-1,))


def _plain_training(s: Spec, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> Arrays:
    z = _plain_argument(s, x, w, b)
    return ACTIVATIONS[s.activation](z), z


def _of_sought(s: Spec, arguments: Arrays) -> tuple[Any, list[Any]]:
    """The forward pass as a function of the arguments that are sought, and these."""
    names = s.arguments

    def f(*values: jax.Array) -> jax.Array:
        given: dict[str, Any] = dict(zip(s.sought, values))
        return plain(s, *(given.get(n, a) for n, a in zip(names, arguments)))

    return f, [a for n, a in zip(names, arguments) if n in s.sought]


def _plain_tangent(s: Spec, *arrays: jax.Array) -> Arrays:
    f, primals = _of_sought(s, arrays[: len(s.arguments)])
    return (jax.jvp(f, primals, list(arrays[-len(primals) :]))[1],)


def _plain_backward(s: Spec, *arrays: jax.Array) -> Arrays:
    f, primals = _of_sought(s, arrays[: len(s.arguments)])
    return jax.vjp(f, *primals)[1](arrays[-1])


def _launch_slide(s: Spec, read: Any, w: Any, b: Any, kept: Any, transposed: bool, results: dict[str, Any]) -> Any:
    from llmasos_xla.kernels.conv.triton_depthwise_kernels import slide_kernel

    p, blocks = s.plane, s.back if transposed else s.forward
    assert blocks is not None
    p = spec.Plane(p.OH, p.OW, p.H, p.W, *p[4:]) if transposed else p
    arrays = {"x_ptr": read, "w_ptr": w, "b_ptr": b, "kept_ptr": kept}
    constants = {"N": s.batch, "C": s.channels, **p._asdict(), "TRANSPOSED": transposed, "ACTIVATION": s.activation}
    constants |= {"WIDE": _wide(s), "ROWS": blocks.rows, "TAPS": blocks.taps}
    return _launch(
        slide_kernel,
        spec.slide_programs(s.batch, s.channels, p, transposed, blocks),
        arrays,
        {"y_ptr": None, "z_ptr": None} | results,
        constants,
        blocks,
    )


def _launch(kernel: Any, programs: int, arrays: dict, results: dict, constants: dict, blocks: Any) -> Any:
    absent = {name: None for name, value in (arrays | results).items() if value is None}
    device = _triton.current()
    assert not isinstance(device, str)
    return _triton.launch(
        kernel,
        (programs,),
        {n: a for n, a in arrays.items() if a is not None},
        {n: r for n, r in results.items() if r is not None},
        constants | absent | {"BLOCK_P": blocks.block_p, "BLOCK_C": blocks.block_c},
        device=device,
        options=Options(warps=blocks.warps),
    )


def _build_inference(s: Spec, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> Arrays:
    return _launch_slide(s, x, w, b, None, False, {"y_ptr": s.struct("y")})


def _build_training(s: Spec, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> Arrays:
    return _launch_slide(s, x, w, b, None, False, {"y_ptr": s.struct("y"), "z_ptr": s.struct("z")})


def _build_backward(s: Spec, x: jax.Array, w: jax.Array, *rest: jax.Array) -> Arrays:
    from llmasos_xla.kernels.conv import triton_depthwise_kernels as kernels

    b = rest[0] if s.bias else None
    kept = rest[-2] if s.keep else None
    dy, found = rest[-1], {}
    with_bias = "b" in s.sought
    p, taps = s.plane, s.plane.R * s.plane.S
    constants = {"N": s.batch, "C": s.channels, "ACTIVATION": s.activation, "BIAS": with_bias, "WIDE": _wide(s)}

    def parts(programs: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((programs, taps + with_bias, s.channels), jnp.dtype(jnp.float32))

    sums = None
    if s.short is not None:
        blocks = s.short
        over = {"T": p.H, "OT": p.OH, "R": p.R, "P": p.PH, "D": p.DH, "ROWS": blocks.rows, "PROGRAMS": blocks.programs}
        found["x"], sums = _launch(
            kernels.short_backward_kernel,
            blocks.programs * -(-s.channels // blocks.block_c),
            {"x_ptr": x, "w_ptr": w, "b_ptr": b, "g_ptr": dy},
            {"dx_ptr": s.struct("x"), "part_ptr": parts(blocks.programs)},
            constants | over,
            blocks,
        )
    else:
        if "x" in s.sought:
            (found["x"],) = _launch_slide(s, dy, w, None, kept, True, {"y_ptr": s.struct("x")})
        if s.sought != ("x",):
            blocks = s.sums
            assert blocks is not None
            over = {**p._asdict(), "ROWS": blocks.rows, "SPAN": blocks.span, "PROGRAMS": blocks.programs}
            (sums,) = _launch(
                kernels.taps_kernel,
                blocks.programs * -(-s.channels // blocks.block_c) * -(-p.S // blocks.span),
                {"x_ptr": x, "g_ptr": dy, "kept_ptr": kept},
                {"part_ptr": parts(blocks.programs)},
                constants | over,
                blocks,
            )
    if sums is not None:
        total = jnp.sum(sums, 0)
        w_of = s.struct("w")
        found["w"] = total[:taps].reshape(w_of.shape).astype(w_of.dtype)
        found["b"] = total[-1].astype(w_of.dtype)
    return [found[name] for name in s.sought]


def _wide(s: Spec) -> bool:
    """Whether an offset passes 32 bits."""
    return max(s.struct(name).size for name in "xy") >= 2**31


def _inference_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    if not s.activation or s.short is not None:
        return _differentiated(INFERENCE, s, "", primals, tangents, named)
    if s.activation in spec.FROM_RESULT:
        return _differentiated(INFERENCE, s, "y", primals, tangents, named)
    results, moved = _differentiated(TRAINING, s, "z", primals, tangents, named)
    return results[:1], moved


def _training_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    # What reads z starts from the arguments again where it is differentiated.
    results, moved = _differentiated(TRAINING, s, "z", primals, tangents, named)
    return results, [*moved, None]


def _differentiated(
    op: Any, s: Spec, keep: str, primals: Arrays, tangents: Arrays, named: bool
) -> tuple[Arrays, Arrays]:
    """The operation's results, of which the last is kept, and the tangent of y."""
    results = _call(op, s, primals, named)
    sought = tuple(n for n, t in zip(s.arguments, tangents) if t is not None)
    moved = [t for t in tangents if t is not None]
    kept = results[-1:] if keep else []
    return results, _call(TANGENT, s._replace(keep=keep, sought=sought), [*primals, *kept, *moved], named)


def _call(op: Any, s: Spec, arrays: Arrays, named: bool) -> list[Any]:
    return list(_triton.call(op, s, *arrays, named=named))


def _tangent_transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
    known, sought = arrays[: -len(s.sought)], arrays[-len(s.sought) :]
    gradients = _call(BACKWARD, s, [*known, *cotangents], named)
    return [None] * len(known) + [g if a is None else None for g, a in zip(gradients, sought)]


def _batch(op: str, s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Arrays, Arrays]:
    """The mapped axis joins the batch, or the channels where each of its elements has a kernel of its own."""
    given = [*s.arguments, *(["z"] if op == "depthwise backward" and s.keep else [])]
    given += ["y"] if op == "depthwise backward" else []
    made = {"depthwise": ["y"], "depthwise training": ["y", "z"]}.get(op, list(s.sought))
    of_kernel = any(axis is not None for n, axis in zip(given, axes) if n in "wb") or not {"w", "b"}.isdisjoint(made)
    packed = []
    for name, a, axis in zip(given, arrays, axes):
        if not of_kernel and name in "wb":
            packed.append(a)
            continue
        a = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        if of_kernel:
            a = jnp.moveaxis(a, 0, -2)
            packed.append(a.reshape(*a.shape[:-2], -1))
        else:
            packed.append(a.reshape(-1, *a.shape[2:]))
    wider = {"channels": s.channels * size} if of_kernel else {"batch": s.batch * size}
    device = _triton.current()
    assert not isinstance(device, str)
    results = _call(_triton.ENGINE.operations[op], spec.with_blocks(s._replace(**wider), device), packed, named)
    if of_kernel:
        return [jnp.moveaxis(r.reshape(*r.shape[:-1], size, -1), -2, 0) for r in results], [0] * len(results)
    return [r.reshape(size, -1, *r.shape[1:]) for r in results], [0] * len(results)


def _flops(s: Spec) -> float:
    return 2.0 * s.struct("y").size * s.plane.R * s.plane.S


INFERENCE = _triton.operation(
    "depthwise", Spec, lambda s: [s.struct("y")], _build_inference, lambda s, *a: (plain(s, *a),),
    batch=partial(_batch, "depthwise"), jvp=_inference_jvp, flops=_flops,
)  # fmt: skip
TRAINING = _triton.operation(
    "depthwise training", Spec, lambda s: [s.struct("y"), s.struct("z")], _build_training, _plain_training,
    batch=partial(_batch, "depthwise training"), jvp=_training_jvp, flops=_flops,
)  # fmt: skip
TANGENT = _triton.operation(
    "depthwise tangent", Spec, lambda s: [s.struct("y")], None, _plain_tangent, transpose=_tangent_transpose
)
BACKWARD = _triton.operation(
    "depthwise backward", Spec, lambda s: [s.struct(n) for n in s.sought], _build_backward, _plain_backward,
    batch=partial(_batch, "depthwise backward"), flops=lambda s: _flops(s) * len({*s.sought} - {"b"}),
)  # fmt: skip


# The public side.


def spec_of(g: Geometry, bias: bool, activation: str | None) -> Spec:
    """The description of a depthwise geometry without cropping; its activation if a kernel has it."""
    s = Spec(g.batch, g.size, g.cin, g.kernel, g.stride, g.pads, g.rhs_dilation, str(g.dtype), bias)
    return s._replace(activation=activation) if activation in spec.ACTIVATIONS else s


def cannot(g: Geometry, x: Any, w: Any) -> str | None:
    """Why the kernels cannot compute this convolution, or None."""
    if g.batch_groups > 1 or g.groups == 1 or g.groups != g.cin:
        return f"has {g.cin // g.groups} input channel(s) in each of {g.groups} group(s)"
    if g.cout != g.cin:
        return f"has {g.cout // g.cin} output channels for each input channel"
    if g.rank > 2:
        return f"has {g.rank} spatial axes"
    if str(g.dtype) not in spec.DTYPES:
        return f"operands are {g.dtype}; it takes {', '.join(spec.DTYPES)}"
    if g.preferred is not None and g.preferred != g.dtype:
        return f"the result is {g.preferred}, not {g.dtype} as the operands"
    if any(b > 1 for b in g.lhs_dilation):
        return "lhs_dilation is above 1"
    if any(k > 31 for k in g.kernel):
        return f"the kernel is {'x'.join(map(str, g.kernel))}; it takes at most 31 along an axis"
    if any(s > 8 for s in g.stride):
        return f"the stride is {g.stride}; it takes at most 8"
    if any(s > 1 and d > 1 for s, d in zip(g.stride, g.rhs_dilation)):
        return "stride and dilation are both above 1"
    if any(n + min(low, 0) + min(high, 0) < 1 for n, (low, high) in zip(g.size, g.pads)):
        return "negative padding crops everything"
    return _triton.unfit(x, w) or _triton.refusal()


def conv(
    x: jax.Array, w: jax.Array, bias: jax.Array | None, g: Geometry, activation: str | None, named: bool
) -> jax.Array:
    """`activation(lax_conv(x, w) + bias)` of channels-last arrays."""
    activation = "silu" if activation == "swish" else activation
    device = _triton.current()
    assert not isinstance(device, str)
    s = spec.with_blocks(spec_of(uncropped(g), bias is not None, activation), device)
    arguments = [cropped(x, g), w, *([] if bias is None else [bias.astype(x.dtype)])]
    (y,) = _call(INFERENCE, s, arguments, named)
    return ACTIVATIONS[activation](y) if activation and not s.activation else y
