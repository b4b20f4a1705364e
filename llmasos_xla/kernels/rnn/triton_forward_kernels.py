"""All steps of a recurrence forward: the kernel on the tiles that `triton_language` describes."""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels._triton.language import arrive, refuse_more_than_resident, tanh, wait
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn.triton_language import columns, depth, handed, rows_of, two_sums

LOWEST = tl.constexpr(xla.LOWEST)


@triton.jit
@no_type_check
def _weights(r_ptr, block, inner, first_column, N: tl.constexpr, COLUMNS: tl.constexpr, HEAD: tl.constexpr):
    """Rows `inner` of recurrent weights [blocks, HEAD, COLUMNS], N columns of them: [..., inner, N]."""
    column = first_column + tl.arange(0, N)
    rows = tl.expand_dims(inner, -1)
    if len(inner.shape) == 2:
        column = column[None, None, :]
    else:
        column = column[None, :]
    at = (block * HEAD + rows) * COLUMNS + column
    return tl.load(r_ptr + at, mask=(rows < HEAD) & (column < COLUMNS), other=0.0)


@triton.jit
@no_type_check
def _apart(pair, M: tl.constexpr, N: tl.constexpr):
    return tl.split(tl.reshape(pair, (M, N, 2)))


@triton.jit
@no_type_check
def _four(gates, M: tl.constexpr, N: tl.constexpr):
    """Four gates out of columns that stand unit by unit."""
    even, odd = tl.split(tl.reshape(gates, (M, N, 2, 2)))
    i, g = tl.split(even)
    f, o = tl.split(odd)
    return i, f, g, o


