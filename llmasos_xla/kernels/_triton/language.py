"""Device functions that the kernels share. Imports Triton.

Like all of Triton's functions they are marked `no_type_check`: a wrapper around one, as an import hook puts it there,
would hide its source from the compiler.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Looks at a counter after which a wait gives up: many times what any step needs.
SPIN_LIMIT = tl.constexpr(1 << 25)


@triton.jit
@no_type_check
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
@no_type_check
def refuse_more_than_resident():
    """Ends with an error at once where more programs were launched than CUDA has multiprocessors for.

    A program that was compiled for a larger GPU of the same architecture would wait for its last programs for ever.
    """
    programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
    tl.inline_asm_elementwise(
        """{
        .reg .pred over;
        .reg .u32 here;
        mov.u32 here, %nsmid;
        setp.gt.u32 over, $1, here;
        @over trap;
        mov.u32 $0, here;
        }""",
        "=r,r", [programs], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
@no_type_check
def arrive(counter):
    """Adds this program to `counter`: what it wrote before, the others read after their `wait`."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
@no_type_check
def wait(counter, target, PTX: tl.constexpr):
    """Waits until `target` arrivals stand at `counter`, which starts at 0 and only grows.

    What the others wrote is then read with cache modifier ".cg": the first cache knows nothing of other
    multiprocessors. Every program of the group must be resident, or this would never end; it ends with an error, on
    CUDA that of an illegal instruction.
    """
    arrived = 0
    spins = 0
    while arrived < target:
        if PTX:
            # A load of the first warp, the others wait at the barrier; with an atomic all programs would queue. A trap,
            # not `device_assert`: the call of a function costs registers.
            arrived = tl.inline_asm_elementwise(
                """{
                .reg .pred over, first;
                .reg .u32 thread;
                mov.u32 thread, %tid.x;
                setp.lt.u32 first, thread, 32;
                mov.u32 $0, 0x7fffffff;
                @first ld.acquire.gpu.global.u32 $0, [$1];
                setp.gt.s32 over, $2, $3;
                @over trap;
                }""",
                "=r,l,r,r", [counter, spins, SPIN_LIMIT], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
            tl.device_assert(spins < SPIN_LIMIT, "a program does not run: the GPU is shared with another kernel")
        spins += 1
    tl.debug_barrier()
