"""What a depthwise convolution is for the Triton kernels, and which block sizes it runs with."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels._triton import Device, tuned
from llmasos_xla.kernels.conv.geometry import Geometry, Ints, Pads

# A row of taps longer than this is taken in parts, or its weights would not fit into the registers.
_TAPS = 8
_WARPS = 4

FORWARD = "depthwise forward"
"""The tuned table of the forward pass' blocks."""


class Slide(NamedTuple):
    """Blocks of the forward pass and of the input gradient.

    A thread has some channels of one column and of `rows` rows below each other, so that a row of x that it loads is
    used for as many results as the kernel has taps in that direction, `taps` of them at a time.
    """

    rows: int
    taps: int
    block_p: int
    block_c: int
    warps: int = _WARPS


class Sums(NamedTuple):
    """Blocks of the kernel gradient: a program has `span` columns of taps and writes its part of their sums."""

    rows: int
    span: int
    programs: int
    block_p: int
    block_c: int
    warps: int = _WARPS


class Short(NamedTuple):
    """Blocks of the whole gradient of a short convolution over time, in one pass."""

    rows: int
    programs: int
    block_p: int
    block_c: int
    warps: int = _WARPS


class Plane(NamedTuple):
    """The convolution over rows and columns that the kernels see; time is rows of one column."""

    H: int
    W: int
    OH: int
    OW: int
    R: int
    S: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int


class Spec(NamedTuple):
    """A depthwise convolution of channels-last arrays, `activation(sum_k x[s i + d k - low] * w[k] + b)`."""

    batch: int
    size: Ints
    channels: int
    kernel: Ints
    stride: Ints
    pads: Pads
    dilation: Ints
    dtype: str
    device: Device
    bias: bool = False
    activation: str = ""
    keep: str = ""
    """What the forward pass keeps for the slope: "y", its result, "z", the activation's argument, or nothing."""
    sought: tuple[str, ...] = ()
    """Of a tangent or gradient: the arguments that it is of."""
    forward: Slide | None = None
    back: Slide | None = None
    sums: Sums | None = None
    short: Short | None = None

    @property
    def out_size(self) -> Ints:
        """The spatial size of the result."""
        return self.geometry.out_size

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arrays that the forward pass takes."""
        return ("x", "w", "b") if self.bias else ("x", "w")

    @property
    def geometry(self) -> Geometry:
        """The same for the XLA formulations."""
        c, one = self.channels, (1,) * len(self.size)
        # Of the kernels' own sums.
        precision = lax.Precision.HIGHEST if self.dtype == "float32" else None
        g = Geometry(
            self.batch, self.size, c, self.kernel, c, self.stride, self.pads, one, self.dilation, c, 1,
            lax.ConvDimensionNumbers((), (), ()), precision, None, jnp.dtype(self.dtype),
        )  # fmt: skip
        return g.with_channels_last()

    @property
    def plane(self) -> Plane:
        """The same as rows and columns."""
        # A picture of one row is time too, if that row is what its outputs read.
        one_row = math.prod(self.out_size[:-1] + self.kernel[:-1] + self.size[:-1]) == 1
        first = len(self.size) - 1 if one_row and all(low == 0 for low, _ in self.pads[:-1]) else 0
        pairs = []
        for values, filler in (
            (self.size, 1), (self.out_size, 1), (self.kernel, 1), (self.stride, 1),
            (tuple(low for low, _ in self.pads), 0), (self.dilation, 1),
        ):  # fmt: skip
            pairs += [*values[first:], filler][:2]
        return Plane(*pairs)

    @property
    def recomputes(self) -> bool:
        """Whether its gradient is one pass that computes z again: a few taps over time, as of a state-space model.

        Keeping z instead would cost the forward pass one more write, and the gradients two more reads.
        """
        p = self.plane
        reach = (p.R - 1) * p.DH
        return p.W == p.OW == p.S == p.SH == 1 and p.PW == 0 and reach <= 8 and 0 <= p.PH <= reach

    def struct(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array in the program, and of its gradient."""
        c = self.channels
        shape = {"x": (self.batch, *self.size, c), "w": (*self.kernel, 1, c), "b": (c,)}
        return jax.ShapeDtypeStruct(shape.get(name, (self.batch, *self.out_size, c)), jnp.dtype(self.dtype))


