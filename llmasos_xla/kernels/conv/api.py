"""Convolution and its transpose: checks, documentation, dispatch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._rows import Rows
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.conv import choice
from llmasos_xla.kernels.conv.geometry import (
    Geometry,
    as_array,
    check_bias,
    check_scale,
    conv_geometry,
    flipped_and_swapped,
    per_axis,
    spatial_rank,
    transposed_pads,
)


def _batch_axes(arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    if arguments.get("batch_group_count", 1) != 1:
        return None
    lhs, rhs = arguments["lhs"], arguments["rhs"]
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, arguments.get("dimension_numbers"))
    return numbers.lhs_spec[0], numbers.out_spec[0]


def _transpose_batch_axes(arguments: Mapping[str, Any]) -> tuple[int, int]:
    numbers = arguments.get("dimension_numbers")
    if numbers is None:
        return 0, 0
    numbers = lax.conv_dimension_numbers(arguments["lhs"].shape, arguments["rhs"].shape, numbers)
    return numbers.lhs_spec[0], numbers.out_spec[0]


def _conv_candidates(
    lhs: Any,
    rhs: Any,
    window_strides: Any = 1,
    padding: Any = "VALID",
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    scale: Any = None,
    bias: Any = None,
    activation: str | None = None,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    lhs, rhs = as_array(lhs), as_array(rhs)
    if scale is not None and preferred_element_type is None:
        preferred_element_type = jnp.int32
    geometry = conv_geometry(
        "conv", lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, batch_group_count, precision, preferred_element_type,
    )  # fmt: skip
    return choice.conv_candidates(
        lhs,
        rhs,
        geometry,
        _epilogue("conv", geometry, scale, bias, activation),
        out_sharding,
        implementation is not None,
    )


@_dispatch.op(_conv_candidates, Rows(("lhs",), _batch_axes))
def conv(
    lhs: Any,
    rhs: Any,
    window_strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    lhs_dilation: int | Sequence[int] | None = None,
    rhs_dilation: int | Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    scale: Any = None,
    bias: Any = None,
    activation: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Convolution (cross-correlation) in one to three dimensions, with bias and activation.

    `y[i] = activation(sum_k x[stride * i + dilation * k - low] w[k] + bias)`: `lax.conv_general_dilated`, argument for
    argument, in the formulation that is fastest on the platform for the shape. It also fits
    `nnx.Conv(conv_general_dilated=kernels.conv)`.

    Args:
        lhs: the input, by default `[batch, cin, *spatial]` (NCHW), else as `dimension_numbers` say.
        rhs: the kernel, by default `[cout, cin / groups, *spatial]` (OIHW), of the input's dtype.
        window_strides: one integer, or one for each spatial axis; so are both dilations.
        padding: "VALID", "SAME", "SAME_LOWER", or (low, high) for each spatial axis.
        lhs_dilation: distance between input elements; above 1 it is a transposed convolution.
        rhs_dilation: distance between kernel elements.
        dimension_numbers: as in lax, e.g. `("NHWC", "HWIO", "NHWC")`. Channels-last has the fast formulations.
        feature_group_count: groups of channels convolved apart; as many as input channels is depthwise.
        batch_group_count: as in lax.
        precision: as in lax.
        preferred_element_type: dtype of the sums and of the result; integers narrower than 32 bits need one.
        out_sharding: as in lax.
        scale: `[cout]` or a scalar, for int8 operands: the sums are int32, the result is float32 and is `scale` times
            them before bias and activation. Quantized operands of scales s and t have `scale = s * t`.
        bias: `[cout]`.
        activation: a name in `kernels.ACTIVATIONS`; softmax and log_softmax are over the channels.
        implementation: None chooses; "triton", "onednn" or "xla" must run.

    Raises:
        ValueError: if shapes disagree, the kernel is larger than the padded input, or a name is unknown.
        TypeError: if dtypes differ or narrow integers would overflow.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    >>> conv(x, w, 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), bias=jnp.zeros(5), activation="relu").shape
    (2, 4, 4, 5)
    """
    candidates = _conv_candidates(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
        batch_group_count, precision, preferred_element_type, out_sharding,
        scale=scale, bias=bias, activation=activation, implementation=implementation,
    )  # fmt: skip
    return _dispatch.run(conv, candidates, implementation)


