"""Recurrences over time as persistent Triton kernels: one launch for all steps, the recurrent weights on chip.

A program owns `BM` rows of the batch and `BN` hidden units of one block, with all gates of these units: the columns of
the recurrent weights that they need stay in its shared memory or registers from the first step to the last, and so do
its units' states. Batches of more tiles than can be resident are taken in rounds. A block is one direction and one
head: its units see no others. With `SPLITS` == 1 one program owns a block and hands its state on in registers. Else
`SPLITS` programs share it: after each step they hand the new state through `exchange`, two buffers in turn, and wait
for each other at a counter.

Gates come in pairs: the columns of two are interleaved, unit by unit, so that a thread holds both gates of its units
and taking them apart moves nothing between threads. An LSTM has two pairs, a GRU one pair and n alone, the others one
gate.

With `DEPTH` > 1 a product is a batch of `DEPTH` products over a share of the depth each, one for each warp, and their
sum: a tile of 16 rows and 16 units has too few columns for all warps, which would compute the same.

Arrays (blocks = directions * heads, units = blocks * head):
    p        [batch, time, directions, columns]               x W, of the input, in pairs
    ra, rb   [blocks, head, columns of a block]               recurrent weights of the first pair, and of the second
    r        [blocks, head, gates * head]                     recurrent weights, gate by gate
    states   [batch, units] of float32
    saved    [batch, time, kinds, units]                      what backward needs of each step
    dp       [batch, time, directions, gates, heads * head]   the gates' deltas: all gradients of weights are matrix
                                                              products of them, outside
"""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels._triton.language import arrive, tanh, wait

# Stands for minus infinity where it is a state: the exponential stabilizer of sLSTM before its first step.
LOWEST = tl.constexpr(-1e30)


@triton.jit
@no_type_check
def _depth(k, DEPTH: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr):
    """Which terms of a product its k-th part sums: [BK], or [DEPTH, BK] with a share each."""
    inner = k * BK + tl.arange(0, BK)
    if DEPTH > 1:
        inner = tl.arange(0, DEPTH)[:, None] * SPAN + inner[None, :]
    return inner


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
def _transposed_weights(r_ptr, block, inner, limit, first_unit, N: tl.constexpr, HEAD: tl.constexpr,
                        GATES: tl.constexpr):  # fmt: skip
    """Columns of the recurrent weights below `limit` against the rows of this program's units: [..., inner, N]."""
    unit = first_unit + tl.arange(0, N)
    columns = tl.expand_dims(inner, -1)
    if len(inner.shape) == 2:
        unit = unit[None, None, :]
    else:
        unit = unit[None, :]
    at = (block * HEAD + unit) * (GATES * HEAD) + columns
    return tl.load(r_ptr + at, mask=(columns < limit) & (unit < HEAD), other=0.0)


