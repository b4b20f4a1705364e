"""All steps of a recurrence backward: the kernel on the tiles that `triton_language` describes."""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels._triton.language import arrive, refuse_more_than_resident, tanh, wait
from llmasos_xla.kernels.rnn.triton_language import columns, depth, handed, rows_of, two_sums


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
def _saved(pointer, step, kind, kinds, block, unit, owned, UNITS: tl.constexpr, HEAD: tl.constexpr):
    at = step[:, None] * (kinds * UNITS) + kind * UNITS + block * HEAD + unit[None, :]
    return tl.load(pointer + at, mask=owned, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _of_step(
    gates_ptr, previous_ptr, cells_ptr, counts_ptr, rates_ptr, step, block, unit, owned, live,
    KIND: tl.constexpr, SAVED: tl.constexpr, BLOCKS: tl.constexpr, UNITS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """What forward saved of a step: its gates, the state before it, then what the kind has besides."""
    got = (_saved(gates_ptr, step, 0, SAVED, block, unit, owned, UNITS, HEAD),)
    if KIND != "rnn" and KIND != "relu":
        for gate in tl.static_range(1, 4):
            got = got + (_saved(gates_ptr, step, gate, SAVED, block, unit, owned, UNITS, HEAD),)
        if KIND == "gru":
            got = got + (_saved(previous_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD),)
        else:
            got = got + (_saved(cells_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD),)
    if KIND == "slstm":
        got = got + (_saved(counts_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD),)
        got = got + (_saved(gates_ptr, step, 4, SAVED, block, unit, owned, UNITS, HEAD),)
    if KIND == "lnlstm":
        got = got + (_saved(gates_ptr, step, 8, SAVED, block, unit, owned, UNITS, HEAD),)
        rates = rates_ptr + (step[:, None] * BLOCKS + block) * 2
        got = got + (tl.load(rates, mask=live[:, None], other=0.0),)
        got = got + (tl.load(rates + 1, mask=live[:, None], other=0.0),)
    return got


@triton.jit
@no_type_check
def _before(s, TIME: tl.constexpr, backwards):
    """The time of the s-th step backward, and after the last step its time again."""
    back = tl.maximum(TIME - 1 - s, 0)
    return back + backwards * (TIME - 1 - 2 * back)


@triton.jit
@no_type_check
def backward(
    dy_ptr, dh_ptr, dc_ptr, dn_ptr, r_ptr, recurrent_scale_ptr, cell_scale_ptr, cell_offset_ptr, lengths_ptr,
    resets_ptr, mask_ptr, gates_ptr, previous_ptr, cells_ptr, counts_ptr, rates_ptr,
    dp_ptr, dq_ptr, dnorm_ptr, dh0_ptr, dc0_ptr, dn0_ptr, exchange_ptr, counter_ptr,
    KIND: tl.constexpr, BATCH: tl.constexpr, TIME: tl.constexpr, BLOCKS: tl.constexpr, HEADS: tl.constexpr,
    HEAD: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr, REVERSE: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr, DEPTH: tl.constexpr, HELD: tl.constexpr,
    ROUNDS: tl.constexpr, PADDED: tl.constexpr, A: tl.constexpr, COUNTED: tl.constexpr, EPSILON: tl.constexpr,
    PRECISION: tl.constexpr, LINE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The gates' deltas of all steps, and the gradients of the initial states, for the tiles of `forward`.

    `previous` is read by a GRU alone. With A the deltas that stand before the recurrent product: dh = A R^T, over all
    columns of R, so it is A that the programs of a block exchange. Behind a normalization that is A = rate * dq, and
    the rate of a row, which is large where h R is small, waits until after the product: 16 bits hold dq.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    direction, head = block // HEADS, block % HEADS
    WIDTH: tl.constexpr = HEADS * HEAD
    UNITS: tl.constexpr = BLOCKS * HEAD
    PROJECTED: tl.constexpr = BLOCKS // HEADS * GATES * WIDTH
    NORM: tl.constexpr = KIND == "lnlstm"
    TWO: tl.constexpr = KIND == "lstm" or NORM or KIND == "slstm"
    ONE: tl.constexpr = KIND == "gru"
    COLUMNS: tl.constexpr = GATES * HEAD
    # Small weights: the deltas pass through shared memory together, and their products are summed there, where a sum of
    # products in turn takes the operand of each through it.
    TOGETHER: tl.constexpr = SPLITS == 1 and BN <= 64 and (TWO or ONE) and not NORM
    SUMMED: tl.constexpr = TOGETHER or SPLITS > 1
    TILES: tl.constexpr = GATES if SPLITS == 1 else (COLUMNS + DEPTH * BK - 1) // (DEPTH * BK)
    WIDE: tl.constexpr = TILES * DEPTH * BK
    DTYPE: tl.constexpr = r_ptr.dtype.element_ty
    # Two sums in turn where registers are left: a matrix instruction waits for the one before on the same sum.
    ONE_SUM: tl.constexpr = BM > 16 or tl.float32 == DTYPE

    if SPLITS > 1 and PTX:
        refuse_more_than_resident()
    first = part * BN
    unit = first + tl.arange(0, BN)
    w = ()
    if TOGETHER:
        # A product of each gate, of a warp or two; for a GRU's fourth one of zeros.
        gate, column = tl.arange(0, 4)[:, None], tl.arange(0, BN)[None, :]
        inner = tl.where((gate < GATES) & (column < HEAD), gate * HEAD + column, COLUMNS)
        w = (_transposed_weights(r_ptr, block, inner, COLUMNS, first, BN, HEAD, GATES),)
    else:
        for k in tl.static_range(TILES):
            if SPLITS == 1:
                inner = k * HEAD + tl.arange(0, BN)
                w = w + (_transposed_weights(r_ptr, block, inner, (k + 1) * HEAD, first, BN, HEAD, GATES),)
            else:
                inner = depth(k, DEPTH, TILES * BK, BK)
                w = w + (_transposed_weights(r_ptr, block, inner, COLUMNS, first, BN, HEAD, GATES),)
    if NORM:
        start = tl.zeros((1,), tl.int64)
        here = start == 0
        column = direction * GATES * WIDTH
        scale_i = columns(recurrent_scale_ptr, start, here, column, column + HEAD, BN)
        scale_f = columns(recurrent_scale_ptr, start, here, column + HEAD, column + 2 * HEAD, BN)
        scale_g = columns(recurrent_scale_ptr, start, here, column + 2 * HEAD, column + 3 * HEAD, BN)
        scale_o = columns(recurrent_scale_ptr, start, here, column + 3 * HEAD, column + 4 * HEAD, BN)
        cell_scale = columns(cell_scale_ptr, start, here, block * HEAD, (block + 1) * HEAD, BN)
        cell_offset = columns(cell_offset_ptr, start, here, block * HEAD, (block + 1) * HEAD, BN)
    for turn_of_tiles in range(ROUNDS):
        tile = tl.program_id(2) + turn_of_tiles * tl.num_programs(2)
        rows, live, owned, state, length = rows_of(tile, unit, block, lengths_ptr, BATCH, TIME, UNITS, HEAD, BM)
        long_rows = rows.to(tl.int64)
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
            counter += (tile * BLOCKS + block) * LINE
        mine = (block * PADDED + rows[:, None]) * WIDE + unit[None, :]
        whole = unit[None, :] < HEAD
        backwards = direction if REVERSE == 2 else REVERSE

        t = (TIME - 1) * (1 - backwards)
        step = long_rows * TIME + t
        dy_now = _saved(dy_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
        if SUMMED:
            second = long_rows * TIME + _before(1, TIME, backwards)
            dy_next = _saved(dy_ptr, second, 0, 1, block, unit, owned, UNITS, HEAD)
        saved = _of_step(
            gates_ptr, previous_ptr, cells_ptr, counts_ptr, rates_ptr, step, block, unit, owned, live, KIND, SAVED,
            BLOCKS, UNITS, HEAD,
        )  # fmt: skip

        for s in range(TIME):
            t = _before(s, TIME, backwards)
            ok = t < length
            i = saved[0]
            if TWO or ONE:
                f, g, o = saved[1], saved[2], saved[3]
            if ONE:
                h_before = saved[4]
            if TWO:
                c_before = saved[4]
            if KIND == "slstm":
                n_before, slope = saved[5], saved[6]
            if NORM:
                normal, rate, cell_rate = saved[5], saved[6], saved[7]
            if NORM:  # not ahead: across the product they would take registers
                step = long_rows * TIME + t
                q_i = _saved(gates_ptr, step, 4, SAVED, block, unit, owned, UNITS, HEAD)
                q_f = _saved(gates_ptr, step, 5, SAVED, block, unit, owned, UNITS, HEAD)
                q_g = _saved(gates_ptr, step, 6, SAVED, block, unit, owned, UNITS, HEAD)
                q_o = _saved(gates_ptr, step, 7, SAVED, block, unit, owned, UNITS, HEAD)
            keep = ok[:, None] & owned
            # Padding gives nothing: whatever dy is there, the output was zero.
            d = dh + tl.where(keep, dy_now, 0.0)
            if SUMMED:
                dy_now = dy_next
            direct = tl.zeros_like(dh)
            if KIND == "lstm" or NORM:
                if NORM:
                    tanh_c = tanh(cell_scale * normal + cell_offset)
                    dnorm = tl.where(keep, d * o * (1 - tanh_c * tanh_c), 0.0)
                    scaled = dnorm * cell_scale
                    mean, along = two_sums(scaled, scaled * normal)
                    mean, along = mean[:, None] / COUNTED, along[:, None] / COUNTED
                    dc_new = dc + cell_rate * (scaled - mean - along * normal)
                    # At once, as in forward: held to the other stores, it would take registers.
                    out = (long_rows * TIME + t)[:, None] * UNITS + block * HEAD + unit[None, :]
                    tl.store(dnorm_ptr + out, dnorm.to(DTYPE), mask=owned)
                else:
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
            if NORM:
                e0 = tl.where(keep, a0 * scale_i, 0.0)
                e1 = tl.where(keep, a1 * scale_f, 0.0)
                e2 = tl.where(keep, a2 * scale_g, 0.0)
                e3 = tl.where(keep, a3 * scale_o, 0.0)

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
            if NORM:
                mean, along = two_sums(e0 + e1 + e2 + e3, e0 * q_i + e1 * q_f + e2 * q_g + e3 * q_o)
                mean, along = mean[:, None] / (4 * COUNTED), along[:, None] / (4 * COUNTED)
                e0 = (e0 - mean - along * q_i).to(DTYPE)
                e1 = (e1 - mean - along * q_f).to(DTYPE)
                e2 = (e2 - mean - along * q_g).to(DTYPE)
                e3 = (e3 - mean - along * q_o).to(DTYPE)
                tl.store(dq_ptr + at, e0, mask=owned)
                tl.store(dq_ptr + at + WIDTH, e1, mask=owned)
                tl.store(dq_ptr + at + 2 * WIDTH, e2, mask=owned)
                tl.store(dq_ptr + at + 3 * WIDTH, e3, mask=owned)
            fresh = ok
            if resets_ptr is not None:
                fresh = (tl.load(resets_ptr + long_rows * TIME + t, mask=live, other=0) != 0) & ok
            step = long_rows * TIME + _before(s + 1, TIME, backwards)
            if not SUMMED:
                dy_now = _saved(dy_ptr, step, 0, 1, block, unit, owned, UNITS, HEAD)
            saved = _of_step(
                gates_ptr, previous_ptr, cells_ptr, counts_ptr, rates_ptr, step, block, unit, owned, live, KIND, SAVED,
                BLOCKS, UNITS, HEAD,
            )  # fmt: skip

            if NORM:
                product = tl.dot(e0, w[0], input_precision=PRECISION)
                odd = tl.dot(e1, w[1], input_precision=PRECISION)
                product = tl.dot(e2, w[2], product, input_precision=PRECISION)
                odd = tl.dot(e3, w[3], odd, input_precision=PRECISION)
                product = (product + odd) * rate
            elif TOGETHER:
                if ONE:
                    a3 = tl.zeros_like(a0)
                gates = tl.reshape(tl.join(tl.join(a0, b2), tl.join(a1, a3)), (BM, BN, 4))
                product = tl.sum(tl.dot(tl.permute(gates, (2, 0, 1)), w[0], input_precision=PRECISION), 0)
            elif SPLITS == 1:
                product = tl.dot(a0, w[0], input_precision=PRECISION)
                if TWO or ONE:
                    odd = tl.dot(a1, w[1], input_precision=PRECISION)
                    product = tl.dot(b2, w[2], product, input_precision=PRECISION)
                    if TWO:
                        odd = tl.dot(a3, w[3], odd, input_precision=PRECISION)
                    product += odd
            else:
                wait(counter, SPLITS * (s + 1), PTX)
                product = tl.zeros((DEPTH, BM, BN), tl.float32)
                odd = product
                turn += block * (PADDED * WIDE)
                for k in tl.static_range(TILES):
                    if k % HELD == 0:  # one wait for several
                        operands = ()
                        for n in tl.static_range(k, min(k + HELD, TILES)):
                            operands = operands + (handed(turn, depth(n, DEPTH, TILES * BK, BK), rows, None, WIDE),)
                    if ONE_SUM or k % 2 == 0:
                        product = tl.dot(operands[k % HELD], w[k], product, input_precision=PRECISION)
                    else:
                        odd = tl.dot(operands[k % HELD], w[k], odd, input_precision=PRECISION)
                if not ONE_SUM:
                    product += odd
                product = tl.sum(product, 0)
            if SUMMED:
                # A load in the layout of the states: loaded before the product, they would all get that of its sum,
                # which every warp holds whole.
                third = long_rows * TIME + _before(s + 2, TIME, backwards)
                dy_next = _saved(dy_ptr, third, 0, 1, block, unit, owned, UNITS, HEAD)
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