@triton.jit
@no_type_check
def forward(
    p_ptr, ra_ptr, rb_ptr, bias_ptr, recurrent_bias_ptr, recurrent_scale_ptr, cell_scale_ptr, cell_offset_ptr,
    lengths_ptr, resets_ptr, mask_ptr, h0_ptr, c0_ptr, n0_ptr, m0_ptr,
    y_ptr, h_ptr, c_ptr, n_ptr, m_ptr, gates_ptr, previous_ptr, cells_ptr, counts_ptr, rates_ptr, exchange_ptr,
    counter_ptr,
    KIND: tl.constexpr, BATCH: tl.constexpr, TIME: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr,
    HEAD: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr, REVERSE: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr, DEPTH: tl.constexpr, HELD: tl.constexpr,
    ROUNDS: tl.constexpr, PADDED: tl.constexpr, A: tl.constexpr, COUNTED: tl.constexpr, EPSILON: tl.constexpr,
    PRECISION: tl.constexpr, LINE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """All steps of one tile. Pointers that a kind or a request does without are None; so are all saved for inference.

    `REVERSE`: 0 forward in time, 1 backward, 2 the first direction forward and the second backward.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    direction, head = block // HEADS, block % HEADS
    WIDTH: tl.constexpr = HEADS * HEAD
    UNITS: tl.constexpr = BLOCKS * HEAD
    PROJECTED: tl.constexpr = BLOCKS // HEADS * GATES * WIDTH
    NORM: tl.constexpr = KIND == "lnlstm"
    TWO: tl.constexpr = KIND == "lstm" or NORM or KIND == "slstm"
    ONE: tl.constexpr = KIND == "gru"
    # Columns of a unit in the first product, which A tells, and in the second.
    B: tl.constexpr = GATES - A
    TILES: tl.constexpr = (HEAD + DEPTH * BK - 1) // (DEPTH * BK)
    WIDE: tl.constexpr = TILES * DEPTH * BK
    DTYPE: tl.constexpr = ra_ptr.dtype.element_ty

    if SPLITS > 1 and PTX:
        refuse_more_than_resident()
    first = part * BN
    unit = first + tl.arange(0, BN)

    # On chip from here to the end.
    wa = ()
    wb = ()
    for k in tl.static_range(TILES):
        inner = depth(k, DEPTH, TILES * BK, BK)
        wa = wa + (_weights(ra_ptr, block, inner, A * first, A * BN, A * HEAD, HEAD),)
        if B > 0:
            wb = wb + (_weights(rb_ptr, block, inner, B * first, B * BN, B * HEAD, HEAD),)
    # Where this program's columns start in a row of p, and where those of its head end.
    column_a = direction * GATES * WIDTH + A * (head * HEAD + first)
    column_b = direction * GATES * WIDTH + A * WIDTH + B * (head * HEAD + first)
    end_a = column_a + A * (HEAD - first)
    end_b = column_b + B * (HEAD - first)
    start = tl.zeros((1,), tl.int64)
    here = start == 0
    ba = 0.0
    bb = 0.0
    qb = 0.0
    if bias_ptr is not None:
        ba = columns(bias_ptr, start, here, column_a, end_a, A * BN)
        if B > 0:
            bb = columns(bias_ptr, start, here, column_b, end_b, B * BN)
    if recurrent_bias_ptr is not None:
        ba = ba + columns(recurrent_bias_ptr, start, here, column_a, end_a, A * BN)
        qb = columns(recurrent_bias_ptr, start, here, column_b, end_b, B * BN)
    if NORM:
        scale_a = columns(recurrent_scale_ptr, start, here, column_a, end_a, A * BN)
        scale_b = columns(recurrent_scale_ptr, start, here, column_b, end_b, B * BN)
        cell_scale = columns(cell_scale_ptr, start, here, block * HEAD, (block + 1) * HEAD, BN)
        cell_offset = columns(cell_offset_ptr, start, here, block * HEAD, (block + 1) * HEAD, BN)
        counted = unit[None, :] < COUNTED
    for turn_of_tiles in range(ROUNDS):
        tile = tl.program_id(2) + turn_of_tiles * tl.num_programs(2)
        rows, live, owned, state, length = rows_of(tile, unit, block, lengths_ptr, BATCH, TIME, UNITS, HEAD, BM)
        long_rows = rows.to(tl.int64)
        scale = 1.0
        if mask_ptr is not None and not NORM:
            scale = tl.load(mask_ptr + state, mask=owned, other=0.0)

        h = tl.load(h0_ptr + state, mask=owned, other=0.0)
        if TWO:
            c = tl.load(c0_ptr + state, mask=owned, other=0.0)
        if KIND == "slstm":
            n = tl.load(n0_ptr + state, mask=owned, other=0.0)
            m = tl.load(m0_ptr + state, mask=owned, other=LOWEST)
        if NORM:
            center = tl.sum(c, 1) / COUNTED

        counter = counter_ptr
        if SPLITS > 1:
            counter += (tile * BLOCKS + block) * LINE
            mine = (block * PADDED + rows[:, None]) * WIDE + unit[None, :]
            tl.store(exchange_ptr + mine, (h * scale).to(DTYPE), mask=unit[None, :] < WIDE)
            arrive(counter)

        backwards = direction if REVERSE == 2 else REVERSE
        t = backwards * (TIME - 1)
        row = (long_rows * TIME + t) * PROJECTED
        xa = columns(p_ptr, row, live, column_a, end_a, A * BN) + ba
        if B > 0:
            xb = columns(p_ptr, row, live, column_b, end_b, B * BN) + bb
        if SPLITS > 1:
            wait(counter, SPLITS, PTX)

        for s in range(TIME):
            t = s + backwards * (TIME - 1 - 2 * s)
            ok = t < length
            kept = None
            if resets_ptr is not None:
                fresh = (tl.load(resets_ptr + long_rows * TIME + t, mask=live, other=0) != 0) & ok
                kept = ~fresh
                h = tl.where(fresh[:, None], 0.0, h)
                if TWO:
                    c = tl.where(fresh[:, None], 0.0, c)
                if KIND == "slstm":
                    n = tl.where(fresh[:, None], 0.0, n)
                    m = tl.where(fresh[:, None], LOWEST, m)
                if NORM:
                    center = tl.where(fresh, 0.0, center)

            # Two sums in turn, of 16 rows: a matrix instruction waits for the one before on the same sum.
            a = xa
            if TWO and B > 0:
                b = xb
            if ONE:
                b = tl.zeros((BM, BN), tl.float32) + qb
            if NORM:
                operand = h
                if mask_ptr is not None:  # again at each step, for its registers
                    operand = h * tl.load(mask_ptr + state, mask=owned, other=0.0)
                operand = operand.to(DTYPE)
                a = tl.dot(operand, wa[0], input_precision=PRECISION)
                b = tl.dot(operand, wb[0], input_precision=PRECISION)
                mean, square = two_sums(a + b, a * a + b * b)
                # A mean of h R is small: no gradient of R has one over its columns.
                mean = (mean / (4 * COUNTED))[:, None]
                variance = square[:, None] / (4 * COUNTED) - mean * mean
                rate = tl.rsqrt(tl.maximum(variance, 0.0) + EPSILON)
                a = (a - mean) * rate
                b = (b - mean) * rate
                if gates_ptr is not None:
                    # At once: held to the other stores, they would fill the registers.
                    at = (long_rows * TIME + t)[:, None] * (SAVED * UNITS) + block * HEAD + unit[None, :]
                    q_i, q_f = _apart(a, BM, BN)
                    q_g, q_o = _apart(b, BM, BN)
                    tl.store(gates_ptr + at + 4 * UNITS, q_i.to(DTYPE), mask=owned)
                    tl.store(gates_ptr + at + 5 * UNITS, q_f.to(DTYPE), mask=owned)
                    tl.store(gates_ptr + at + 6 * UNITS, q_g.to(DTYPE), mask=owned)
                    tl.store(gates_ptr + at + 7 * UNITS, q_o.to(DTYPE), mask=owned)
                    out = (long_rows * TIME + t)[:, None] * UNITS + block * HEAD + unit[None, :]
                    tl.store(cells_ptr + out, c.to(DTYPE), mask=owned)
                    tl.store(previous_ptr + out, h.to(DTYPE), mask=owned)
                a = xa + scale_a * a
                b = xb + scale_b * b
            elif SPLITS == 1:
                operand = (h * scale).to(DTYPE)
                a = tl.dot(operand, wa[0], a, input_precision=PRECISION)
                if B > 0:
                    b = tl.dot(operand, wb[0], b, input_precision=PRECISION)
            else:
                turn = exchange_ptr + ((s % 2) * BLOCKS + block) * (PADDED * WIDE)
                a_even = tl.zeros((DEPTH, BM, A * BN), tl.float32)
                a_odd = a_even
                if B > 0:
                    b_even = tl.zeros((DEPTH, BM, B * BN), tl.float32)
                    b_odd = b_even
                for k in tl.static_range(TILES):
                    if k % HELD == 0:  # one wait for several
                        operands = ()
                        for later in tl.static_range(k, min(k + HELD, TILES)):
                            inner = depth(later, DEPTH, TILES * BK, BK)
                            operands = operands + (handed(turn, inner, rows, kept, WIDE),)
                    if BM > 16 or k % 2 == 0:
                        a_even = tl.dot(operands[k % HELD], wa[k], a_even, input_precision=PRECISION)
                        if B > 0:
                            b_even = tl.dot(operands[k % HELD], wb[k], b_even, input_precision=PRECISION)
                    else:
                        a_odd = tl.dot(operands[k % HELD], wa[k], a_odd, input_precision=PRECISION)
                        if B > 0:
                            b_odd = tl.dot(operands[k % HELD], wb[k], b_odd, input_precision=PRECISION)
                if BM == 16:
                    a_even += a_odd
                    if B > 0:
                        b_even += b_odd
                a += tl.sum(a_even, 0)
                if B > 0:
                    b += tl.sum(b_even, 0)

            step = long_rows * TIME + t
            keep = ok[:, None]
            h_before = h
            if KIND == "lstm" or NORM:
                if B == 0:
                    i, f, g, o = _four(a, BM, BN)
                else:
                    i, f = _apart(a, BM, BN)
                    g, o = _apart(b, BM, BN)
                i, f, g, o = tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)
                c_before = c
                c = tl.where(keep, f * c + i * g, c)
                seen = c
                if NORM:
                    # Sums around the mean of the step before: squares around zero would drown a small variance.
                    off = tl.where(counted, c - center[:, None], 0.0)
                    mean, square = two_sums(off, off * off)
                    mean = mean / COUNTED
                    center += mean
                    cell_rate = tl.rsqrt(tl.maximum(square / COUNTED - mean * mean, 0.0) + EPSILON)[:, None]
                    normal = (c - center[:, None]) * cell_rate
                    seen = cell_scale * normal + cell_offset
                h = tl.where(keep, o * tanh(seen), h)
            elif KIND == "slstm":
                if B == 0:
                    i, f, g, o = _four(a, BM, BN)
                else:
                    i, f = _apart(a, BM, BN)
                    g, o = _apart(b, BM, BN)
                # log sigmoid(f), without overflow
                log_f = tl.minimum(f, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(f)))
                m_new = tl.maximum(log_f + m, i)
                slope = tl.sigmoid(-f)  # of log sigmoid
                i, f, g, o = tl.exp(i - m_new), tl.exp(log_f + m - m_new), tanh(g), tl.sigmoid(o)
                slope = slope * f
                c_before, n_before = c, n
                c = tl.where(keep, f * c + i * g, c)
                n = tl.where(keep, f * n + i, n)
                m = tl.where(keep, m_new, m)
                h = tl.where(keep, o * (c / n), h)
            elif KIND == "gru":
                i, f = _apart(a, BM, BN)  # r, z
                i, f = tl.sigmoid(i), tl.sigmoid(f)
                g = tanh(xb + i * b)
                o = b
                h = tl.where(keep, g + f * (h - g), h)
            elif KIND == "relu":
                # NaN stays.
                i = tl.where(a <= 0, 0.0, a)
                h = tl.where(keep, i, h)
            else:
                i = tanh(a)
                h = tl.where(keep, i, h)

            if SPLITS > 1:
                turn = exchange_ptr + ((s + 1) % 2) * (BLOCKS * PADDED * WIDE)
                tl.store(turn + mine, (h * scale).to(DTYPE), mask=unit[None, :] < WIDE)
                if s + 1 < TIME:
                    arrive(counter)

            # What nobody waits for, while the others arrive.
            out = step[:, None] * UNITS + block * HEAD + unit[None, :]
            y = h
            if lengths_ptr is not None:
                y = tl.where(keep, h, 0.0)
            tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=owned)
            if gates_ptr is not None:
                at = step[:, None] * (SAVED * UNITS) + block * HEAD + unit[None, :]
                tl.store(gates_ptr + at, i.to(DTYPE), mask=owned)
                if TWO or ONE:
                    tl.store(gates_ptr + at + UNITS, f.to(DTYPE), mask=owned)
                    tl.store(gates_ptr + at + 2 * UNITS, g.to(DTYPE), mask=owned)
                    tl.store(gates_ptr + at + 3 * UNITS, o.to(DTYPE), mask=owned)
                if KIND == "slstm":
                    tl.store(gates_ptr + at + 4 * UNITS, slope.to(DTYPE), mask=owned)
                    tl.store(counts_ptr + out, n_before.to(DTYPE), mask=owned)
                if NORM:
                    tl.store(gates_ptr + at + 8 * UNITS, normal.to(DTYPE), mask=owned)
                    rates = rates_ptr + (step[:, None] * BLOCKS + block) * 2
                    tl.store(rates, rate, mask=live[:, None])
                    tl.store(rates + 1, cell_rate, mask=live[:, None])
                else:
                    if TWO:
                        tl.store(cells_ptr + out, c_before.to(DTYPE), mask=owned)
                    tl.store(previous_ptr + out, h_before.to(DTYPE), mask=owned)
            s_next = tl.minimum(s + 1, TIME - 1)
            t = s_next + backwards * (TIME - 1 - 2 * s_next)
            row = (long_rows * TIME + t) * PROJECTED
            xa = columns(p_ptr, row, live, column_a, end_a, A * BN) + ba
            if B > 0:
                xb = columns(p_ptr, row, live, column_b, end_b, B * BN) + bb
            if SPLITS > 1:
                if s + 1 < TIME:
                    wait(counter, SPLITS * (s + 2), PTX)

        tl.store(h_ptr + state, h, mask=owned)
        if TWO:
            tl.store(c_ptr + state, c, mask=owned)
        if KIND == "slstm":
            tl.store(n_ptr + state, n, mask=owned)
            tl.store(m_ptr + state, m, mask=owned)
