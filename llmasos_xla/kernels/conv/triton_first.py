"""A first convolution by Triton: one to four input channels, the elements of a window as the depth of one product."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton import Device, tuned
from llmasos_xla.kernels._triton.precision import dot_precision
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.conv.geometry import Geometry, Ints, Pads, cropped, uncropped
from llmasos_xla.kernels.conv.triton_operations import (
    CHOICE,
    DTYPES,
    Arrays,
    ahead_of_activation,
    family,
    fused,
    start,
    summed,
)
from llmasos_xla.kernels.conv.xla import plain_convolution

MOST_CHANNELS = 4
MOST_ELEMENTS = 512

FORWARD = "first layer forward"
"""The tuned table of the forward pass' blocks."""


class Tiles(NamedTuple):
    """Blocks of a product: places of the result, elements of the window, output channels."""

    block_m: int
    block_k: int
    block_f: int
    programs: int = 0
    """Of the kernel gradient: programs along the places, each of which writes its part of the sums."""
    warps: int = 4


class Spec(NamedTuple):
    """A convolution of channels-last arrays of few channels, `activation(sum_k x[s i + d k - low] w[k] + b)`."""

    batch: int
    size: Ints
    cin: int
    kernel: Ints
    cout: int
    stride: Ints
    pads: Pads
    dilation: Ints
    dtype: str
    precision: str
    device: Device
    bias: bool = False
    activation: str = ""
    keep: str = ""
    """What the forward pass keeps for the slope: "y", its result, "z", the activation's argument, or nothing."""
    sought: tuple[str, ...] = ()
    """Of a tangent or gradient: the arguments that it is of."""
    forward: Tiles | None = None
    sums: Tiles | None = None

    recomputes = False

    @property
    def out_size(self) -> Ints:
        """The spatial size of the result."""
        return self.geometry.out_size

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arrays that the forward pass takes."""
        return ("x", "w", "b") if self.bias else ("x", "w")

    @property
    def depth(self) -> int:
        """Elements of a window."""
        return math.prod(self.kernel) * self.cin

    @property
    def geometry(self) -> Geometry:
        """The same for the XLA formulations."""
        one = (1,) * len(self.size)
        g = Geometry(
            self.batch, self.size, self.cin, self.kernel, self.cout, self.stride, self.pads, one, self.dilation, 1, 1,
            lax.ConvDimensionNumbers((), (), ()), None, None, jnp.dtype(self.dtype),
        )  # fmt: skip
        return g.with_channels_last()

    def struct(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array in the program, and of its gradient."""
        shape = {
            "x": (self.batch, *self.size, self.cin),
            "w": (*self.kernel, self.cin, self.cout),
            "b": (self.cout,),
        }
        return jax.ShapeDtypeStruct(shape.get(name, (self.batch, *self.out_size, self.cout)), jnp.dtype(self.dtype))


