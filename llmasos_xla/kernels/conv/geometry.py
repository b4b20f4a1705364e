"""The static side of a convolution: every argument of `conv` and `conv_transpose` checked and in one form."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.errors import unknown

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
PADDINGS = ("SAME", "SAME_LOWER", "VALID")


class Geometry(NamedTuple):
    """A convolution without its arrays; hashable. Sizes are in the order of the spatial axes.

    An output size is `(lhs + low + high - kernel) // stride + 1`, lhs and kernel after their dilation.
    """

    batch: int
    size: Ints
    cin: int
    kernel: Ints
    cout: int
    stride: Ints
    pads: Pads
    lhs_dilation: Ints
    rhs_dilation: Ints
    groups: int
    batch_groups: int
    numbers: lax.ConvDimensionNumbers
    precision: Any
    preferred: Any
    dtype: Any

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @property
    def out_size(self) -> Ints:
        """The spatial size of the result."""
        return tuple(
            (dilated(n, b) + low + high - dilated(k, d)) // s + 1
            for n, b, (low, high), k, d, s in zip(
                self.size, self.lhs_dilation, self.pads, self.kernel, self.rhs_dilation, self.stride
            )
        )

    @property
    def channels_last(self) -> bool:
        """Whether the arrays are `[batch, *spatial, cin]`, `[*spatial, cin, cout]` and `[batch, *spatial, cout]`."""
        return self.numbers == self.with_channels_last().numbers

    def with_channels_last(self) -> "Geometry":
        """The same convolution of channels-last arrays."""
        space = tuple(range(1, self.rank + 1))
        last = self.rank + 1
        image, kernel = (0, last, *space), (last, last - 1, *(i - 1 for i in space))
        return self._replace(numbers=lax.ConvDimensionNumbers(image, kernel, image))


def spatial_rank(who: str, lhs: Any, rhs: Any) -> int:
    """The number of spatial axes."""
    if lhs.ndim != rhs.ndim or not 3 <= lhs.ndim <= 5:
        raise ValueError(
            f"{who}: lhs and rhs must both have rank 3, 4 or 5 (batch, channels, one to three spatial axes), "
            f"got lhs {tuple(lhs.shape)}, rhs {tuple(rhs.shape)}"
        )
    return lhs.ndim - 2


def dilated(size: int, dilation: int) -> int:
    """The length of an axis once `dilation - 1` zeros stand between its elements."""
    return (size - 1) * dilation + 1 if size else 0


def conv_geometry(
    who: str,
    lhs: Any,
    rhs: Any,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
) -> Geometry:
    """The arguments of `conv`, checked."""
    rank = spatial_rank(who, lhs, rhs)
    check_dtypes(who, lhs, rhs, preferred_element_type)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    batch, cin, *size = (lhs.shape[i] for i in numbers.lhs_spec)
    cout, cin_of_group, *kernel = (rhs.shape[i] for i in numbers.rhs_spec)
    stride = per_axis(who, "window_strides", window_strides, rank)
    lhs_dilation = per_axis(who, "lhs_dilation", lhs_dilation, rank)
    rhs_dilation = per_axis(who, "rhs_dilation", rhs_dilation, rank)
    shapes = f"lhs {tuple(lhs.shape)}, rhs {tuple(rhs.shape)}, {_spelled(numbers, rank)}"
    groups, batch_groups = int(feature_group_count), int(batch_group_count)
    if groups < 1 or batch_groups < 1 or (groups > 1 and batch_groups > 1):
        raise ValueError(
            f"{who}: feature_group_count={groups} and batch_group_count={batch_groups}: "
            "both must be at least 1, and one of them must be 1"
        )
    if cin != cin_of_group * groups:
        raise ValueError(
            f"{who}: lhs has {cin} channels, rhs expects {cin_of_group} in each of {groups} group(s), "
            f"{cin_of_group * groups} in all ({shapes})"
        )
    if cout % groups:
        raise ValueError(f"{who}: {cout} output channels do not divide into {groups} groups ({shapes})")
    if cout % batch_groups or batch % batch_groups:
        raise ValueError(
            f"{who}: a batch of {batch} and {cout} output channels must both divide into "
            f"batch_group_count={batch_groups} ({shapes})"
        )
    if not all(kernel):
        raise ValueError(f"{who}: rhs has a spatial axis of size 0 ({shapes})")
    windows = tuple(dilated(k, d) for k, d in zip(kernel, rhs_dilation))
    dilated_size = tuple(dilated(n, b) for n, b in zip(size, lhs_dilation))
    pads = pad_pairs(who, padding, dilated_size, windows, stride)
    for axis, (n, (low, high), window) in enumerate(zip(dilated_size, pads, windows)):
        if n + low + high < window:
            raise ValueError(
                f"{who}: the kernel spans {window} on spatial axis {axis}, the padded input only {n + low + high} "
                f"({shapes}); use a smaller kernel or rhs_dilation, or padding='SAME'"
            )
    preferred = None if preferred_element_type is None else jnp.dtype(preferred_element_type)
    return Geometry(
        batch, tuple(size), cin, tuple(kernel), cout, stride, pads, lhs_dilation, rhs_dilation, groups, batch_groups,
        numbers, precision, preferred, jnp.dtype(lhs.dtype),
    )  # fmt: skip


def per_axis(who: str, name: str, value: Any, rank: int) -> Ints:
    """One positive integer for each spatial axis; a single one stands for all, None for 1."""
    if value is None:
        value = 1
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    try:
        values = tuple(v.__index__() for v in values)
    except AttributeError:
        raise TypeError(f"{who}: {name} must be an int or {rank} of them, got {value!r}") from None
    if len(values) != rank:
        raise ValueError(f"{who}: {name}={value!r} has {len(values)} entries, the input has {rank} spatial axes")
    if any(v < 1 for v in values):
        raise ValueError(f"{who}: {name}={value!r} must be positive")
    return values


def pad_pairs(who: str, padding: Any, size: Ints, window: Ints, stride: Ints) -> Pads:
    """Padding as (low, high) for each spatial axis; `size` and `window` are lengths after dilation."""
    rank = len(size)
    if isinstance(padding, str):
        if padding.upper() not in PADDINGS:
            raise unknown(who, "padding", padding, (*PADDINGS, "(low, high) for each spatial axis"))
        return tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(size, window, stride, padding.upper()))
    try:
        pads = tuple((low.__index__(), high.__index__()) for low, high in padding)
    except (TypeError, ValueError, AttributeError):
        raise TypeError(
            f"{who}: padding must be {', '.join(map(repr, PADDINGS))} or {rank} pairs (low, high), got {padding!r}"
        ) from None
    if len(pads) != rank:
        raise ValueError(f"{who}: padding={padding!r} has {len(pads)} pairs, the input has {rank} spatial axes")
    return pads


def transposed_pads(who: str, padding: Any, kernel: Ints, strides: Ints, rhs_dilation: Ints) -> Pads:
    """The padding of a transposed convolution, as (low, high) zeros around its dilated input."""
    windows = tuple(dilated(k, d) for k, d in zip(kernel, rhs_dilation))
    if not isinstance(padding, str):
        return pad_pairs(who, padding, kernel, windows, strides)
    pads = []
    for window, stride in zip(windows, strides):
        total = window + stride - 2
        if padding.upper() == "SAME":
            low = window - 1 if stride > window - 1 else -(-total // 2)
        elif padding.upper() == "VALID":
            total += max(window - stride, 0)
            low = window - 1
        else:
            raise unknown(who, "padding", padding, ("SAME", "VALID", "(low, high) for each spatial axis"))
        pads.append((low, total - low))
    return tuple(pads)


def padded(x: jax.Array, g: Geometry) -> jax.Array:
    """The channels-last input with its padding; negative padding crops."""
    if all(pair == (0, 0) for pair in g.pads):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in g.pads), (0, 0, 0)))


def uncropped(g: Geometry) -> Geometry:
    """The geometry once negative padding has been cut off the input."""
    size = tuple(n + min(low, 0) + min(high, 0) for n, (low, high) in zip(g.size, g.pads))
    return g._replace(size=size, pads=tuple((max(low, 0), max(high, 0)) for low, high in g.pads))


def cropped(x: jax.Array, g: Geometry) -> jax.Array:
    """The channels-last input without what negative padding cuts off."""
    if all(low >= 0 and high >= 0 for low, high in g.pads):
        return x
    start = (0, *(max(-low, 0) for low, _ in g.pads), 0)
    stop = (g.batch, *(n - max(-high, 0) for n, (_, high) in zip(g.size, g.pads)), g.cin)
    return lax.slice(x, start, stop)


def flipped_and_swapped(rhs: Any, numbers: lax.ConvDimensionNumbers) -> Any:
    """The kernel of a convolution as the kernel of its transpose."""
    cout, cin, *space = numbers.rhs_spec
    if isinstance(rhs, jax.ShapeDtypeStruct):
        shape = list(rhs.shape)
        shape[cout], shape[cin] = shape[cin], shape[cout]
        return jax.ShapeDtypeStruct(shape, rhs.dtype)
    return lax.rev(rhs, space).swapaxes(cout, cin)


def check_dtypes(who: str, lhs: Any, rhs: Any, preferred: Any) -> None:
    """Operands of one numeric dtype, wide enough to hold the sum."""
    if lhs.dtype != rhs.dtype:
        raise TypeError(f"{who}: lhs is {lhs.dtype}, rhs is {rhs.dtype}; cast one, e.g. lhs.astype({str(rhs.dtype)!r})")
    if lhs.dtype == jnp.bool_:
        raise TypeError(f"{who}: operands are bool; cast them to float32")
    if jnp.issubdtype(lhs.dtype, jnp.integer) and lhs.dtype.itemsize < 4 and preferred is None:
        raise TypeError(
            f"{who}: sums of {lhs.dtype} products overflow; cast the operands to float32, "
            "or pass preferred_element_type=jnp.int32"
        )


def check_bias(who: str, bias: Any, geometry: Geometry, result: Any) -> None:
    """A bias is `[cout]`, of the operands' or the result's dtype."""
    if tuple(bias.shape) != (geometry.cout,):
        raise ValueError(f"{who}: bias has shape {tuple(bias.shape)}, expected ({geometry.cout},) = (cout,)")
    if bias.dtype not in (geometry.dtype, result):
        raise TypeError(f"{who}: bias is {bias.dtype}, the operands are {geometry.dtype}; cast the bias")


def check_scale(who: str, scale: Any, geometry: Geometry) -> None:
    """A scale is `[cout]` or a scalar, floating, and for integer sums."""
    if tuple(scale.shape) not in ((), (geometry.cout,)):
        raise ValueError(f"{who}: scale has shape {tuple(scale.shape)}, expected () or ({geometry.cout},) = (cout,)")
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(f"{who}: scale is {scale.dtype}, expected floating point")
    if not jnp.issubdtype(geometry.dtype, jnp.integer) or geometry.preferred != jnp.int32:
        raise TypeError(
            f"{who}: scale is for int8 operands summed in int32, the operands are {geometry.dtype}; "
            "multiply the kernel by it instead"
        )


def at_least_float32(dtype: Any) -> jnp.dtype:
    """The dtype for sums: 16-bit floating point is summed in 32 bits."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def as_array(x: Any) -> Any:
    """`x`, if it has a shape and a dtype (an array or a `jax.ShapeDtypeStruct`), or as an array."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jnp.asarray(x)


def _spelled(numbers: lax.ConvDimensionNumbers, rank: int) -> str:
    """The dimension numbers as lax spells them: "lhs NHWC, rhs HWIO"."""
    space = {1: "W", 2: "HW", 3: "DHW"}[rank]

    def spell(spec: Sequence[int], names: str) -> str:
        return "".join(name for _, name in sorted(zip(spec, names + space)))

    return f"lhs {spell(numbers.lhs_spec, 'NC')}, rhs {spell(numbers.rhs_spec, 'OI')}"
