"""A convolution of few input channels as one matrix product; `triton_first.py` starts the kernels. Imports Triton.

        places of the result            elements of a window, K = R S C                      output channels
        m = (n, i, j)                   k = (r, s, c)
                     |  x[n, SH i + DH r - PH, SW j + DW s - PW, c]  |     |                |
              rows   |                       a                       |  x  |  w  as it lies |   =  y
                     |                                               |     |                |

cuDNN's kernels for channels-last arrays are made for channels by the eight: with three of them most of what they load
and multiply is padding. Here the window's own elements are the depth of the product. They are loaded one by one,
neighbors in memory by neighboring threads, and neighboring places find them in the first cache; the result is many
times larger than x and is written once, bias and activation included.
"""

from typing import no_type_check

import triton
import triton.language as tl

from llmasos_xla.kernels.conv.triton_language import activate, slope


@triton.jit
@no_type_check
def _corner(
    m, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Where the windows of places m begin: their row and column of x, and the offset of these."""
    top = (m // OW % OH) * SH - PH
    left = (m % OW) * SW - PW
    return top, left, ((m // (OW * OH) * H + top) * W + left) * C


@triton.jit
@no_type_check
def _elements(
    x_ptr, base, top, left, there, k, row, col, K: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    INSIDE: tl.constexpr,
):  # fmt: skip
    """The elements k, which lie `row` and `col` below a window's corner, of windows that begin there: [places, k]."""
    mask = there[:, None] & (k < K)[None, :]
    if not INSIDE:
        i = top[:, None] + row[None, :]
        j = left[:, None] + col[None, :]
        mask = mask & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    return tl.load(x_ptr + base[:, None] + ((row * W + col) * C + k % C)[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def first_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, z_ptr,
    N: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
    DW: tl.constexpr, C: tl.constexpr, F: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    INSIDE: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """y = activation(x * w + b), and z ahead of the activation. `INSIDE`: no window reaches beyond x."""
    K: tl.constexpr = R * S * C
    TILES: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    m = tl.program_id(0) // TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    f = tl.program_id(0) % TILES * BLOCK_F + tl.arange(0, BLOCK_F)
    there = m < N * OH * OW
    if WIDE:
        m = m.to(tl.int64)
    top, left, base = _corner(m, H, W, OH, OW, SH, SW, PH, PW, C)
    acc = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        row = k // (S * C) * DH
        col = k // C % S * DW
        a = _elements(x_ptr, base, top, left, there, k, row, col, K, H, W, C, INSIDE)
        w = tl.load(w_ptr + k[:, None] * F + f[None, :], mask=(k < K)[:, None] & (f < F)[None, :], other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    mask = there[:, None] & (f < F)[None, :]
    at = m[:, None] * F + f[None, :]
    if b_ptr is not None:
        acc += tl.load(b_ptr + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    if z_ptr is not None:
        tl.store(z_ptr + at, acc.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + at, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def first_sums_kernel(
    x_ptr, g_ptr, kept_ptr, part_ptr,
    N: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
    DW: tl.constexpr, C: tl.constexpr, F: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    INSIDE: tl.constexpr, WIDE: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program's part of the sums dw[k, f] = sum a[m, k] dz[m, f] and db[f] = sum dz[m, f].

    dz is g, times the slope where `kept` is given. A window has one more element, of one: its sum is db. Programs that
    share places follow each other, so that all but one find them in the second cache. `part` is [PROGRAMS, K + 1, F].
    """
    K: tl.constexpr = R * S * C
    TILES: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    PARTS: tl.constexpr = (K + BLOCK_K) // BLOCK_K
    BLOCKS: tl.constexpr = (N * OH * OW + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    f = program % TILES * BLOCK_F + tl.arange(0, BLOCK_F)
    k = program // TILES % PARTS * BLOCK_K + tl.arange(0, BLOCK_K)
    me = program // (TILES * PARTS)
    row = k // (S * C) * DH
    col = k // C % S * DW
    acc = tl.zeros((BLOCK_K, BLOCK_F), tl.float32)
    for block in range(me, BLOCKS, PROGRAMS):
        m = block * BLOCK_M + tl.arange(0, BLOCK_M)
        there = m < N * OH * OW
        if WIDE:
            m = m.to(tl.int64)
        top, left, base = _corner(m, H, W, OH, OW, SH, SW, PH, PW, C)
        a = _elements(x_ptr, base, top, left, there, k, row, col, K, H, W, C, INSIDE)
        a = tl.where((k == K)[None, :], 1.0, a.to(tl.float32)).to(x_ptr.dtype.element_ty)
        at = m[:, None] * F + f[None, :]
        mask = there[:, None] & (f < F)[None, :]
        g = tl.load(g_ptr + at, mask=mask, other=0.0)
        if kept_ptr is not None:
            kept = tl.load(kept_ptr + at, mask=mask, other=0.0).to(tl.float32)
            g = (g.to(tl.float32) * slope(kept, ACTIVATION)).to(g_ptr.dtype.element_ty)
        acc = tl.dot(tl.trans(a), g, acc, input_precision=PRECISION)
    at = part_ptr + (me * (K + 1) + k)[:, None] * F + f[None, :]
    tl.store(at, acc, mask=(k <= K)[:, None] & (f < F)[None, :])
