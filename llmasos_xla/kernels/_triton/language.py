"""Device functions that the kernels share. Imports Triton."""

import triton
import triton.language as tl

# Polls of a barrier, each about half a microsecond, before it gives up.
SPIN_LIMIT = tl.constexpr(1 << 25)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def read_acquire(pointer):
    """The value at `pointer`, before anything that is read after it: one load of each thread, no atomic."""
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", [pointer], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def group_barrier(counter, target, PTX: tl.constexpr):
    """Waits until the programs of a group have added up to `target` at `counter`, which starts at 0 and only grows.

    What each wrote before, all read after with cache modifier ".cg". Every program of the group must be resident.
    """
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")
    arrived = 0
    spins = 0
    while arrived < target:
        if PTX:
            arrived = read_acquire(counter)
        else:
            arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        spins += 1
        tl.device_assert(spins < SPIN_LIMIT, "a program of this kernel does not run: the GPU is shared with another")
    tl.debug_barrier()
