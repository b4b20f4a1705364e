"""Depthwise convolution of channels-last arrays as Triton kernels; `triton_depthwise.py` starts them. Imports Triton.

A thread has a few channels of one column and of `ROWS` rows below each other:

        x     column of x that tap s of the results reads        results
              row 0  --------------------------------> row 0
              row 1  --------------------------------> row 0, row 1
              row 2  --------------------------------> row 0, row 1, row 2        (3 taps along the rows)
              ...

Each row of x is loaded and converted once for all of its results, and the weights of a column of taps once for all of
the rows: of a 7x7 kernel and seven rows that is 20 loads for 49 multiply-adds, where a load for each multiply-add
would leave the kernel waiting for the first cache. Which row of x goes into which result is known when the kernel is
compiled, so strides and dilations cost nothing, and the input gradient is the same kernel with the relation turned
round: for a stride each program has the columns of one phase, which the same taps reach.

The columns of all strips and pictures are counted through, so that only the last program has columns to spare. A
convolution over time is rows of one column.

Sums of products of something with itself across the batch (the kernel gradient) are left in each program's registers
until its end; programs write their sums side by side, and XLA adds them up: the same bit for bit in every run.
"""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels.conv.triton_language import activate, slope, slope_at


@triton.jit
@no_type_check
def slide_kernel(
    x_ptr, w_ptr, b_ptr, kept_ptr, y_ptr, z_ptr,
    N: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, TAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The forward pass, y = activation(x * w + b) and z ahead of the activation, or the input gradient, `TRANSPOSED`.

    Of the gradient, x is that of the result, times the slope where `kept` is given, and H, W and OH, OW change places.
    `TAPS` of the R rows of taps are taken at a time.
    """
    PHASES: tl.constexpr = SW if TRANSPOSED else 1
    STRIPS: tl.constexpr = (OH + ROWS - 1) // ROWS
    LANES: tl.constexpr = (OW + PHASES - 1) // PHASES
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    CHUNKS: tl.constexpr = (R + TAPS - 1) // TAPS
    program = tl.program_id(0)
    channel = (program % TILES) * BLOCK_C + tl.arange(0, BLOCK_C)
    phase = program // TILES % PHASES
    lane = program // (TILES * PHASES) * BLOCK_P + tl.arange(0, BLOCK_P)
    q = lane % LANES
    strip = lane // LANES % STRIPS
    n = lane // (LANES * STRIPS)
    if WIDE:
        n = n.to(tl.int64)
    column = q * PHASES + phase
    there = (n < N) & (column < OW)
    c = tl.broadcast_to(channel[None, :], (BLOCK_P, BLOCK_C))
    if TRANSPOSED:
        first = (phase + PW) % SW
        steps = (S - first + SW - 1) // SW
        top = strip * (ROWS // SH)
        left = q + (phase + PW - first) // SW
        tl.static_assert(ROWS % SH == 0, "a strip of the input gradient starts with the first phase of the rows")
        tl.static_assert(
            CHUNKS == 1 or TAPS * DH % SH == 0, "a part of the taps starts with the first phase of the rows"
        )
        LOW: tl.constexpr = -(((TAPS - 1) * DH - PH) // SH)
        HIGH: tl.constexpr = (ROWS - 1 + PH) // SH + 1
    else:
        first = 0
        steps = S
        top = strip * (ROWS * SH) - PH
        left = q * SW - PW
        LOW: tl.constexpr = 0
        HIGH: tl.constexpr = (ROWS - 1) * SH + (TAPS - 1) * DH + 1
    acc = (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),) * ROWS
    for step in range(steps * CHUNKS):
        chunk = step // steps
        k = step % steps
        if TRANSPOSED:
            s = first + k * SW
            col = left - k * DW
            row = top - chunk * (TAPS * DH // SH)
        else:
            s = k
            col = left + k * DW
            row = top + chunk * (TAPS * DH)
        w = ()
        for t in tl.static_range(TAPS):
            at = w_ptr + ((chunk * TAPS + t) * S + s) * C + c
            if R % TAPS == 0 and C % BLOCK_C == 0:
                w = w + (tl.load(at).to(tl.float32),)
            else:
                w = w + (tl.load(at, mask=(c < C) & (c * 0 + chunk * TAPS + t < R), other=0.0).to(tl.float32),)
        here = there & (col >= 0) & (col < W)
        offset = ((n * H + row) * W + col)[:, None] * C + c
        for o in tl.static_range(LOW, HIGH):
            mask = (here & (row + o >= 0) & (row + o < H))[:, None]
            if C % BLOCK_C != 0:
                mask = mask & (c < C)
            x = tl.load(x_ptr + offset + o * W * C, mask=mask, other=0.0).to(tl.float32)
            if kept_ptr is not None:
                x = x * slope(tl.load(kept_ptr + offset + o * W * C, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
            for t in tl.static_range(TAPS):
                product = x * w[t]
                if R % TAPS != 0:  # a tap beyond the last one may meet infinity, and 0 * inf is NaN
                    product = tl.where(chunk * TAPS + t < R, product, 0.0)
                # Loops of one turn: this is how a name is bound to a number while compiling.
                if TRANSPOSED:
                    for i in tl.static_range(o * SH + t * DH - PH, o * SH + t * DH - PH + 1):
                        if i >= 0 and i < ROWS:
                            acc = acc[:i] + (acc[i] + product,) + acc[i + 1 :]
                else:
                    for i in tl.static_range((o - t * DH) // SH, (o - t * DH) // SH + 1):
                        if i >= 0 and i < ROWS and i * SH + t * DH == o:
                            acc = acc[:i] + (acc[i] + product,) + acc[i + 1 :]
    if b_ptr is not None:
        bias = tl.load(b_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    for i in tl.static_range(ROWS):
        mask = (there & (strip * ROWS + i < OH))[:, None] & (c < C)
        at = ((n * OH + strip * ROWS + i) * OW + column)[:, None] * C + c
        z = acc[i]
        if b_ptr is not None:
            z += bias
        if z_ptr is not None:
            tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=mask)
        if kept_ptr is None:
            z = activate(z, ACTIVATION)
        tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def taps_kernel(
    x_ptr, g_ptr, kept_ptr, part_ptr,
    N: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program's part of the sums dw[r, s] = sum x dz for `SPAN` columns of taps, and of db = sum dz.

    dz is g, times the slope where `kept` is given. `part` is [PROGRAMS, taps and bias, C].
    """
    STRIPS: tl.constexpr = (OH + ROWS - 1) // ROWS
    SPANS: tl.constexpr = (S + SPAN - 1) // SPAN
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    BLOCKS: tl.constexpr = (N * STRIPS * OW + BLOCK_P - 1) // BLOCK_P
    # What the forward pass reads: the rest of x has no part in the sums, be it finite or not.
    READ_H: tl.constexpr = min(H, (OH - 1) * SH - PH + (R - 1) * DH + 1)
    READ_W: tl.constexpr = min(W, (OW - 1) * SW - PW + (S - 1) * DW + 1)
    program = tl.program_id(0)
    channel = (program % TILES) * BLOCK_C + tl.arange(0, BLOCK_C)
    span = program // TILES % SPANS
    me = program // (TILES * SPANS)
    c = tl.broadcast_to(channel[None, :], (BLOCK_P, BLOCK_C))
    acc = (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),) * (R * SPAN + BIAS)
    for block in range(me, BLOCKS, PROGRAMS):
        lane = block * BLOCK_P + tl.arange(0, BLOCK_P)
        column = lane % OW
        strip = lane // OW % STRIPS
        n = lane // (OW * STRIPS)
        there = n < N
        if WIDE:
            n = n.to(tl.int64)
        g = ()
        for i in tl.static_range(ROWS):
            at = ((n * OH + strip * ROWS + i) * OW + column)[:, None] * C + c
            mask = (there & (strip * ROWS + i < OH))[:, None] & (c < C)
            value = tl.load(g_ptr + at, mask=mask, other=0.0).to(tl.float32)
            if kept_ptr is not None:
                value = value * slope(tl.load(kept_ptr + at, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
            if BIAS:
                acc = acc[: R * SPAN] + (acc[R * SPAN] + value,)
            g = g + (value,)
        top = strip * (ROWS * SH) - PH
        for k in tl.static_range(SPAN):
            s = span * SPAN + k
            col = column * SW - PW + s * DW
            here = there & (column * 0 + s < S) & (col >= 0) & (col < READ_W)
            offset = ((n * H + top) * W + col)[:, None] * C + c
            for o in tl.static_range((ROWS - 1) * SH + (R - 1) * DH + 1):
                mask = (here & (top + o >= 0) & (top + o < READ_H))[:, None] & (c < C)
                x = tl.load(x_ptr + offset + o * W * C, mask=mask, other=0.0).to(tl.float32)
                for r in tl.static_range(R):
                    for i in tl.static_range((o - r * DH) // SH, (o - r * DH) // SH + 1):
                        if i >= 0 and i < ROWS and i * SH + r * DH == o:
                            acc = acc[: k * R + r] + (acc[k * R + r] + x * g[i],) + acc[k * R + r + 1 :]
    for k in tl.static_range(SPAN):
        for r in tl.static_range(R):
            at = part_ptr + (me * (R * S + BIAS) + r * S + span * SPAN + k) * C + channel
            tl.store(at, tl.sum(acc[k * R + r], axis=0), mask=(channel < C) & (channel * 0 + span * SPAN + k < S))
    if BIAS:
        at = part_ptr + (me * (R * S + BIAS) + R * S) * C + channel
        tl.store(at, tl.sum(acc[R * SPAN], axis=0), mask=(channel < C) & (channel * 0 + span == 0))


@triton.jit
@no_type_check
def _row_of(x_ptr, n, T: tl.constexpr, row, READ: tl.constexpr, there, c, C: tl.constexpr):
    mask = (there & (row >= 0) & (row < READ))[:, None] & (c < C)
    return tl.load(x_ptr + (n * T + row)[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def short_backward_kernel(
    x_ptr, w_ptr, b_ptr, g_ptr, dx_ptr, part_ptr,
    N: tl.constexpr, T: tl.constexpr, C: tl.constexpr, OT: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    D: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """All gradients of a short convolution over time in one pass: x and g are read once and dx is written once.

    z is computed again from x, which costs R multiply-adds more where reading it would cost half as much memory again.
    A strip's dx needs dz of REACH places beyond it; its sums are of its own places alone.
    """
    LONGER: tl.constexpr = max(T, OT)
    STRIPS: tl.constexpr = (LONGER + ROWS - 1) // ROWS
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    BLOCKS: tl.constexpr = (N * STRIPS + BLOCK_P - 1) // BLOCK_P
    REACH: tl.constexpr = (R - 1) * D
    READ: tl.constexpr = min(T, OT - P + REACH)
    me = tl.program_id(0) // TILES
    channel = (tl.program_id(0) % TILES) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = tl.broadcast_to(channel[None, :], (BLOCK_P, BLOCK_C))
    w = ()
    for r in tl.static_range(R):
        w = w + (tl.load(w_ptr + r * C + c, mask=c < C, other=0.0).to(tl.float32),)
    zero = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    bias = zero
    if b_ptr is not None:
        bias += tl.load(b_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    acc = (zero,) * (R + BIAS)
    for block in range(me, BLOCKS, PROGRAMS):
        lane = block * BLOCK_P + tl.arange(0, BLOCK_P)
        strip = lane % STRIPS
        n = lane // STRIPS
        there = n < N
        start = strip * ROWS
        if WIDE:
            n = n.to(tl.int64)
        # Places u from P - REACH to ROWS - 1 + P have the dz that dx of this strip needs; z of a place needs x from
        # u - P on. Those of x that the place before had are there already.
        x = ()
        for v in tl.static_range(REACH):
            x = x + (_row_of(x_ptr, n, T, start - REACH + v, READ, there, c, C),)
        dx = (zero,) * ROWS
        for u in tl.static_range(P - REACH, ROWS + P):
            x = x + (_row_of(x_ptr, n, T, start + u - P + REACH, READ, there, c, C),)
            row = start + u
            mask = (there & (row >= 0) & (row < OT))[:, None] & (c < C)
            dz = tl.load(g_ptr + (n * OT + row)[:, None] * C + c, mask=mask, other=0.0).to(tl.float32)
            if ACTIVATION != "":
                z = bias
                for r in tl.static_range(R):
                    z += x[u - P + r * D + REACH] * w[r]
                # Not the product alone: what is not finite in x must not reach places that are not there.
                dz = tl.where(mask, dz * slope_at(z, ACTIVATION), 0.0)
            for r in tl.static_range(R):
                if u - P + r * D >= 0 and u - P + r * D < ROWS:
                    dx = dx[: u - P + r * D] + (dx[u - P + r * D] + dz * w[r],) + dx[u - P + r * D + 1 :]
                if u >= 0 and u < ROWS:
                    acc = acc[:r] + (acc[r] + x[u - P + r * D + REACH] * dz,) + acc[r + 1 :]
            if BIAS and u >= 0 and u < ROWS:
                acc = acc[:R] + (acc[R] + dz,)
        for i in tl.static_range(ROWS):
            mask = (there & (start + i < T))[:, None] & (c < C)
            tl.store(dx_ptr + (n * T + start + i)[:, None] * C + c, dx[i].to(dx_ptr.dtype.element_ty), mask=mask)
    for k in tl.static_range(R + BIAS):
        at = part_ptr + (me * (R + BIAS) + k) * C + channel
        tl.store(at, tl.sum(acc[k], axis=0), mask=channel < C)
