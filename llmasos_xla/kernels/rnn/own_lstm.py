"""The plans of an LSTM in float32 that runs on oneDNN's team of threads, but not in its primitive (native/lstm.cpp).

oneDNN opens two parallel regions or more for each step and calls one product after the other; here the steps are one
region, each thread keeps the weights of its own hidden units in its cache, and gates are applied while their sums are
in registers. What is left of the backward pass are three products over all steps at once, which are oneDNN's.
"""

from typing import Any

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels.rnn.onednn_spec import Spec, check_workspace

_UNITS = 16
_AVX512 = 0x27  # of `dnnl_cpu_isa_t`: with the byte, word and vector-length extensions
# Below, the weights of the input are read once for all steps ahead of the recurrence: a step's few rows would not
# make up for reading them again. Batch 1, 128 steps, 256 -> 256 on one core: 2.4 ms against 5.0.
_FEW_ROWS = 6
_PACK_FROM = 8  # rows in all; below, packing the weights takes longer than it saves


def takes(s: Spec) -> bool:
    """Whether this is a recurrence for it, and this CPU has AVX-512."""
    fits = s.op == "lstm" and s.dtype == "float32" and s.hidden % _UNITS == 0
    return fits and _onednn.loaded().dnnl.dnnl_get_effective_cpu_isa() & _AVX512 == _AVX512


def workspace_bytes(s: Spec) -> int:
    """The gates, the cell states and the outputs of the step before, for each step."""
    return 4 * s.batch * s.time * 6 * s.hidden


def build_forward(b: _onednn.Builder, s: Spec) -> None:
    """Arguments to outputs, and with a workspace in the spec, to the workspace too."""
    if s.workspace:
        check_workspace(s, workspace_bytes(s))
    rows, columns = s.batch * s.time, 4 * s.hidden
    arguments = [_argument(b, s, name) for name in s.arguments]
    states = () if s.initial else (None, None)
    outputs = [b.result(i, _dense(b, s, name)) for i, name in enumerate(s.outputs)]
    kept = _workspace(b, s, b.result, len(outputs), _matrix(b, rows, s.hidden)) if s.workspace else (None, None, None)
    packed = b.scratch(_matrix(b, s.cin + s.hidden, columns)) if rows >= _PACK_FROM else None
    projected = None
    if s.batch < _FEW_ROWS and s.time > 1:
        projected = kept[0] if s.workspace else b.scratch(_matrix(b, rows, columns))
    b.own("lstm", (*arguments, *states, *outputs, *kept, packed, projected), _numbers(s))


def build_backward(b: _onednn.Builder, s: Spec) -> None:
    """Arguments, outputs, workspace and gradients of the outputs to gradients of the arguments."""
    check_workspace(s, workspace_bytes(s))
    rows, columns = s.batch * s.time, 4 * s.hidden
    at = len(s.arguments) + len(s.outputs)
    gates, cells, previous = _workspace(b, s, b.argument, at, _transposed(b, s.hidden, rows))
    known = _argument(b, s, "w_recurrent"), _argument(b, s, "c0") if s.initial else None, gates, cells
    cotangents = [b.argument(at + 1 + i, _dense(b, s, name)) for i, name in enumerate(s.outputs)]
    dgates, dbias = b.scratch(_matrix(b, rows, columns)), b.result(3, _dense(b, s, "bias"))
    state = _dense(b, s, "c0")
    dh0, dc0 = (b.result(i, state) if s.initial else b.scratch(state) for i in (4, 5))
    packed = b.scratch(_matrix(b, s.hidden, columns))
    b.own("lstm backward", (*known, *cotangents, dgates, dbias, dh0, dc0, packed), _numbers(s))
    x, w_input = b.argument(0, _transposed(b, s.cin, rows)), b.argument(1, _transposed(b, columns, s.cin))
    _product(b, dgates, w_input, b.result(0, _matrix(b, rows, s.cin)))
    _product(b, x, dgates, b.result(1, _matrix(b, s.cin, columns)))
    _product(b, previous, dgates, b.result(2, _matrix(b, s.hidden, columns)))


def _product(b: _onednn.Builder, left: int, right: int, out: int) -> None:
    """A step: the product of two matrices."""
    pd = b.describe("matmul", b.descriptor(left), b.descriptor(right), None, b.descriptor(out), b.attributes())
    b.run(pd, {d.SRC: left, d.WEIGHTS: right, d.DST: out})


def _matrix(b: _onednn.Builder, rows: int, columns: int) -> Any:
    return b.dense((rows, columns), "float32")


def _transposed(b: _onednn.Builder, rows: int, columns: int) -> Any:
    """A matrix that lies in memory as `[columns, rows]`."""
    return b.strided((rows, columns), (1, rows), "float32")


def _dense(b: _onednn.Builder, s: Spec, name: str) -> Any:
    return b.dense(s.struct(name).shape, "float32")


def _argument(b: _onednn.Builder, s: Spec, name: str) -> int:
    return b.argument(s.arguments.index(name), _dense(b, s, name))


def _workspace(b: _onednn.Builder, s: Spec, region: Any, index: int, previous: Any) -> tuple[int, int, int]:
    """Gates, cell states and the outputs of the step before, the last as described, in an argument or result."""
    rows = s.batch * s.time
    gates = region(index, _matrix(b, rows, 4 * s.hidden))
    cells = region(index, _matrix(b, rows, s.hidden), 16 * rows * s.hidden)
    return gates, cells, region(index, previous, 20 * rows * s.hidden)


def _numbers(s: Spec) -> tuple[int, ...]:
    return s.batch, s.time, s.cin, s.hidden, int(s.reverse)
