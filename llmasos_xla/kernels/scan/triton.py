"""The linear recurrence by Triton: one pass over memory, on GPUs.

Each program is one warp and walks through time with some channels of one row. That is all there is to it where batch
and channels make enough programs to keep the memory busy. Where they do not, time is cut into segments: a first kernel
finds what each segment but the last makes of a state, and the second walks all of them at once, each from the state
behind those before it, at the price of reading a and b twice.

              channels                                  time
            | 32 lanes, `vector` channels each |        segment 0    segment 1    segment 2
    time    |     load `ahead` steps           |  ends  product,end  product,end
     |      |     h = a h + b, one by one      |              |  \\         |
     v      |     store them; load the next    |  walk  from h0    from s_0     from s_1     s_1 = product s_0 + end
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._dispatch import platform
from llmasos_xla.kernels._operation import Arrays
from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.scan import recurrence
from llmasos_xla.kernels.scan.recurrence import Spec

WALK = "walk"
# The tuned tables of the kernels' sizes, and of who is faster.
TABLE, CHOICE = "linear_scan", "linear_scan choice"
DTYPES = ("float32", "bfloat16", "float16")
OPTIONS = Options(warps=1)

_LANES = 32
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
_GRID = 2**31


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


def objection(s: Spec, unfit: str | None) -> str | None:
    """Why no kernel can compute this recurrence here, or None."""
    if platform() != "gpu":
        return f"runs on gpu, this is {platform()}"
    if s.dtype not in DTYPES:
        return f"takes {', '.join(DTYPES)}, b is {s.dtype}"
    why = unfit or _triton.refusal()
    if why is None and _programs(s, 1) >= _GRID:
        return f"{s.batch} rows of {s.channels} channels are more than a launch has programs for"
    return why


def slower(s: Spec) -> str | None:
    """Why XLA is the better choice although the kernels could, or None."""
    if s.time == 1:
        return "one step is a multiplication and a sum, which XLA computes with what is around them"
    return tuned.slower(_device().name, CHOICE, key(s))


def reason(s: Spec) -> str:
    """Why the kernels are preferred, and where their sizes come from."""
    name = _device().name
    known = tuned.lookup(name, TABLE, key(s)) is not None
    return f"reads a and b once, writes h once; {tuned.origin(name) if known else tuned.UNMEASURED}"


def configured(s: Spec) -> Spec:
    """The spec with the sizes for the GPU that is compiled for: what was measured, else the heuristic's."""
    device = _device()
    return s._replace(how=tuned.replaced(heuristic(s, device), device.name, TABLE, key(s)))


def key(s: Spec) -> str:
    """The shape class, as tuned tables name it: the gate's axes are those that it is not shared along.

    >>> key(Spec(7, 1001, 333, (7, 1001, 1), "bfloat16", "float32", False, False, None))
    'b=7 t=1001 c=333 bfloat16 gate=bt float32'
    """
    sizes = " ".join(f"{axis}={n}" for axis, n in zip("btc", s.shape))
    own = "".join(axis for axis, n in zip("btc", s.gate) if n > 1)
    return f"{sizes} {s.dtype} gate={own or 'one'} {s.gate_dtype}"


def _device() -> _triton.Device:
    device = _triton.current()
    assert not isinstance(device, str), device
    return device


def heuristic(s: Spec, device: _triton.Device) -> Config:
    """Sizes that keep enough bytes on the way."""
    itemsize = jnp.dtype(s.dtype).itemsize
    wanted = _WANTED * device.multiprocessors
    vector = 16 // itemsize
    # Narrower where that makes programs, down to 128 bytes in a row for a warp.
    while vector * itemsize > 4 and (_LANES * vector >= 2 * s.channels or _programs(s, vector) < wanted):
        vector //= 2
    ahead = min(_LANE_BYTES // (vector * itemsize), _power(s.time))
    streams = 1 + (s.gate[1] > 1 and s.gate[2] == s.channels)
    filled = _programs(s, vector) * streams / 2 / wanted

    def cost(segments: int) -> float:
        """Passes of the size of b over memory, by the share of its speed that is reached."""
        return (streams + 1 + streams * (segments - 1) / segments) / min(1.0, filled * segments)

    counts = [2**i for i in range(1, _MOST_SEGMENTS.bit_length()) if 2**i * ahead * _LEAST_GROUPS <= s.time]
    best = min(counts, key=cost, default=1)
    return Config(device, vector, ahead, best if _GAIN * cost(best) < cost(1) else 1)


def launches(s: Spec, da: bool = False) -> list[tuple[str, int, dict[str, Any]]]:
    """The kernels that compute it: name, number of programs and constants of each."""
    c: Config = s.how
    segment = -(-s.time // (c.segments * c.ahead)) * c.ahead
    segments = -(-s.time // segment)
    programs = _programs(s, c.vector)
    row, step, channel = (int(n > 1) for n in s.gate)
    constants = {
        "B": s.batch, "T": s.time, "C": s.channels,
        "A_ROW": row * s.gate[1] * s.gate[2], "A_STEP": step * s.gate[2], "SHARED": not channel,
        "SEGMENT": segment, "BLOCK": _LANES * c.vector, "AHEAD": c.ahead, "REVERSE": s.reverse, "DELAYED": s.delayed,
    }  # fmt: skip
    absent = () if segments > 1 else ("product_ptr", "end_ptr")
    absent += () if da else ("before_ptr", "first_ptr", "da_ptr")
    walk = ("walk_kernel", programs * segments, dict.fromkeys(absent) | constants)
    return [walk] if segments == 1 else [("ends_kernel", programs * (segments - 1), constants), walk]


def build(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array, *forward: jax.Array) -> Arrays:
    """h and the final state; given h and h0 of the recurrence whose transpose it is, da of that one too."""
    from llmasos_xla.kernels.scan import triton_kernels as kernels

    run = functools.partial(_triton.launch, device=s.how.device, options=OPTIONS)
    *first, (_, programs, constants) = launches(s, da=bool(forward))
    arrays: dict[str, jax.Array] = {"a_ptr": a, "b_ptr": b, "h0_ptr": h0}
    results: dict[str, jax.ShapeDtypeStruct] = dict(zip(("h_ptr", "final_ptr"), recurrence.results(s)))
    for _, count, sizes in first:
        shape = count // _programs(s, s.how.vector), s.batch, s.channels
        end = jax.ShapeDtypeStruct(shape, jnp.dtype(jnp.float32))
        ends = {"product_ptr": end, "end_ptr": end}
        arrays |= dict(zip(ends, run(kernels.ends_kernel, (count,), {"a_ptr": a, "b_ptr": b}, ends, sizes)))
    if forward:
        arrays |= dict(zip(("before_ptr", "first_ptr"), forward))
        results["da_ptr"] = jax.ShapeDtypeStruct(a.shape, a.dtype)
    return run(kernels.walk_kernel, (programs,), arrays, results, constants)


def _programs(s: Spec, vector: int) -> int:
    """Programs of one segment."""
    return s.batch * -(-s.channels // (_LANES * vector))


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
