"""The linear recurrence's kernels compiled ahead of time, as they are shipped: registers, spills, widths of loads."""

import re

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from kernels.triton import aot
from repetitions import slow_but

from llmasos_xla.kernels._triton import devices
from llmasos_xla.kernels.scan import triton_kernels, triton_launches, triton_spec
from llmasos_xla.kernels.scan.cases import GPU_BENCH, Case
from llmasos_xla.kernels.scan.recurrence import Spec

DTYPES = {"float32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PREDICATED = re.compile(r"@%p\d+ (ld|st)\.global")
each_target = pytest.mark.parametrize("target", aot.TARGETS)


def spec(case, target="sm90", gate_dtype=None, **sizes):
    s = Spec(*case.shape, case.a, case.dtype, gate_dtype or case.dtype, case.reverse, False, None)
    with devices.compiling_for(aot.DEVICES[target]):
        s = triton_spec.configured(s)
    return s._replace(how=s.how._replace(**sizes))


def reports(s, target, da=False):
    """What the compiler makes of each kernel of a recurrence, by name."""
    found = {}
    for name, _, constants in triton_launches.launches(s, da):
        kernel = getattr(triton_kernels, name)
        pointers = {p.name: np.dtype("f4") for p in kernel.params if p.name not in constants}
        pointers |= {n: DTYPES[s.dtype] for n in ("b_ptr", "h_ptr", "before_ptr") if n in pointers}
        pointers |= {n: DTYPES[s.gate_dtype] for n in ("a_ptr", "da_ptr") if n in pointers}
        found[name] = aot.compiled(kernel, pointers, constants, target, triton_launches.OPTIONS)
    return found


def assert_lean(found, target, registers=160):
    for name, report in found.items():
        assert report.spilled == 0, name
        # Nothing passes between lanes.
        assert report.shared_memory == 0, name
        assert report.registers <= registers, name


VECTORS = {("float32", 4): "sm80", ("float32", 1): "gfx942", ("bfloat16", 8): "sm90", ("float16", 2): "sm100"}
"""Elements of a load, and for which GPU each is compiled always."""


@pytest.mark.parametrize(("vectors", "target"), slow_but(VECTORS.items(), VECTORS, aot.TARGETS))
def test_no_spills(target, vectors):
    """Cut into segments, with a tail, backward: all that a kernel can have to hold at once."""
    dtype, vector = vectors
    ahead = 128 // (vector * DTYPES[dtype].itemsize)
    s = spec(Case("cut", 4, 1001, 512, dtype=dtype), vector=vector, ahead=ahead, segments=4).transposed()
    found = reports(s, target)
    assert list(found) == ["ends_kernel", "walk_kernel"]
    assert_lean(found, target)


@pytest.mark.parametrize(("dtype", "vector"), [("float32", 4), ("bfloat16", 8)])
def test_no_spills_with_da_and_wide_gates(dtype, vector):
    s = spec(
        Case("da", 4, 1001, 512, dtype=dtype), vector=vector, ahead=8, segments=4, gate_dtype="float32"
    ).transposed()
    assert_lean(reports(s, "sm90", da=True), "sm90", registers=200)


@pytest.mark.parametrize(
    ("dtype", "vector", "wide"), [("float32", 4, "v4.b32"), ("float32", 2, "v2.b32"), ("bfloat16", 8, "v4.b32")]
)
def test_loads_and_stores_are_wide(dtype, vector, wide):
    s = spec(Case("wide", 4, 1024, 512, dtype=dtype), vector=vector, ahead=8, segments=1)
    text = reports(s, "sm90")["walk_kernel"].text
    # a and b, and in float32 the state at the start; h, and the state at the end.
    assert text.count(f"ld.global.{wide}") >= 16
    assert text.count(f"st.global.{wide}") >= 8
    assert "ld.global.b32" not in text
    assert "ld.global.b16" not in text
    # Every step and channel is there, so nothing asks whether it is.
    assert not PREDICATED.search(text)
    tail = reports(s._replace(time=1001, gate=(4, 1001, 512)), "sm90")["walk_kernel"].text
    assert PREDICATED.search(tail)


def shipped():
    """A case of each kind of program that the heuristic makes of the GPU's benchmark."""
    kinds = {}
    for case in GPU_BENCH:
        s = spec(case)
        tail = s.time % s.how.ahead > 0
        kinds.setdefault((s.dtype, s.how.vector, s.how.ahead, s.how.segments > 1, tail, case.gate is None), case)
    return kinds.values()


@pytest.mark.slow
@each_target
@pytest.mark.parametrize("case", shipped(), ids=lambda c: f"{c.name}-{c.dtype}")
def test_every_shipped_configuration(case, target):
    s = spec(case, target)
    for each in (s, s.transposed()):
        assert_lean(reports(each, target), target)
    if case.gate is None:
        assert_lean(reports(s.transposed(), target, da=True), target, registers=200)