def with_blocks(s: Spec) -> Spec:
    """The same with block sizes for its device: those that were measured fastest, else those of the cost model."""
    p, itemsize, device, key = s.plane, jnp.dtype(s.dtype).itemsize, s.device, shape_class(s)
    forward = _slide(s.batch, s.channels, p, itemsize, device, False)
    back = _slide(s.batch, s.channels, Plane(p.OH, p.OW, p.H, p.W, *p[4:]), itemsize, device, True)
    sums, short = _sums(s.batch, s.channels, p, device), _short(s.batch, s.channels, p, device, s.activation)
    return s._replace(
        forward=tuned.replaced(forward, device.name, FORWARD, key),
        back=tuned.replaced(back, device.name, "depthwise input gradient", key),
        sums=tuned.replaced(sums, device.name, "depthwise kernel gradient", key),
        short=tuned.replaced(short, device.name, "depthwise gradient", key) if s.recomputes else None,
    )


def shape_class(s: Spec) -> str:
    """What decides how fast it is, as tuned tables name it: "depthwise 16-bit 7x7/1x1/1x1 b=8 ..."."""
    p = s.plane
    words = f"depthwise {tuned.numbers(s.dtype, '32-bit')} {p.R}x{p.S}/{p.SH}x{p.SW}/{p.DH}x{p.DW}"
    return f"{words} b={s.batch} h={p.H} w={p.W} c={s.channels}"


def slide_programs(n: int, c: int, p: Plane, transposed: bool, blocks: Slide) -> int:
    """How many programs `slide_kernel` is started with; `p` is as it reads and writes."""
    phases = p.SW if transposed else 1
    lanes = n * _up(p.OH, blocks.rows) * _up(p.OW, phases)
    return _up(lanes, blocks.block_p) * phases * _up(c, blocks.block_c)


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _channels(c: int, most: int) -> int:
    """Channels of a program: a power of two that wastes little of the last program and loads long runs."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < 2 * c]
    return min(powers, key=lambda b: _up(c, b) * b * (1 + 8 / b))


def _slide(n: int, c: int, p: Plane, itemsize: int, device: Device, transposed: bool) -> Slide:
    # 16 bytes a load; in float32 that is half of the channels, and half of the registers.
    vector = 16 // itemsize
    step = p.SH if transposed else 1
    taps = p.R if p.R <= _TAPS else step * max(1, _TAPS // step)
    block_c = _channels(c, min(128, 32 * _WARPS * vector))
    block_p = 32 * _WARPS * vector // block_c

    def programs(rows: int) -> int:
        return slide_programs(n, c, p, transposed, Slide(rows, taps, block_p, block_c))

    def cost(rows: int) -> float:
        if transposed:
            read = {(i + p.PH - t * p.DH) // p.SH for i in range(rows) for t in range(taps)}
        else:
            read = {i * p.SH + t * p.DH for i in range(rows) for t in range(taps)}
        # An element that is loaded costs about as much as one and a half multiply-adds: it is masked and converted.
        return _up(p.OH, rows) * (rows * taps / step + 1.5 * len(read))

    # Of several phases only doubled numbers: between them the assembler saves registers by spilling.
    choices = [r for r in ((1, 2, 4, 8) if step > 1 else range(1, 9)) if r * step <= max(8, step)]
    choices = [r * step for r in choices if r * step < p.OH + step]
    # Of short strips only those that leave no multiprocessor idle are worth their repeated loads.
    enough = [r for r in choices if programs(r) >= 2 * device.multiprocessors] or choices[:1]
    return Slide(min(enough, key=cost), taps, block_p, block_c)


def _sums(n: int, c: int, p: Plane, device: Device) -> Sums:
    # Sums of `R span` taps, `vector` channels each, stay in a thread's registers.
    vector = 4 if p.R <= 16 else 2
    span = max(1, min(p.S, 16 // p.R))
    block_c = _channels(c, 64)
    block_p = 32 * _WARPS * vector // block_c
    rows = min(range(1, 9), key=lambda r: _up(p.OH, r) * (r * p.R + 1.5 * ((r - 1) * p.SH + (p.R - 1) * p.DH + 1)))
    blocks = _up(n * _up(p.OH, rows) * p.OW, block_p)
    # One wave: each program writes its sums once, at the end.
    programs = 3 * device.multiprocessors // (_up(c, block_c) * _up(p.S, span))
    return Sums(rows, span, max(1, min(programs, blocks)), block_p, block_c)


def _short(n: int, c: int, p: Plane, device: Device, activation: str) -> Short:
    block_c = _channels(c, 64)
    # Longer windows, and slopes with an error function, leave no registers for four channels of a thread.
    vector = 4 if (p.R - 1) * p.DH <= 3 and not activation.startswith("gelu") else 2
    block_p = 32 * _WARPS * vector // block_c

    def blocks(rows: int) -> int:
        return _up(n * _up(max(p.H, p.OH), rows), block_p)

    tiles = _up(c, block_c)
    rows = 16 if p.OH >= 32 and blocks(16) * tiles >= 3 * device.multiprocessors else 8
    return Short(rows, max(1, min(3 * device.multiprocessors // tiles, blocks(rows))), block_p, block_c)
