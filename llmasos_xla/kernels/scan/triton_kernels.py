"""The kernels of the linear recurrence. Imports Triton.

A program walks a segment of time with a block of channels of one row. It takes AHEAD steps at once: all their loads
stand before the first use, so that as many are on their way together, which is what matters for two operations on
twelve bytes. Each lane keeps its channels' states in registers and takes the steps one by one. So nothing is exchanged
between lanes, and a row in one segment is, for gates of any size, what the plain loop gives.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Segments whose ends are read together.
ENDS = tl.constexpr(8)


@triton.jit
@no_type_check
def segment_of(
    B: tl.constexpr, T: tl.constexpr, C: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr
):
    """This program's segment and row, its channels, which of them there are, and the step at which it starts.

    Neighbors in the grid are neighbors in memory, and walk at the same time.
    """
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    c = program % blocks * BLOCK + tl.arange(0, BLOCK)
    if C % BLOCK == 0:
        there = tl.full((BLOCK,), 1, tl.int1)
    else:
        there = c < C
    segment = program // (blocks * B)
    step = segment.to(tl.int64) * SEGMENT
    if REVERSE:
        step = T - 1 - step
    return segment, (program // blocks % B).to(tl.int64), c, there, step


@triton.jit
@no_type_check
def ends_kernel(
    a_ptr, b_ptr, product_ptr, end_ptr,
    B: tl.constexpr, T: tl.constexpr, C: tl.constexpr, A_ROW: tl.constexpr, A_STEP: tl.constexpr, SHARED: tl.constexpr,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, REVERSE: tl.constexpr, DELAYED: tl.constexpr,
):  # fmt: skip
    """What each segment but the last makes of a state: end + product * state. All its steps are real ones."""
    segment, row, c, there, step = segment_of(B, T, C, SEGMENT, BLOCK, REVERSE)
    SIGN: tl.constexpr = -1 if REVERSE else 1
    a_ptr += row * A_ROW + step * A_STEP
    b_ptr += (row * T + step) * C
    product = tl.full((BLOCK,), 1.0, tl.float32)
    end = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, SEGMENT, AHEAD):
        a, b = (), ()
        for i in tl.static_range(AHEAD):
            if SHARED:
                a += (tl.load(a_ptr + i * SIGN * A_STEP).to(tl.float32),)
            else:
                a += (tl.load(a_ptr + i * SIGN * A_STEP + c, mask=there, other=1.0).to(tl.float32),)
            b += (tl.load(b_ptr + i * SIGN * C + c, mask=there, other=0.0).to(tl.float32),)
        for i in tl.static_range(AHEAD):
            # A gate of 0 ends all that was before it, a product that has overflowed included.
            product = tl.where(a[i] == 0, 0.0, product * a[i])
            if DELAYED:
                end = a[i] * (end + b[i])
            else:
                end = a[i] * end + b[i]
        a_ptr += AHEAD * SIGN * A_STEP
        b_ptr += AHEAD * SIGN * C
    to = (segment * B + row) * C + c
    tl.store(product_ptr + to, product, mask=there)
    tl.store(end_ptr + to, end, mask=there)


@triton.jit
@no_type_check
def state_behind(state, product_ptr, end_ptr, segment, row, c, there, B: tl.constexpr, C: tl.constexpr):
    """The state behind all segments before this one."""
    for first in range(0, segment, ENDS):
        products, ends = (), ()
        for i in tl.static_range(ENDS):
            at = ((first + i) * B + row) * C + c
            real = there & (first + i < segment)
            products += (tl.load(product_ptr + at, mask=real, other=1.0),)
            ends += (tl.load(end_ptr + at, mask=real, other=0.0),)
        for i in tl.static_range(ENDS):
            # From a state of 0 the end is exact, even where the product has overflowed.
            state = tl.where(state == 0, ends[i], products[i] * state + ends[i])
    return state


@triton.jit
@no_type_check
def in_time(step, T: tl.constexpr, AHEAD: tl.constexpr):
    """Whether there is such a step: a constant, which the compiler drops, where no group of steps is cut off."""
    if T % AHEAD == 0:
        return tl.full((), 1, tl.int1)
    else:
        return step < T


@triton.jit
@no_type_check
def walk_kernel(
    a_ptr, b_ptr, h0_ptr, product_ptr, end_ptr, before_ptr, first_ptr, h_ptr, final_ptr, da_ptr,
    B: tl.constexpr, T: tl.constexpr, C: tl.constexpr, A_ROW: tl.constexpr, A_STEP: tl.constexpr, SHARED: tl.constexpr,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, REVERSE: tl.constexpr, DELAYED: tl.constexpr,
):  # fmt: skip
    """h at all steps of a segment and, behind the last, the final state.

    With product and end the segments before were summed up there. With before and first, the h and h0 of the recurrence
    whose transpose this is, it also writes the gradient of that one's gates.
    """
    segment, row, c, there, step = segment_of(B, T, C, SEGMENT, BLOCK, REVERSE)
    SIGN: tl.constexpr = -1 if REVERSE else 1
    a_ptr += row * A_ROW + step * A_STEP
    at = (row * T + step) * C
    b_ptr += at
    h_ptr += at
    state = tl.load(h0_ptr + row * C + c, mask=there, other=0.0)
    if product_ptr is not None:
        state = state_behind(state, product_ptr, end_ptr, segment, row, c, there, B, C)
    if da_ptr is not None:
        before_ptr += at
        da_ptr += at
        first_h = tl.load(first_ptr + row * C + c, mask=there, other=0.0)
    for start in range(segment * SEGMENT, tl.minimum((segment + 1) * SEGMENT, T), AHEAD):
        a, b, before = (), (), ()
        for i in tl.static_range(AHEAD):
            met = in_time(start + i, T, AHEAD)
            real = there & met
            if SHARED:
                a += (tl.load(a_ptr + i * SIGN * A_STEP, mask=met, other=1.0).to(tl.float32),)
            else:
                a += (tl.load(a_ptr + i * SIGN * A_STEP + c, mask=real, other=1.0).to(tl.float32),)
            b += (tl.load(b_ptr + i * SIGN * C + c, mask=real, other=0.0).to(tl.float32),)
            if da_ptr is not None:
                # Against time, what was before comes next.
                more = start + i + 1 < T
                h = tl.load(before_ptr + (i + 1) * SIGN * C + c, mask=there & more, other=0.0).to(tl.float32)
                before += (tl.where(more, h, first_h),)
        for i in tl.static_range(AHEAD):
            real = there & in_time(start + i, T, AHEAD)
            if DELAYED:
                h = state + b[i]
                state = a[i] * h
            else:
                h = a[i] * state + b[i]
                state = h
            tl.store(h_ptr + i * SIGN * C + c, h.to(h_ptr.dtype.element_ty), mask=real)
            if da_ptr is not None:
                da = h * before[i]
                tl.store(da_ptr + i * SIGN * C + c, da.to(da_ptr.dtype.element_ty), mask=real)
        a_ptr += AHEAD * SIGN * A_STEP
        b_ptr += AHEAD * SIGN * C
        h_ptr += AHEAD * SIGN * C
        if da_ptr is not None:
            before_ptr += AHEAD * SIGN * C
            da_ptr += AHEAD * SIGN * C
    if segment == (T - 1) // SEGMENT:
        tl.store(final_ptr + row * C + c, state, mask=there)
