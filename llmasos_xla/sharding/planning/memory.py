"""What a compiled program needs of a device's memory, and what of it is weights, optimizer, batch and the rest.

XLA fixes every buffer when it compiles: peak = arguments + results - what both share (donated) + temporary values. On
TPU the program's code lies in the same memory. On CPU there is more that XLA does not plan: the host's own copy of a
batch, what the products of matrices pack their operands into, and what the C library keeps of freed blocks in an arena
for each thread.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llmasos_xla.sharding.planning.program import Line, computations_of, sizes_of
from llmasos_xla.sharding.threads import usable_cpus

# Rows and columns of a product are packed by blocks of so many values along the sum, threefold: measured, see
# benchmarks/memory.py.
_PACKED = 256
_KEPT = 16 << 20
_EXHAUSTED = (r"\(([\d.]+)([KMGT]?)i?B?\) exceeds", r"Used ([\d.]+)([KMGT]?)i?B? of", r"allocate ([\d.]+)([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: all that is passed in.
        outputs: all that comes back.
        aliased: results that are written where arguments lay.
        temporary: intermediate values, as far as they live at the same time.
        code: the program itself, where it lies in the device's memory.
        beside: what is needed beside the program: batches that a fit has under way and, where the device is the
            host, `host_bytes`.
        parts: of the arguments, by name: {"weights": ..., "optimizer": ..., "batch": ...}.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int = 0
    beside: int = 0
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most that is needed at once."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code + self.beside

    @property
    def activations(self) -> int:
        """All that is not one of the parts: intermediate values, gradients, what is gathered."""
        return self.peak - sum(self.parts.values())


def memory_of(compiled: Any, **parts: Any) -> Memory:
    """Reads a compiled program; `parts` are trees of its arguments, whose shares are told apart.

    >>> import jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    >>> compiled = jax.jit(lambda w: w @ w, donate_argnums=0).lower(x).compile()
    >>> found = memory_of(compiled, weights=x)
    >>> found.parts, found.arguments, found.aliased
    ({'weights': 262144}, 262144, 262144)
    """
    found = compiled.memory_analysis()
    if found is None:
        raise NotImplementedError("memory_of: this platform's compiler says nothing about memory")
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
        parts={name: device_bytes(tree) for name, tree in parts.items()},
    )


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of `jax.ShapeDtypeStruct`, on one device of their shardings.

    >>> import jax.numpy as jnp
    >>> device_bytes({"kernel": jnp.ones((4, 8)), "bias": jax.ShapeDtypeStruct((8,), jnp.bfloat16)})
    144
    """
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: Any) -> int:
    sharding, shape = getattr(leaf, "sharding", None), np.shape(leaf)
    shape = shape if sharding is None else sharding.shard_shape(shape)
    dtype = jax.numpy.result_type(leaf)
    # A random key is two words of 32 bits.
    size = 8 if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
    return math.prod(shape) * size


def host_bytes(compiled: Any, batch: Any, temporary: int, devices: int = 1) -> int:
    """What a program on CPU needs beside XLA's plan of one device: the host's copy of its batch, packed products, and
    blocks that are free and kept.

    A product that XLA computes itself, [m, k] by [k, n], packs 3 min(k, 256) (m + n) values. glibc keeps freed blocks
    of up to 32 MiB in the arena of the thread that used them: up to half of that for each core has been seen, and no
    more than the program's temporary values.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    computations, _ = computations_of(text)
    fused = set(re.findall(r"calls=%?([\w.-]+)", text))
    packed = max((_packed(lines) for name, lines in computations.items() if name not in fused), default=0)
    cores = usable_cpus()
    return device_bytes(batch) + packed + min(cores * _KEPT // devices, temporary)


def _packed(lines: list[Line]) -> int:
    types = {line.name: line.type for line in lines}
    most = 0
    for line in lines:
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", line.rest)
        if line.opcode != "dot" or contracted is None or line.operands[0] not in types:
            continue
        itemsize = max(sizes_of(line.type)[0] // max(math.prod(_dims(line.type)), 1), 1)
        left, out = _dims(types[line.operands[0]]), _dims(line.type)
        inner = math.prod(left[int(axis)] for axis in contracted[1].split(","))
        rows_and_columns = sum(out[-2:])
        most = max(most, 3 * min(inner, _PACKED) * rows_and_columns * itemsize)
    return most


def _dims(type_: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", type_)
    return [int(n) for n in found[1].split(",") if n] if found else []


def exhausted(error: Exception) -> int | None:
    """Bytes that a program would have needed, from the error with which XLA refused to compile it; 0 if that does not
    say how many, None if it failed for another reason.

    >>> exhausted(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    ...                        "temporaries (400.00G) exceeds available HBM (15.75G)."))
    429496729600
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    for pattern in _EXHAUSTED:
        if found := re.search(pattern, text):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0
