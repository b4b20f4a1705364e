"""What jaxlib's launcher of Triton kernels reads, written by hand: its own encoder comes with the GPU plugin alone.

The fields are those of `TritonAnyKernelCall` in jaxlib/gpu/triton.proto; numbers of protobuf fields do not change.
"""

import zlib
from collections.abc import Sequence

from llmasos_xla.kernels._triton.compiler import Compiled


def kernel_call(
    compiled: Compiled, arch: int, warps: int, grid: tuple[int, int, int], zeroed: Sequence[int], name: str
) -> bytes:
    """The launch of a kernel on arrays, of which so many bytes are set to zero before, as the foreign call takes it."""
    kernel = (
        _text(1, compiled.name)
        + _number(2, warps)
        + _number(3, compiled.shared_memory)
        + _text(4, compiled.text)
        + _number(6, arch)
        + _number(10, 1)  # programs of a cluster
    )
    # From jaxlib 0.11.1 on it loads this and assembles nothing.
    image = _bytes(1, compiled.binary) + _text(2, compiled.name) + _number(3, compiled.shared_memory)
    kernel += _bytes(11, image)
    if compiled.scratch_bytes:
        kernel += _number(12, compiled.scratch_bytes) + _number(13, compiled.scratch_alignment)
    call = _bytes(1, kernel) + b"".join(_number(2 + axis, size) for axis, size in enumerate(grid))
    for count in zeroed:
        call += _bytes(5, _bytes(1, _number(1, count) + _number(2, 16)))  # an array, aligned to 16 bytes
    return zlib.compress(_bytes(1, call) + _text(4, name))


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _number(field: int, n: int) -> bytes:
    return _varint(field << 3) + _varint(n) if n else b""


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, content: str) -> bytes:
    return _bytes(field, content.encode())
