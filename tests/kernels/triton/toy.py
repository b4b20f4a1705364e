"""A small operation, y = x w, for tests of the engine."""

from typing import NamedTuple

import jax
import triton
import triton.language as tl

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels._triton.language import arrive, wait


@triton.jit
def product_kernel(x_ptr, w_ptr, y_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        x_mask = (rows[:, None] < M) & ((k + inner)[None, :] < K)
        w_mask = ((k + inner)[:, None] < K) & (columns[None, :] < N)
        x = tl.load(x_ptr + rows[:, None] * K + (k + inner)[None, :], mask=x_mask, other=0.0)
        w = tl.load(w_ptr + (k + inner)[:, None] * N + columns[None, :], mask=w_mask, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(y_ptr + rows[:, None] * N + columns[None, :], total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def waiting_kernel(counter_ptr, TARGET: tl.constexpr):
    arrive(counter_ptr)
    wait(counter_ptr, TARGET, False)


class Spec(NamedTuple):
    """Sizes and dtype."""

    m: int
    k: int
    n: int
    dtype: str


def results(s: Spec):
    return [jax.ShapeDtypeStruct((s.m, s.n), jax.numpy.dtype(s.dtype))]


def build(s: Spec, x, w):
    return _triton.launch(
        product_kernel,
        (-(-s.m // 32), -(-s.n // 32)),
        {"x_ptr": x, "w_ptr": w},
        {"y_ptr": results(s)[0]},
        {"M": s.m, "N": s.n, "K": s.k, "BLOCK": 32},
        device=_triton.current(),
        options=Options(),
    )


def jvp(s, primals, tangents, named):
    return _triton.bilinear_jvp(PRODUCT, s, primals, tangents, named)


def transpose(s, arrays, cotangents, named):
    x, w = arrays
    (dy,) = cotangents
    if x is None:
        return [*_triton.call(PRODUCT, Spec(s.m, s.n, s.k, s.dtype), dy, w.T, named=named), None]
    return [None, *_triton.call(PRODUCT, Spec(s.k, s.m, s.n, s.dtype), x.T, dy, named=named)]


PRODUCT = _triton.operation(
    "toy product", Spec, results, build, lambda s, x, w: (x @ w,), jvp=jvp, transpose=transpose,
    flops=lambda s: 2.0 * s.m * s.n * s.k,
)  # fmt: skip


def product(x, w, named=False):
    return _triton.call(PRODUCT, Spec(*x.shape, w.shape[1], str(x.dtype)), x, w, named=named)[0]
