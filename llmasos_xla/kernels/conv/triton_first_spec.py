"""What a first convolution is for the Triton kernels, and which block sizes it runs with."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels._triton import Device, tuned
from llmasos_xla.kernels.conv.geometry import Geometry, Ints, Pads

FORWARD = "first layer forward"
"""The tuned table of the forward pass' blocks."""


class Blocks(NamedTuple):
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
    forward: Blocks | None = None
    sums: Blocks | None = None

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
        # TF32 only where the products in the kernels are of it.
        high = lax.Precision.DEFAULT if self.precision == "tf32" else lax.Precision.HIGHEST
        precision = high if self.dtype == "float32" else None
        g = Geometry(
            self.batch, self.size, self.cin, self.kernel, self.cout, self.stride, self.pads, one, self.dilation, 1, 1,
            lax.ConvDimensionNumbers((), (), ()), precision, None, jnp.dtype(self.dtype),
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


def with_blocks(s: Spec) -> Spec:
    """The same with block sizes for its device: those that were measured fastest, else those of the cost model."""
    places = s.batch * math.prod(s.out_size)
    block_f = max(16, min(128, 1 << (s.cout - 1).bit_length()))
    wide = s.dtype == "float32"

    def depth(elements: int) -> int:
        # Elements are loaded one by one: those beyond the window's are as dear as its own.
        return (
            min((16, 32, 64), key=lambda b: (-(-elements // b) * b, -b)) if elements > 32 else 16 * -(-elements // 16)
        )

    # A thread holds the places of sixteen elements that it loads at once; float32 is three products of as many.
    forward = Blocks(64, depth(s.depth), block_f)
    block_k = 64 if s.depth >= 32 else 16 * -(-(s.depth + 1) // 16)
    # Before Hopper both factors of the three products are in registers: of 32 places they would spill.
    block_m = (32 if s.device.arch >= 90 else 16) if wide else 64
    tiles = -(-(s.depth + 1) // block_k) * -(-s.cout // block_f)
    # Two waves of programs that four fit of on a multiprocessor.
    programs = max(1, min(8 * s.device.multiprocessors // tiles, -(-places // block_m)))
    # Four warps of 128 outputs would spill.
    sums = Blocks(block_m, block_k, block_f, programs, 8 if block_f > 64 else 4)
    key = shape_class(s)
    return s._replace(
        forward=tuned.replaced(forward, s.device.name, FORWARD, key),
        sums=tuned.replaced(sums, s.device.name, "first layer kernel gradient", key),
    )


def shape_class(s: Spec) -> str:
    """What decides how fast it is, as tuned tables name it: "first layer 16-bit 7x7x3/2x2/1x1 b=8 ..."."""
    numbers = tuned.numbers(s.dtype, s.precision)
    window = "/".join("x".join(map(str, sizes)) for sizes in ((*s.kernel, s.cin), s.stride, s.dilation))
    places = " ".join(f"{axis}={n}" for axis, n in zip("hw"[2 - len(s.size) :], s.size))
    return f"first layer {numbers} {window} b={s.batch} {places} f={s.cout}"