@triton.jit
@no_type_check
def _handed(turn_ptr, inner, rows, kept, WIDTH: tl.constexpr):
    """What the programs of a block handed over, rows of WIDTH, at the places `inner`; where not `kept`, zeros.

    The buffer is padded to whole tiles, which were zero at the start, so that no mask is needed for its ends.
    """
    if len(inner.shape) == 2:
        at = rows[None, :, None] * WIDTH + inner[:, None, :]
    else:
        at = rows[:, None] * WIDTH + inner[None, :]
    if kept is None:
        got = tl.load(turn_ptr + at, cache_modifier=".cg")
    else:
        if len(inner.shape) == 2:
            mask = kept[None, :, None]
        else:
            mask = kept[:, None]
        got = tl.load(turn_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
    return got


@triton.jit
@no_type_check
def _columns(base_ptr, row, live, first_column, limit, N: tl.constexpr):
    """N columns of rows that start at `row`: [rows, N] of float32."""
    column = first_column + tl.arange(0, N)
    mask = live[:, None] & (column[None, :] < limit)
    return tl.load(base_ptr + row[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _apart(pair, M: tl.constexpr, N: tl.constexpr):
    return tl.split(tl.reshape(pair, (M, N, 2)))


@triton.jit
@no_type_check
def forward(
    p_ptr, ra_ptr, rb_ptr, bias_ptr, recurrent_bias_ptr, lengths_ptr, resets_ptr, mask_ptr, h0_ptr, c0_ptr, n0_ptr,
    m0_ptr, y_ptr, h_ptr, c_ptr, n_ptr, m_ptr, gates_ptr, previous_ptr, cells_ptr, counts_ptr, exchange_ptr,
    counter_ptr,
    KIND: tl.constexpr, BATCH: tl.constexpr, TIME: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr,
    HEAD: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLITS: tl.constexpr, DEPTH: tl.constexpr, ROUNDS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """All steps of one tile. Pointers that a kind or a request does without are None; so are all saved for inference.

    `REVERSE`: 0 forward in time, 1 backward, 2 the first direction forward and the second backward.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    direction, head = block // HEADS, block % HEADS
    WIDTH: tl.constexpr = HEADS * HEAD
    UNITS: tl.constexpr = BLOCKS * HEAD
    PROJECTED: tl.constexpr = BLOCKS // HEADS * GATES * WIDTH
    TWO: tl.constexpr = KIND == "lstm" or KIND == "slstm"
    ONE: tl.constexpr = KIND == "gru"
    # Columns of a unit in the first product and in the second.
    A: tl.constexpr = 2 if TWO or ONE else 1
    B: tl.constexpr = 2 if TWO else 1
    SAVED: tl.constexpr = 5 if KIND == "slstm" else GATES + ONE
    TILES: tl.constexpr = (HEAD + DEPTH * BK - 1) // (DEPTH * BK)
    WIDE: tl.constexpr = TILES * DEPTH * BK
    DTYPE: tl.constexpr = ra_ptr.dtype.element_ty

    first = part * BN
    unit = first + tl.arange(0, BN)

    # On chip from here to the end.
    wa = ()
    wb = ()
    for k in tl.static_range(TILES):
        inner = _depth(k, DEPTH, TILES * BK, BK)
        wa = wa + (_weights(ra_ptr, block, inner, A * first, A * BN, A * HEAD, HEAD),)
        if TWO or ONE:
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
        ba = _columns(bias_ptr, start, here, column_a, end_a, A * BN)
        if TWO or ONE:
            bb = _columns(bias_ptr, start, here, column_b, end_b, B * BN)
    if recurrent_bias_ptr is not None:
        ba = ba + _columns(recurrent_bias_ptr, start, here, column_a, end_a, A * BN)
        qb = _columns(recurrent_bias_ptr, start, here, column_b, end_b, B * BN)
    for turn_of_tiles in range(ROUNDS):
        tile = tl.program_id(2) + turn_of_tiles * tl.num_programs(2)
        rows = tile * BM + tl.arange(0, BM)
        live = rows < BATCH
        owned = live[:, None] & (unit[None, :] < HEAD)
        long_rows = rows.to(tl.int64)
        state = rows[:, None] * UNITS + block * HEAD + unit[None, :]
        length = tl.full((BM,), TIME, tl.int32)
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=live, other=0)
        scale = 1.0
        if mask_ptr is not None:
            scale = tl.load(mask_ptr + state, mask=owned, other=0.0)

        h = tl.load(h0_ptr + state, mask=owned, other=0.0)
        if TWO:
            c = tl.load(c0_ptr + state, mask=owned, other=0.0)
        if KIND == "slstm":
            n = tl.load(n0_ptr + state, mask=owned, other=0.0)
            m = tl.load(m0_ptr + state, mask=owned, other=LOWEST)

        counter = counter_ptr
        if SPLITS > 1:
            counter += tile * BLOCKS + block
            mine = (block * PADDED + rows[:, None]) * WIDE + unit[None, :]
            tl.store(exchange_ptr + mine, (h * scale).to(DTYPE), mask=unit[None, :] < WIDE)
            arrive(counter)

        backwards = direction if REVERSE == 2 else REVERSE
        t = backwards * (TIME - 1)
        row = (long_rows * TIME + t) * PROJECTED
        xa = _columns(p_ptr, row, live, column_a, end_a, A * BN) + ba
        if TWO or ONE:
            xb = _columns(p_ptr, row, live, column_b, end_b, B * BN) + bb
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

            # Two sums in turn: a matrix instruction waits for the one before on the same sum.
            a = xa
            if TWO:
                b = xb
            if ONE:
                b = tl.zeros((BM, BN), tl.float32) + qb
            if SPLITS == 1:
                operand = (h * scale).to(DTYPE)
                a = tl.dot(operand, wa[0], a, input_precision=PRECISION)
                if TWO or ONE:
                    b = tl.dot(operand, wb[0], b, input_precision=PRECISION)
            else:
                turn = exchange_ptr + ((s % 2) * BLOCKS + block) * (PADDED * WIDE)
                if DEPTH > 1:
                    a_even = tl.zeros((DEPTH, BM, A * BN), tl.float32)
                    a_odd = a_even
                    if TWO or ONE:
                        b_even = tl.zeros((DEPTH, BM, B * BN), tl.float32)
                        b_odd = b_even
                for k in tl.static_range(TILES):
                    operand = _handed(turn, _depth(k, DEPTH, TILES * BK, BK), rows, kept, WIDE)
                    if DEPTH == 1:  # instructions of four warps overlap
                        a = tl.dot(operand, wa[k], a, input_precision=PRECISION)
                        if TWO or ONE:
                            b = tl.dot(operand, wb[k], b, input_precision=PRECISION)
                    elif k % 2 == 0:
                        a_even = tl.dot(operand, wa[k], a_even, input_precision=PRECISION)
                        if TWO or ONE:
                            b_even = tl.dot(operand, wb[k], b_even, input_precision=PRECISION)
                    else:
                        a_odd = tl.dot(operand, wa[k], a_odd, input_precision=PRECISION)
                        if TWO or ONE:
                            b_odd = tl.dot(operand, wb[k], b_odd, input_precision=PRECISION)
                if DEPTH > 1:
                    a += tl.sum(a_even + a_odd, 0)
                    if TWO or ONE:
                        b += tl.sum(b_even + b_odd, 0)

            step = long_rows * TIME + t
            keep = ok[:, None]
            h_before = h
            if KIND == "lstm":
                i, f = _apart(a, BM, BN)
                g, o = _apart(b, BM, BN)
                i, f, g, o = tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)
                c_before = c
                c = tl.where(keep, f * c + i * g, c)
                h = tl.where(keep, o * tanh(c), h)
            elif KIND == "slstm":
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
                if TWO:
                    tl.store(cells_ptr + out, c_before.to(DTYPE), mask=owned)
                tl.store(previous_ptr + out, h_before.to(DTYPE), mask=owned)
            s_next = tl.minimum(s + 1, TIME - 1)
            t = s_next + backwards * (TIME - 1 - 2 * s_next)
            row = (long_rows * TIME + t) * PROJECTED
            xa = _columns(p_ptr, row, live, column_a, end_a, A * BN) + ba
            if TWO or ONE:
                xb = _columns(p_ptr, row, live, column_b, end_b, B * BN) + bb
            if SPLITS > 1:
                if s + 1 < TIME:
                    wait(counter, SPLITS * (s + 2), PTX)

        tl.store(h_ptr + state, h, mask=owned)
        if TWO:
            tl.store(c_ptr + state, c, mask=owned)
        if KIND == "slstm":
            tl.store(n_ptr + state, n, mask=owned)
            tl.store(m_ptr + state, m, mask=owned)


@triton.jit
@no_type_check
def _saved(pointer, step, kind, kinds, block, unit, owned, UNITS: tl.constexpr, HEAD: tl.constexpr):
    at = step[:, None] * (kinds * UNITS) + kind * UNITS + block * HEAD + unit[None, :]
    return tl.load(pointer + at, mask=owned, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def backward(
    dy_ptr, dh_ptr, dc_ptr, dn_ptr, r_ptr, lengths_ptr, resets_ptr, mask_ptr, gates_ptr, previous_ptr, cells_ptr,
    counts_ptr, dp_ptr, dh0_ptr, dc0_ptr, dn0_ptr, exchange_ptr, counter_ptr,
    KIND: tl.constexpr, BATCH: tl.constexpr, TIME: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr,
    HEAD: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLITS: tl.constexpr, DEPTH: tl.constexpr, ROUNDS: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The gates' deltas of all steps, and the gradients of the initial states, for the tiles of `forward`.

    `previous` is read by a GRU alone. With A the deltas that stand before the recurrent product: dh = A R^T, over all
    columns of R, so it is A that the programs of a block exchange.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    direction, head = block // HEADS, block % HEADS
    WIDTH: tl.constexpr = HEADS * HEAD
    UNITS: tl.constexpr = BLOCKS * HEAD
    PROJECTED: tl.constexpr = BLOCKS // HEADS * GATES * WIDTH
    TWO: tl.constexpr = KIND == "lstm" or KIND == "slstm"
    ONE: tl.constexpr = KIND == "gru"
    SAVED: tl.constexpr = 5 if KIND == "slstm" else GATES + ONE
    COLUMNS: tl.constexpr = GATES * HEAD
    TILES: tl.constexpr = GATES if SPLITS == 1 else (COLUMNS + DEPTH * BK - 1) // (DEPTH * BK)
    WIDE: tl.constexpr = TILES * DEPTH * BK
    DTYPE: tl.constexpr = r_ptr.dtype.element_ty

    first = part * BN
    unit = first + tl.arange(0, BN)
    w = ()
    for k in tl.static_range(TILES):
        if SPLITS == 1:  # a gate each
            inner = k * HEAD + tl.arange(0, BN)
            w = w + (_transposed_weights(r_ptr, block, inner, (k + 1) * HEAD, first, BN, HEAD, GATES),)
        else:
            inner = _depth(k, DEPTH, TILES * BK, BK)
            w = w + (_transposed_weights(r_ptr, block, inner, COLUMNS, first, BN, HEAD, GATES),)
    for turn_of_tiles in range(ROUNDS):
        tile = tl.program_id(2) + turn_of_tiles * tl.num_programs(2)
        rows = tile * BM + tl.arange(0, BM)
        live = rows < BATCH
        owned = live[:, None] & (unit[None, :] < HEAD)
        long_rows = rows.to(tl.int64)
        state = rows[:, None] * UNITS + block * HEAD + unit[None, :]
        length = tl.full((BM,), TIME, tl.int32)
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=live, other=0)
        scale = 1.0
        if mask_ptr is not None:
            scale = tl.load(mask_ptr + state, mask=owned, other=0.0)
        dh = tl.load(dh_ptr + state, mask=owned, other=0.0)
        if TWO:
            dc = tl.load(dc_ptr + state, mask=owned, other=0.0)
        if KIND == "slstm":
            dn = tl.load(dn_ptr + state, mask=owned, other=0.0)
        counter = counter_ptr
        if SPLITS > 1:
            counter += tile * BLOCKS + block
        mine = (block * PADDED + rows[:, None]) * WIDE + unit[None, :]
        whole = unit[None, :] < HEAD
        backwards = direction if REVERSE == 2 else REVERSE

        t = (TIME - 1) * (1 - backwards)
        step = long_rows * TIME + t
        dy = _saved(dy_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
        i = _saved(gates_ptr, step, 0, SAVED, block, unit, owned, UNITS, HEAD)
        if TWO or ONE:
            f = _saved(gates_ptr, step, 1, SAVED, block, unit, owned, UNITS, HEAD)
            g = _saved(gates_ptr, step, 2, SAVED, block, unit, owned, UNITS, HEAD)
            o = _saved(gates_ptr, step, 3, SAVED, block, unit, owned, UNITS, HEAD)
        if ONE:
            h_before = _saved(previous_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
        if TWO:
            c_before = _saved(cells_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
        if KIND == "slstm":
            n_before = _saved(counts_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
            slope = _saved(gates_ptr, step, 4, SAVED, block, unit, owned, UNITS, HEAD)

        for s in range(TIME):
            back = TIME - 1 - s
            t = back + backwards * (TIME - 1 - 2 * back)
            ok = t < length
            keep = ok[:, None] & owned
            # Padding gives nothing: whatever dy is there, the output was zero.
            d = dh + tl.where(keep, dy, 0.0)
            direct = tl.zeros_like(dh)
            if KIND == "lstm":
                tanh_c = tanh(f * c_before + i * g)
                dc_new = dc + d * o * (1 - tanh_c * tanh_c)
                a0 = dc_new * g * i * (1 - i)
                a1 = dc_new * c_before * f * (1 - f)
                a2 = dc_new * i * (1 - g * g)
                a3 = d * tanh_c * o * (1 - o)
                b2 = a2
                dc = tl.where(keep, dc_new * f, dc)
            elif KIND == "slstm":
                n_new = tl.where(keep, f * n_before + i, 1.0)
                ratio = (f * c_before + i * g) / n_new
                dc_new = dc + d * o / n_new
                dn_new = dn - d * o * ratio / n_new
                a0 = (dc_new * g + dn_new) * i
                a1 = (dc_new * c_before + dn_new * n_before) * slope
                a2 = dc_new * i * (1 - g * g)
                a3 = d * ratio * o * (1 - o)
                b2 = a2
                dc = tl.where(keep, dc_new * f, dc)
                dn = tl.where(keep, dn_new * f, dn)
            elif KIND == "gru":  # i f g o are r z n and the recurrent product of n
                a2 = d * (1 - f) * (1 - g * g)
                a0 = a2 * o * i * (1 - i)
                a1 = d * (h_before - g) * f * (1 - f)
                b2 = a2 * i
                direct = d * f
            elif KIND == "relu":
                a0 = tl.where(i > 0, d, 0.0)
            else:
                a0 = d * (1 - i * i)
            direct = tl.where(keep, direct, dh)

            a0 = tl.where(keep, a0, 0.0).to(DTYPE)
            if TWO or ONE:
                a1 = tl.where(keep, a1, 0.0).to(DTYPE)
                a2 = tl.where(keep, a2, 0.0).to(DTYPE)
                b2 = tl.where(keep, b2, 0.0).to(DTYPE)
            if TWO:
                a3 = tl.where(keep, a3, 0.0).to(DTYPE)
            if SPLITS > 1:
                turn = exchange_ptr + (s % 2) * (BLOCKS * PADDED * WIDE)
                tl.store(turn + mine, a0, mask=whole)
                if TWO or ONE:
                    tl.store(turn + mine + HEAD, a1, mask=whole)
                    tl.store(turn + mine + 2 * HEAD, b2, mask=whole)
                if TWO:
                    tl.store(turn + mine + 3 * HEAD, a3, mask=whole)
                arrive(counter)

            # What nobody waits for, while the others arrive.
            at = (long_rows * TIME + t)[:, None] * PROJECTED + direction * GATES * WIDTH + head * HEAD + unit[None, :]
            tl.store(dp_ptr + at, a0, mask=owned)
            if TWO or ONE:
                tl.store(dp_ptr + at + WIDTH, a1, mask=owned)
                tl.store(dp_ptr + at + 2 * WIDTH, a2, mask=owned)
            if TWO:
                tl.store(dp_ptr + at + 3 * WIDTH, a3, mask=owned)
            fresh = ok
            if resets_ptr is not None:
                fresh = (tl.load(resets_ptr + long_rows * TIME + t, mask=live, other=0) != 0) & ok
            back = tl.maximum(back - 1, 0)
            step = long_rows * TIME + back + backwards * (TIME - 1 - 2 * back)
            dy = _saved(dy_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
            i = _saved(gates_ptr, step, 0, SAVED, block, unit, owned, UNITS, HEAD)
            if TWO or ONE:
                f = _saved(gates_ptr, step, 1, SAVED, block, unit, owned, UNITS, HEAD)
                g = _saved(gates_ptr, step, 2, SAVED, block, unit, owned, UNITS, HEAD)
                o = _saved(gates_ptr, step, 3, SAVED, block, unit, owned, UNITS, HEAD)
            if ONE:
                h_before = _saved(previous_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
            if TWO:
                c_before = _saved(cells_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
            if KIND == "slstm":
                n_before = _saved(counts_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
                slope = _saved(gates_ptr, step, 4, SAVED, block, unit, owned, UNITS, HEAD)

            if SPLITS == 1:
                product = tl.dot(a0, w[0], input_precision=PRECISION)
                if TWO or ONE:
                    odd = tl.dot(a1, w[1], input_precision=PRECISION)
                    product = tl.dot(b2, w[2], product, input_precision=PRECISION)
                    if TWO:
                        odd = tl.dot(a3, w[3], odd, input_precision=PRECISION)
                    product += odd
            else:
                wait(counter, SPLITS * (s + 1), PTX)
                if DEPTH == 1:
                    product = tl.zeros((BM, BN), tl.float32)
                else:
                    product = tl.zeros((DEPTH, BM, BN), tl.float32)
                    odd = product
                turn += block * (PADDED * WIDE)
                for k in tl.static_range(TILES):
                    operand = _handed(turn, _depth(k, DEPTH, TILES * BK, BK), rows, None, WIDE)
                    if DEPTH == 1 or k % 2 == 0:
                        product = tl.dot(operand, w[k], product, input_precision=PRECISION)
                    else:
                        odd = tl.dot(operand, w[k], odd, input_precision=PRECISION)
                if DEPTH > 1:
                    product = tl.sum(product + odd, 0)
            dh = direct + product * scale
            if resets_ptr is not None:
                dh = tl.where(fresh[:, None], 0.0, dh)
                if TWO:
                    dc = tl.where(fresh[:, None], 0.0, dc)
                if KIND == "slstm":
                    dn = tl.where(fresh[:, None], 0.0, dn)

        tl.store(dh0_ptr + state, dh, mask=owned)
        if TWO:
            tl.store(dc0_ptr + state, dc, mask=owned)
        if KIND == "slstm":
            tl.store(dn0_ptr + state, dn, mask=owned)
