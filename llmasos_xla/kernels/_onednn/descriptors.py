"""oneDNN's C interface as Python functions: descriptors, attributes, and `Builder`, which makes a plan of them.

The numbers are those of oneDNN's public header, which 3.x keeps. Every failing call raises `Refused` with oneDNN's
status by name. A `Builder` owns what it makes until `put` hands it to `native/plans.cpp`.
"""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from llmasos_xla.kernels._onednn.library import loaded

P = ctypes.c_void_p

DTYPES = {"float16": 1, "bfloat16": 2, "float32": 3, "int32": 4, "int8": 5, "uint8": 6}
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD, BACKWARD_DATA, BACKWARD_WEIGHTS = 64, 96, 128, 160, 192
QUERIES = {"source": 129, "weights": 131, "weights gradient": 132, "destination": 133, "workspace": 135, "scratch": 136}
_QUERY_ARGUMENT, _QUERY_IMPLEMENTATION = 255, 8
SRC, DST, WEIGHTS, BIAS, WORKSPACE, SCRATCHPAD = 1, 17, 33, 41, 64, 80
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS = 129, 145, 161, 169
SCALES = 4096
# oneDNN's number and its two parameters, by this package's name of the activation. Its own relu and clip turn NaN into
# zero, where a diverging model must stay visible: relu is elu with a slope of 0 instead, and what has no such detour
# (relu6, hard_sigmoid), or makes NaN of an infinity (gelu), is left to XLA.
ELTWISE = {
    "relu": (34, 0.0, 0.0),
    "leaky_relu": (32, 0.2, 0.0),
    "elu": (34, 1.0, 0.0),
    "tanh": (33, 0.0, 0.0),
    "sigmoid": (41, 0.0, 0.0),
    "gelu_tanh": (43, 0.0, 0.0),
    "silu": (44, 1.0, 0.0),
    "swish": (44, 1.0, 0.0),
    "mish": (51, 0.0, 0.0),
    "softplus": (39, 1.0, 0.0),
}
_STATUS = (
    "success", "out_of_memory", "invalid_arguments", "unimplemented", "last_impl_reached", "runtime_error",
    "not_required", "invalid_graph",
)  # fmt: skip
_ARGUMENT, _RESULT, _SCRATCH = 0, 1, 2
_PRIMITIVE, _ZERO = 0, 1
OWN = {
    "depthwise kernel gradient": 2,
    "batch normalization": 3,
    "batch normalization backward": 4,
    "lstm": 5,
    "lstm backward": 6,
}
"""The kernels beside oneDNN's, in `native/`: `StepKind` of plans.h."""
_ALIGNMENT = 64


class Refused(Exception):  # noqa: N818
    """oneDNN will not do it; the text says which function and its status."""


def check(what: str, status: int) -> None:
    """Raises `Refused` unless the status is success."""
    if status:
        name = _STATUS[status] if 0 <= status < len(_STATUS) else str(status)
        raise Refused(f"oneDNN says {name} to {what}")


def int64s(values: Sequence[int]) -> Any:
    """The values as a C array."""
    return (ctypes.c_int64 * len(values))(*values)