def _with_tiles(s: Spec) -> Spec:
    """The same with block sizes for its device: those that were measured fastest, else those of the cost model."""
    places = s.batch * math.prod(s.out_size)
    block_f = max(16, min(128, _power(s.cout)))
    wide = s.dtype == "float32"

    def depth(elements: int) -> int:
        # Elements are loaded one by one: those beyond the window's are as dear as its own.
        return (
            min((16, 32, 64), key=lambda b: (-(-elements // b) * b, -b)) if elements > 32 else 16 * -(-elements // 16)
        )

    # A thread holds the places of sixteen elements that it loads at once; float32 is three products of as many.
    forward = Tiles(64, depth(s.depth), block_f)
    block_k = 64 if s.depth >= 32 else 16 * -(-(s.depth + 1) // 16)
    # Before Hopper both factors of the three products are in registers: of 32 places they would spill.
    block_m = (32 if s.device.arch >= 90 else 16) if wide else 64
    tiles = -(-(s.depth + 1) // block_k) * -(-s.cout // block_f)
    # Two waves of programs that four fit of on a multiprocessor.
    programs = max(1, min(8 * s.device.multiprocessors // tiles, -(-places // block_m)))
    # Four warps of 128 outputs would spill.
    sums = Tiles(block_m, block_k, block_f, programs, 8 if block_f > 64 else 4)
    key = shape_class(s)
    return s._replace(
        forward=tuned.replaced(forward, s.device.name, FORWARD, key),
        sums=tuned.replaced(sums, s.device.name, "first layer kernel gradient", key),
    )


def shape_class(s: Spec) -> str:
    """What decides how fast it is, as tuned tables name it: "first layer 16-bit 7x7x3/2x2/1x1 b=8 ..."."""
    numbers = "16-bit" if jnp.dtype(s.dtype).itemsize == 2 else s.precision
    window = "/".join("x".join(map(str, sizes)) for sizes in ((*s.kernel, s.cin), s.stride, s.dilation))
    places = " ".join(f"{axis}={n}" for axis, n in zip("hw"[2 - len(s.size) :], s.size))
    return f"first layer {numbers} {window} b={s.batch} {places} f={s.cout}"


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _constants(s: Spec, tiles: Tiles) -> dict[str, Any]:
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
        "INSIDE": inside, "WIDE": max(s.struct(n).size for n in "xy") >= 2**31, "BLOCK_M": tiles.block_m,
        "BLOCK_K": tiles.block_k, "BLOCK_F": tiles.block_f,
    }  # fmt: skip


def _forward(s: Spec, x: Any, w: Any, b: Any, with_z: bool) -> Arrays:
    from llmasos_xla.kernels.conv.triton_first_kernels import first_kernel

    tiles = s.forward
    assert tiles is not None
    return start(
        first_kernel,
        -(-s.batch * math.prod(s.out_size) // tiles.block_m) * -(-s.cout // tiles.block_f),
        {"x_ptr": x, "w_ptr": w, "b_ptr": b},
        {"y_ptr": s.struct("y"), "z_ptr": s.struct("z") if with_z else None},
        _constants(s, tiles),
        tiles.warps,
    )


def _backward(s: Spec, x: Any, w: Any, b: Any, kept: Any, dy: Any) -> dict[str, Any]:
    from llmasos_xla.kernels.conv.triton_first_kernels import first_sums_kernel

    tiles, found = s.sums, {}
    assert tiles is not None
    if "x" in s.sought:  # rare, and cuDNN's own backward-data call is as good as any
        dz = ahead_of_activation(s, kept, dy)
        (found["x"],) = jax.linear_transpose(lambda x: plain_convolution(x, w, s.geometry), s.struct("x"))(dz)
    if s.sought != ("x",):
        (sums,) = start(
            first_sums_kernel,
            tiles.programs * -(-(s.depth + 1) // tiles.block_k) * -(-s.cout // tiles.block_f),
            {"x_ptr": x, "g_ptr": dy, "kept_ptr": kept},
            {"part_ptr": jax.ShapeDtypeStruct((tiles.programs, s.depth + 1, s.cout), jnp.dtype(jnp.float32))},
            _constants(s, tiles) | {"PROGRAMS": tiles.programs},
            tiles.warps,
        )
        found |= summed(s, sums, True)
    return found


def _batch(
    s: Spec, size: int, given: Sequence[str], arrays: Arrays, axes: Sequence[Any], made: Sequence[str]
) -> tuple[Spec, Arrays, Any] | None:
    """The mapped axis joins the batch, unless each of its elements has a kernel of its own."""
    if any(axis is not None for n, axis in zip(given, axes) if n in "wb") or not {"w", "b"}.isdisjoint(made):
        return None
    packed = []
    for name, a, axis in zip(given, arrays, axes):
        if name not in "wb":
            a = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
            a = a.reshape(-1, *a.shape[2:])
        packed.append(a)
    return _with_tiles(s._replace(batch=s.batch * size)), packed, lambda r: r.reshape(size, -1, *r.shape[1:])


OPERATIONS = family(
    "first layer", Spec, _forward, _backward, _batch, lambda s: 2.0 * math.prod(s.struct("y").shape) * s.depth
)


def spec_of(g: Geometry, bias: bool, activation: str | None) -> Spec:
    """The description of a geometry without cropping; its activation if a kernel has it."""
    device = _triton.current()
    assert not isinstance(device, str)
    return _with_tiles(
        Spec(
            g.batch, g.size, g.cin, g.kernel, g.cout, g.stride, g.pads, g.rhs_dilation, str(g.dtype),
            dot_precision(g.dtype, g.precision), device, bias, fused(activation),
        )
    )  # fmt: skip


def cannot(g: Geometry, x: Any, w: Any) -> str | None:
    """Why the kernels cannot compute this convolution, or None."""
    if g.groups > 1:
        return f"has {g.groups} groups"
    if g.cin > MOST_CHANNELS:
        return f"has {g.cin} input channels; it is for {MOST_CHANNELS} at most"
    if g.rank > 2:
        return f"has {g.rank} spatial axes"
    if str(g.dtype) not in DTYPES:
        return f"operands are {g.dtype}; it takes {', '.join(DTYPES)}"
    if g.preferred is not None and g.preferred != g.dtype:
        return f"the result is {g.preferred}, not {g.dtype} as the operands"
    if any(b > 1 for b in g.lhs_dilation):
        return "lhs_dilation is above 1"
    if g.cin * math.prod(g.kernel) > MOST_ELEMENTS:
        return f"a window has {g.cin * math.prod(g.kernel)} elements; it takes at most {MOST_ELEMENTS}"
    if any(n + min(low, 0) + min(high, 0) < 1 for n, (low, high) in zip(g.size, g.pads)):
        return "negative padding crops everything"
    return _triton.unfit(x, w) or _triton.refusal()


def slower(g: Geometry) -> str | None:
    """Why XLA is the better choice although the kernels could, as far as was measured, or None."""
    s = spec_of(uncropped(g), False, None)
    return tuned.slower(s.device.name, CHOICE, shape_class(s))


def origin(g: Geometry) -> str:
    """Where the block sizes come from, for `explain`."""
    s = spec_of(uncropped(g), False, None)
    measured = tuned.lookup(s.device.name, FORWARD, shape_class(s))
    return tuned.UNMEASURED if measured is None else tuned.origin(s.device.name)


def conv(
    x: jax.Array, w: jax.Array, bias: jax.Array | None, g: Geometry, activation: str | None, named: bool
) -> jax.Array:
    """`activation(lax_conv(x, w) + bias)` of channels-last arrays."""
    s = spec_of(uncropped(g), bias is not None, activation)
    arguments = [cropped(x, g), w, *([] if bias is None else [bias.astype(x.dtype)])]
    (y,) = _triton.call(OPERATIONS.inference, s, *arguments, named=named)
    return ACTIVATIONS[activation](y) if activation and not s.activation else y
