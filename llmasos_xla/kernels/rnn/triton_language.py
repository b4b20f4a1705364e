"""Recurrences as persistent Triton kernels: how they are laid out, and their device functions. Imports Triton.

One launch walks all steps, the recurrent weights on chip.

A program owns `BM` rows of the batch and `BN` hidden units of one block, with all gates of these units: the columns of
the recurrent weights that they need stay in its shared memory or registers from the first step to the last, and so do
its units' states. Batches of more tiles than can be resident are taken in rounds. A block is one direction and one
head: its units see no others. With `SPLITS` == 1 one program owns a block and hands its state on in registers. Else
`SPLITS` programs share it: after each step they hand the new state through `exchange`, two buffers in turn, and wait
for each other at a counter.

Forward, gates come in pairs: the columns of two are interleaved, unit by unit, so that a thread holds both gates of its
units and taking them apart moves nothing between threads. An LSTM has two pairs, or all four gates in one product where
its tiles' `quads` says so; a GRU one pair and n alone, the others one gate.

With `DEPTH` > 1 a product is a batch of `DEPTH` products over a share of the depth each, one for each warp, and their
sum: a tile of 16 rows and 16 units has too few columns for all warps, which would compute the same.

Arrays (blocks = directions * heads, units = blocks * head):
    p        [batch, time, directions, columns]               x W, of the input, in the order of the products
    ra, rb   [blocks, head, columns of a block]               recurrent weights of the first product, and of the second
    r        [blocks, head, gates * head]                     recurrent weights, gate by gate
    states   [batch, units] of float32
    saved    [batch, time, kinds, units]                      what backward needs of each step
    dp       [batch, time, directions, gates, heads * head]   the gates' deltas: all gradients of weights are matrix
                                                              products of them, outside
and of an LSTM with layer normalization, where one program owns all units of a direction, so that statistics of a row
are sums in its registers:
    rates    [batch, time, directions, 2]                     1 / sqrt(variance + epsilon) of h R, and of c
    dq       as dp                                            deltas of h R, divided by its rate
    dnorm    [batch, time, units]                             deltas of what stands in h's tanh
Units that fill up a head have weights, scales and offsets of zero, so nothing of theirs enters a sum; only the number
of those that count is told.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def depth(k, DEPTH: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr):
    """Which terms of a product its k-th part sums: [BK], or [DEPTH, BK] with a share each."""
    inner = k * BK + tl.arange(0, BK)
    if DEPTH > 1:
        inner = tl.arange(0, DEPTH)[:, None] * SPAN + inner[None, :]
    return inner


@triton.jit
@no_type_check
def handed(turn_ptr, inner, rows, kept, WIDTH: tl.constexpr):
    """What the programs of a block handed over, rows of WIDTH, at the places `inner` [DEPTH, BK]; zeros if not `kept`.

    The buffer is padded to whole tiles, which were zero at the start, so that no mask is needed for its ends.
    """
    # Offsets of 32 bits until the pointer comes, last: row by row added to it they would be of 64, twice the registers.
    at = rows[None, :, None] * WIDTH + inner[:, None, :]
    if kept is None:
        got = tl.load(turn_ptr + at, cache_modifier=".cg")
    else:
        got = tl.load(turn_ptr + at, mask=kept[None, :, None], other=0.0, cache_modifier=".cg")
    return got


@triton.jit
@no_type_check
def rows_of(
    tile, unit, block, lengths_ptr, BATCH: tl.constexpr, TIME: tl.constexpr, UNITS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """A tile's rows of the batch, which of them are there, which units too, where a state has them; rows' lengths."""
    rows = tile * BM + tl.arange(0, BM)
    live = rows < BATCH
    owned = live[:, None] & (unit[None, :] < HEAD)
    state = rows[:, None] * UNITS + block * HEAD + unit[None, :]
    length = tl.full((BM,), TIME, tl.int32)
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows, mask=live, other=0)
    return rows, live, owned, state, length


@triton.jit
@no_type_check
def columns(base_ptr, row, live, first_column, limit, N: tl.constexpr):
    """N columns of rows that start at `row`: [rows, N] of float32."""
    column = first_column + tl.arange(0, N)
    mask = live[:, None] & (column[None, :] < limit)
    return tl.load(base_ptr + row[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def two_sums(a, b):
    """The sums of each row of two tiles [rows, N], in one pass through shared memory where two sums would take two."""
    return tl.split(tl.sum(tl.join(a, b), 1))