class Builder:
    """Collects the regions and steps of one plan."""

    def __init__(self) -> None:
        self.dnnl = loaded().dnnl
        self.threads = loaded().threads
        self._regions: list[tuple[int, int, int, P]] = []
        self._steps: list[tuple[int, int | None, list[int]]] = []
        self._descriptors: list[P] = []
        self._primitive_descriptors: list[P] = []
        self._attributes: list[P] = []
        self._primitives: list[P] = []
        self.implementations: list[str] = []
        self.scratch_bytes = 0

    # Descriptors.

    def strided(self, shape: Sequence[int], strides: Sequence[int], dtype: str) -> P:
        """A memory descriptor for `shape` with strides in elements."""
        m = P()
        check(
            f"a memory of shape {tuple(shape)}, strides {tuple(strides)}, {dtype}",
            self.dnnl.dnnl_memory_desc_create_with_strides(
                ctypes.byref(m), len(shape), int64s(shape), DTYPES[dtype], int64s(strides)
            ),
        )
        self._descriptors.append(m)
        return m

    def dense(self, shape: Sequence[int], dtype: str) -> P:
        """A memory descriptor in row-major order."""
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * max(size, 1))
        return self.strided(shape, strides, dtype)

    def channels_last(self, shape: Sequence[int], dtype: str) -> P:
        """A memory descriptor of `[batch, *space, channels]` in oneDNN's order of axes, batch channels space."""
        batch, *space, channels = shape
        strides, step = [], channels
        for n in reversed(space):
            strides.insert(0, step)
            step *= n
        return self.strided((batch, channels, *space), (step, 1, *strides), dtype)

    def free(self, shape: Sequence[int], dtype: str) -> P:
        """A memory descriptor whose layout the primitive chooses."""
        m = P()
        check(
            f"a memory of shape {tuple(shape)}, {dtype}",
            self.dnnl.dnnl_memory_desc_create_with_tag(ctypes.byref(m), len(shape), int64s(shape), DTYPES[dtype], 1),
        )
        self._descriptors.append(m)
        return m

    def size(self, descriptor: P) -> int:
        """Bytes of a memory."""
        return self.dnnl.dnnl_memory_desc_get_size(descriptor)

    def same(self, a: P, b: P) -> bool:
        """Whether two memories have one layout."""
        return bool(self.dnnl.dnnl_memory_desc_equal(a, b))

    # Primitive descriptors.

    def attributes(self, eltwise: str | None = None, scales: dict[int, int] | None = None, add: bool = False) -> P:
        """Primitive attributes: scratch memory from the caller, an activation at the end, scales by argument."""
        a = P()
        check("attributes", self.dnnl.dnnl_primitive_attr_create(ctypes.byref(a)))
        self._attributes.append(a)
        check("caller's scratch memory", self.dnnl.dnnl_primitive_attr_set_scratchpad_mode(a, 1))
        for argument, mask in (scales or {}).items():
            check("scales", self.dnnl.dnnl_primitive_attr_set_scales_mask(a, argument, mask))
        if eltwise is not None or add:
            ops = P()
            check("post-ops", self.dnnl.dnnl_post_ops_create(ctypes.byref(ops)))
            try:
                if add:
                    check("adding", self.dnnl.dnnl_post_ops_append_sum(ops, 1.0, 0, 0))
                if eltwise is not None:
                    kind, alpha, beta = ELTWISE[eltwise]
                    check(eltwise, self.dnnl.dnnl_post_ops_append_eltwise(ops, kind, alpha, beta))
                check("post-ops", self.dnnl.dnnl_primitive_attr_set_post_ops(a, ops))
            finally:
                self.dnnl.dnnl_post_ops_destroy(ops)
        return a

    def describe(self, kind: str, *arguments: Any, prefer: str = "") -> P:
        """A primitive descriptor from `dnnl_<kind>_primitive_desc_create(engine, *arguments)`.

        `prefer` is the beginning of an implementation's name, which is taken if oneDNN has it for these arguments.
        """
        function = getattr(self.dnnl, f"dnnl_{kind}_primitive_desc_create")

        def create() -> P:
            pd = P()
            check(kind, function(ctypes.byref(pd), loaded().engine, *arguments))
            self._primitive_descriptors.append(pd)
            return pd

        pd = create()
        while prefer and not self.implementation(pd).startswith(prefer):
            if self.dnnl.dnnl_primitive_desc_next_impl(pd):
                return create()
        return pd

    def implementation(self, pd: P) -> str:
        """oneDNN's name of what it would run, "brgconv:avx512_core"."""
        name = ctypes.c_char_p()
        self.dnnl.dnnl_primitive_desc_query(pd, _QUERY_IMPLEMENTATION, 0, ctypes.byref(name))
        return (name.value or b"").decode()

    def query(self, pd: P, what: str, index: int = 0) -> P:
        """A copy of one of the primitive descriptor's memory descriptors."""
        return self._cloned(P(self.dnnl.dnnl_primitive_desc_query_md(pd, QUERIES[what], index)))

    def layout(self, pd: P, argument: int) -> P:
        """The memory descriptor of an argument by its number."""
        return self._cloned(P(self.dnnl.dnnl_primitive_desc_query_md(pd, _QUERY_ARGUMENT, argument)))

    def _cloned(self, borrowed: P) -> P:
        m = P()
        check("a copy of a descriptor", self.dnnl.dnnl_memory_desc_clone(ctypes.byref(m), borrowed))
        self._descriptors.append(m)
        return m

    # Regions.

    def argument(self, index: int, descriptor: P, offset: int = 0) -> int:
        """The call's argument `index`, from `offset` bytes on, as a region."""
        return self._region(_ARGUMENT, index, offset, descriptor)

    def result(self, index: int, descriptor: P, offset: int = 0) -> int:
        """The call's result `index` as a region."""
        return self._region(_RESULT, index, offset, descriptor)

    def scratch(self, descriptor: P) -> int:
        """New scratch memory as a region."""
        offset = self.scratch_bytes
        self.scratch_bytes += -(-self.size(descriptor) // _ALIGNMENT) * _ALIGNMENT
        return self._region(_SCRATCH, 0, offset, descriptor)

    def _region(self, where: int, index: int, offset: int, descriptor: P) -> int:
        self._regions.append((where, index, offset, descriptor))
        return len(self._regions) - 1

    def descriptor(self, region: int) -> P:
        """The memory descriptor of a region."""
        return self._regions[region][3]

    # Steps.

    def run(self, pd: P, operands: dict[int, int]) -> None:
        """A step: the primitive on regions, by argument number. Its scratch memory is added."""
        primitive = P()
        check("making a primitive", self.dnnl.dnnl_primitive_create(ctypes.byref(primitive), pd))
        self._primitives.append(primitive)
        pad = self.query(pd, "scratch")
        if self.size(pad):
            operands = {**operands, SCRATCHPAD: self.scratch(pad)}
        words = [word for pair in operands.items() for word in pair]
        self._steps.append((_PRIMITIVE, primitive.value, words))
        self.implementations.append(self.implementation(pd))

    def reorder(self, source: int, target: int) -> None:
        """A step: copies a region into another layout or dtype."""
        pd = P()
        engine = loaded().engine
        check(
            "a reorder",
            self.dnnl.dnnl_reorder_primitive_desc_create(
                ctypes.byref(pd), self.descriptor(source), engine, self.descriptor(target), engine, self.attributes()
            ),
        )
        self._primitive_descriptors.append(pd)
        self.run(pd, {SRC: source, DST: target})

    def as_layout(self, region: int, wanted: P) -> int:
        """The region in the wanted layout: itself, or scratch memory after a reorder."""
        if self.same(self.descriptor(region), wanted):
            return region
        target = self.scratch(wanted)
        self.reorder(region, target)
        return target

    def into(self, region: int, produced: P) -> int:
        """Where to write what is produced in another layout: the region itself, or scratch; see `finish`."""
        return region if self.same(self.descriptor(region), produced) else self.scratch(produced)

    def finish(self, written: int, region: int) -> None:
        """Brings what `into` made to write into the region."""
        if written != region:
            self.reorder(written, region)

    def zero(self, region: int) -> None:
        """A step: sets a region to zero."""
        self._steps.append((_ZERO, None, [region, self.size(self.descriptor(region))]))

    def own(self, kind: str, regions: Sequence[int | None], numbers: Sequence[float | int]) -> None:
        """A step by a kernel of this package, one of `OWN`, as plans.cpp reads it.

        Regions stand for its structure's pointers in their order, None for null; after them its numbers, a `float` as
        the bits of a double.
        """
        words = [-1 if region is None else region for region in regions]
        words += [struct.unpack("q", struct.pack("d", n))[0] if isinstance(n, float) else int(n) for n in numbers]
        self._steps.append((OWN[kind], None, words))
        self.implementations.append(kind)

    # The end.

    def reach(self, where: str) -> tuple[int, ...]:
        """How many bytes the plan touches of each of its "arguments" or "results"."""
        side = _ARGUMENT if where == "arguments" else _RESULT
        ends = [(i, offset + self.size(d)) for at, i, offset, d in self._regions if at == side]
        count = 1 + max((i for i, _ in ends), default=-1)
        return tuple(max((end for i, end in ends if i == n), default=0) for n in range(count))

    def put(self, spec: str, results: int) -> None:
        """Hands the plan to the handler, which knows it by the text `spec`; the builder is spent."""
        regions = [(where, index, offset, self._cloned(d)) for where, index, offset, d in self._regions]
        table = [self.scratch_bytes, len(self.reach("arguments")), results, len(regions)]
        for where, index, offset, descriptor in regions:
            table += [where, index, offset, descriptor.value or 0]
        table.append(len(self._steps))
        for kind, primitive, words in self._steps:
            table += [kind, primitive or 0, len(words), *words]
        # Given away before they are taken: an interrupt in between then loses them, instead of freeing them twice.
        taken = {d.value for *_, d in regions}
        mine = [d for d in self._descriptors if d.value not in taken], []
        before = self._descriptors, self._primitives
        self._descriptors, self._primitives = mine
        if loaded().native.llm_put(spec.encode(), int64s(table)):
            self._descriptors, self._primitives = before
            raise Refused(f"no memory for the plan of {spec}")

    def close(self) -> None:
        """Frees what was made and not handed over."""
        for p in self._primitives:
            self.dnnl.dnnl_primitive_destroy(p)
        for pd in self._primitive_descriptors:
            self.dnnl.dnnl_primitive_desc_destroy(pd)
        for a in self._attributes:
            self.dnnl.dnnl_primitive_attr_destroy(a)
        for d in self._descriptors:
            self.dnnl.dnnl_memory_desc_destroy(d)
        self._primitives, self._primitive_descriptors, self._attributes, self._descriptors = [], [], [], []
