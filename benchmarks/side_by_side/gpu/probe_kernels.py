"""Kernels that do one thing, to see what it takes. Imports Triton."""

import triton
import triton.language as tl

from llmasos_xla.kernels._triton.language import arrive, wait


@triton.jit
def one_more(x_ptr, y_ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    """y = x + 1."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N, other=0) + 1, mask=at < N)


@triton.jit
def counted(x_ptr, count_ptr):
    """How many programs there are, if the counter is zero when the kernel starts."""
    tl.atomic_add(count_ptr, tl.load(x_ptr))


@triton.jit
def meet(steps_ptr, y_ptr, counter_ptr, PTX: tl.constexpr):
    """The programs along the first axis wait for each other, again and again."""
    group, steps = tl.program_id(1), tl.load(steps_ptr)
    for s in range(steps):
        arrive(counter_ptr + group)
        wait(counter_ptr + group, tl.num_programs(0) * (s + 1), PTX)
    at = group * tl.num_programs(0) + tl.program_id(0)
    tl.store(y_ptr + at, steps)


@triton.jit
def hand_over(
    steps_ptr, x_ptr, y_ptr, exchange_ptr, counter_ptr,
    ROWS: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Each program of a group writes its columns of a state, waits for the others and reads all of it, as in a step of
    a recurrence without its product."""
    rows = tl.arange(0, ROWS)[:, None]
    mine = tl.program_id(0) * SHARE + tl.arange(0, SHARE)[None, :]
    all_of_it = tl.arange(0, WIDE)[None, :]
    state = tl.load(x_ptr + rows * (GROUP * SHARE) + mine).to(tl.float32)
    steps = tl.load(steps_ptr)
    for s in range(steps):
        turn = exchange_ptr + (s % 2) * (ROWS * GROUP * SHARE)
        tl.store(turn + rows * (GROUP * SHARE) + mine, state.to(exchange_ptr.dtype.element_ty))
        arrive(counter_ptr)
        wait(counter_ptr, GROUP * (s + 1), PTX)
        whole = tl.load(
            turn + rows * (GROUP * SHARE) + all_of_it, mask=all_of_it < GROUP * SHARE, other=0.0, cache_modifier=".cg"
        )
        state = 0.5 * state + tl.sum(whole.to(tl.float32), 1)[:, None] / (GROUP * SHARE)
    tl.store(y_ptr + rows * (GROUP * SHARE) + mine, state.to(y_ptr.dtype.element_ty))


@triton.jit
def products(steps_ptr, x_ptr, w_ptr, y_ptr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """x w w w ..., each product waiting for the one before."""
    rows, units = tl.arange(0, ROWS)[:, None], tl.arange(0, UNITS)
    x = tl.load(x_ptr + rows * UNITS + units[None, :])
    w = tl.load(w_ptr + units[:, None] * UNITS + units[None, :])
    steps = tl.load(steps_ptr)
    for _ in range(steps):
        x = tl.dot(x, w).to(x.dtype)
    tl.store(y_ptr + rows * UNITS + units[None, :], x)
