"""All steps of a recurrence backward: the kernel on the tiles that `triton_kernels` describes."""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels._triton.language import arrive, tanh, wait
from llmasos_xla.kernels.rnn.triton_kernels import depth, handed


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
            inner = depth(k, DEPTH, TILES * BK, BK)
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
                    operand = handed(turn, depth(k, DEPTH, TILES * BK, BK), rows, None, WIDE)
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