def _transpose_candidates(
    lhs: Any,
    rhs: Any,
    strides: Any,
    padding: Any,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    bias: Any = None,
    activation: str | None = None,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    who = "conv_transpose"
    lhs, rhs = as_array(lhs), as_array(rhs)
    rank = spatial_rank(who, lhs, rhs)
    if dimension_numbers is None:
        space = "DHW"[3 - rank :]
        dimension_numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    strides = per_axis(who, "strides", strides, rank)
    rhs_dilation = per_axis(who, "rhs_dilation", rhs_dilation, rank)
    kernel = tuple(rhs.shape[i] for i in numbers.rhs_spec[2:])
    pads = transposed_pads(who, padding, kernel, strides, rhs_dilation)
    if transpose_kernel:
        rhs = flipped_and_swapped(rhs, numbers)
    geometry = conv_geometry(
        who, lhs, rhs, 1, pads, strides, rhs_dilation, numbers, 1, 1, precision, preferred_element_type
    )
    return choice.transpose_candidates(
        lhs, rhs, geometry, _epilogue(who, geometry, None, bias, activation), implementation is not None
    )


@_dispatch.op(_transpose_candidates, Rows(("lhs",), _transpose_batch_axes))
def conv_transpose(
    lhs: Any,
    rhs: Any,
    strides: int | Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: int | Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    bias: Any = None,
    activation: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Transposed convolution in one to three dimensions, with bias and activation.

    `y[i] = activation(sum_k x[(i + dilation * k - low) / stride] w[k] + bias)` over the k that divide:
    `lax.conv_transpose`, argument for argument, with gradients that are fast on every platform.

    Args:
        lhs: the input, by default `[batch, *spatial, cin]`, else as `dimension_numbers` say.
        rhs: the kernel, by default `[*spatial, cin, cout]`, of the input's dtype.
        strides: one integer, or one for each spatial axis, by which the output is larger.
        padding: "SAME" (output = stride * input), "VALID", or (low, high) zeros around the dilated input.
        rhs_dilation: distance between kernel elements.
        dimension_numbers: as in lax.
        transpose_kernel: if True the kernel is that of the convolution whose gradient this is, as in Keras: its
            spatial axes are flipped and its channel axes swapped, `[*spatial, cout, cin]`.
        precision: as in lax.
        preferred_element_type: dtype of the sums and of the result.
        bias: `[cout]`.
        activation: a name in `kernels.ACTIVATIONS`; softmax and log_softmax are over the channels.
        implementation: None chooses; "onednn" or "xla" must run.

    Raises:
        ValueError: if shapes disagree or a name is unknown.
        TypeError: if dtypes differ or narrow integers would overflow.

    >>> import jax.numpy as jnp
    >>> conv_transpose(jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5)), 2, "SAME").shape
    (2, 8, 8, 5)
    """
    candidates = _transpose_candidates(
        lhs, rhs, strides, padding, rhs_dilation, dimension_numbers, transpose_kernel, precision,
        preferred_element_type, bias=bias, activation=activation, implementation=implementation,
    )  # fmt: skip
    return _dispatch.run(conv_transpose, candidates, implementation)


def _epilogue(who: str, g: Geometry, scale: Any, bias: Any, activation: str | None) -> choice.Epilogue:
    """What follows the sums, checked."""
    activation_named(activation, who)
    result = g.preferred or g.dtype
    if scale is not None:
        scale = as_array(scale)
        check_scale(who, scale, g)
        result = jnp.dtype(jnp.float32)
    if bias is not None:
        bias = as_array(bias)
        check_bias(who, bias, g, result)
    if activation is not None and not jnp.issubdtype(result, jnp.inexact):
        raise TypeError(f"{who}: activation={activation!r} needs floating point, the result is {result}")
    return choice.Epilogue(scale, bias, activation.lower() if activation else None)
