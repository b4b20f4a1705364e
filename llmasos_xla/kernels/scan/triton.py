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

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._dispatch import elsewhere
from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels.scan.recurrence import Spec
from llmasos_xla.kernels.scan.triton_spec import CHOICE, TABLE, programs, shape_class

WALK = "walk"
_GRID = 2**31


def cannot(s: Spec, unfit: str | None) -> str | None:
    """Why no kernel can compute this recurrence here, or None."""
    why = elsewhere("gpu")
    if why is not None:
        return why
    if s.dtype not in _triton.DTYPES:
        return f"takes {', '.join(_triton.DTYPES)}, b is {s.dtype}"
    why = unfit or _triton.refusal()
    if why is None and programs(s, 1) >= _GRID:
        return f"{s.batch} rows of {s.channels} channels are more than a launch has programs for"
    return why


def slower(s: Spec) -> str | None:
    """Why XLA is the better choice although the kernels could, or None."""
    if s.time == 1:
        return "one step is a multiplication and a sum, which XLA computes with what is around them"
    return tuned.slower(_triton.device().name, CHOICE, shape_class(s))


def reason(s: Spec) -> str:
    """Why the kernels are preferred, and where their sizes come from."""
    name = _triton.device().name
    measured = tuned.lookup(name, TABLE, shape_class(s)) is not None
    return f"reads a and b once, writes h once; {tuned.origin(name, measured)}"
