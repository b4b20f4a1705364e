"""The sizes that a linear recurrence's kernels run with, and the class of shapes that decides them."""

from typing import NamedTuple

import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels.scan.recurrence import Spec

# The tuned tables of the kernels' sizes, and of who is faster.
TABLE, CHOICE = "linear_scan", "linear_scan choice"

LANES = 32
# What a lane loads of one array before its first use: of a and b, 8 KiB on the way for a program, in 64 registers.
_LANE_BYTES = 128
# Programs of a multiprocessor: 3 x 8 KiB on 132 of them is what 3.35 TB/s deliver in the microsecond of a load.
_WANTED = 3
# Above it no second pass is faster; each program reads the ends of all segments before its own.
_MOST_SEGMENTS = 128
# Groups of steps that a segment has at least.
_LEAST_GROUPS = 4
# How much less time a second pass over a and b must promise.
_GAIN = 1.25


class Config(NamedTuple):
    """What the kernels are compiled for, and their sizes."""

    device: _triton.Device
    vector: int
    """Neighboring channels of a lane."""
    ahead: int
    """Steps that are loaded together."""
    segments: int
    """Parts of time that are walked at once."""
    fused: bool = False
    """Whether the backward kernel writes da too. By default XLA makes it of db and h together with what follows, and
    that reads h where it would have read da: the kernel's read of h and its write of da are saved."""


def configured(s: Spec) -> Spec:
    """The spec with the sizes for the GPU that is compiled for: what was measured, else the heuristic's."""
    device = _triton.device()
    return s._replace(how=tuned.replaced(_heuristic(s, device), device.name, TABLE, shape_class(s)))


def shape_class(s: Spec) -> str:
    """The shape class, as tuned tables name it: the gate's axes are those that it is not shared along.

    >>> shape_class(Spec(7, 1001, 333, (7, 1001, 1), "bfloat16", "float32", False, False, None))
    'b=7 t=1001 c=333 bfloat16 gate=bt float32'
    """
    sizes = " ".join(f"{axis}={n}" for axis, n in zip("btc", s.shape))
    own = "".join(axis for axis, n in zip("btc", s.gate) if n > 1)
    return f"{sizes} {s.dtype} gate={own or 'one'} {s.gate_dtype}"


def _heuristic(s: Spec, device: _triton.Device) -> Config:
    """Sizes that keep enough bytes on the way."""
    itemsize = jnp.dtype(s.dtype).itemsize
    wanted = _WANTED * device.multiprocessors
    vector = 16 // itemsize
    # Narrower where that makes programs, down to 128 bytes in a row for a warp.
    while vector * itemsize > 4 and (LANES * vector >= 2 * s.channels or programs(s, vector) < wanted):
        vector //= 2
    ahead = min(_LANE_BYTES // (vector * itemsize), 1 << (s.time - 1).bit_length())
    streams = 1 + (s.gate[1] > 1 and s.gate[2] == s.channels)
    filled = programs(s, vector) * streams / 2 / wanted

    def cost(segments: int) -> float:
        """Passes of the size of b over memory, by the share of its speed that is reached."""
        return (streams + 1 + streams * (segments - 1) / segments) / min(1.0, filled * segments)

    counts = [2**i for i in range(1, _MOST_SEGMENTS.bit_length()) if 2**i * ahead * _LEAST_GROUPS <= s.time]
    best = min(counts, key=cost, default=1)
    return Config(device, vector, ahead, best if _GAIN * cost(best) < cost(1) else 1)


def programs(s: Spec, vector: int) -> int:
    """Programs of one segment."""
    return s.batch * -(-s.channels // (LANES * vector))
