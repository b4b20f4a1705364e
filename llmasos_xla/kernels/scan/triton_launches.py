"""What the linear recurrence's kernels are launched with."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._operation import Arrays
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.scan import recurrence
from llmasos_xla.kernels.scan.recurrence import Spec
from llmasos_xla.kernels.scan.triton_spec import LANES, Config, programs

OPTIONS = Options(warps=1)


def launches(s: Spec, da: bool = False) -> list[tuple[str, int, dict[str, Any]]]:
    """The kernels that compute it: name, number of programs and constants of each."""
    c: Config = s.how
    segment = -(-s.time // (c.segments * c.ahead)) * c.ahead
    segments = -(-s.time // segment)
    of_one = programs(s, c.vector)
    row, step, channel = (int(n > 1) for n in s.gate)
    constants = {
        "B": s.batch, "T": s.time, "C": s.channels,
        "A_ROW": row * s.gate[1] * s.gate[2], "A_STEP": step * s.gate[2], "SHARED": not channel,
        "SEGMENT": segment, "BLOCK": LANES * c.vector, "AHEAD": c.ahead, "REVERSE": s.reverse, "DELAYED": s.delayed,
    }  # fmt: skip
    absent = () if segments > 1 else ("product_ptr", "end_ptr")
    absent += () if da else ("before_ptr", "first_ptr", "da_ptr")
    walk = ("walk_kernel", of_one * segments, dict.fromkeys(absent) | constants)
    return [walk] if segments == 1 else [("ends_kernel", of_one * (segments - 1), constants), walk]


def run(s: Spec, a: jax.Array, b: jax.Array, h0: jax.Array, *forward: jax.Array) -> Arrays:
    """h and the final state; given h and h0 of the recurrence whose transpose it is, da of that one too."""
    from llmasos_xla.kernels.scan import triton_kernels as kernels

    launch = partial(_triton.launch, device=s.how.device, options=OPTIONS)
    *first, (_, grid, constants) = launches(s, da=bool(forward))
    arrays: dict[str, jax.Array] = {"a_ptr": a, "b_ptr": b, "h0_ptr": h0}
    results: dict[str, jax.ShapeDtypeStruct] = dict(zip(("h_ptr", "final_ptr"), recurrence.results(s)))
    for _, count, sizes in first:
        shape = count // programs(s, s.how.vector), s.batch, s.channels
        end = jax.ShapeDtypeStruct(shape, jnp.dtype(jnp.float32))
        ends = {"product_ptr": end, "end_ptr": end}
        arrays |= dict(zip(ends, launch(kernels.ends_kernel, (count,), {"a_ptr": a, "b_ptr": b}, ends, sizes)))
    if forward:
        arrays |= dict(zip(("before_ptr", "first_ptr"), forward))
        results["da_ptr"] = jax.ShapeDtypeStruct(a.shape, a.dtype)
    return launch(kernels.walk_kernel, (grid,), arrays, results, constants)
