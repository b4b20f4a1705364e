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
    arguments = [_argument(b, s, i, name) for i, name in enumerate(s.arguments)]
    outputs = [b.result(i, _dense(b, s, name)) for i, name in enumerate(s.outputs)]
    states = () if s.initial else (None, None)
    kept = _workspace(b, s, b.result, len(outputs)) if s.workspace else (None, None, None)
    packed = b.scratch(b.dense((s.cin + s.hidden, 4 * s.hidden), "float32"))
    projected = None
    if s.batch < _FEW_ROWS and s.time > 1:
        projected = kept[0] if s.workspace else b.scratch(b.dense((s.batch * s.time, 4 * s.hidden), "float32"))
    b.own("lstm", (*arguments, *states, *outputs, *kept, packed, projected), _numbers(s))


def build_backward(b: _onednn.Builder, s: Spec) -> None:
    """Arguments, outputs, workspace and gradients of the outputs to gradients of the arguments."""
    check_workspace(s, workspace_bytes(s))
    rows, columns = s.batch * s.time, 4 * s.hidden
    named = {name: _argument(b, s, i, name) for i, name in enumerate(s.arguments)}
    at = len(s.arguments) + len(s.outputs)
    gates, cells, _ = _workspace(b, s, b.argument, at)
    cotangents = [b.argument(at + 1 + i, _dense(b, s, name)) for i, name in enumerate(s.outputs)]
    gradients = {name: b.result(i, _dense(b, s, name)) for i, name in enumerate(s.arguments)}
    for name in () if s.initial else ("h0", "c0"):
        gradients[name] = b.scratch(_dense(b, s, name))
    dgates = b.scratch(b.dense((rows, columns), "float32"))
    packed = b.scratch(b.dense((s.hidden, columns), "float32"))
    known = named["w_recurrent"], named.get("c0"), gates, cells
    wanted = dgates, gradients["bias"], gradients["h0"], gradients["c0"]
    b.own("lstm backward", (*known, *cotangents, *wanted, packed), _numbers(s))
    # Each product's matrices as they lie in memory, or transposed: rows, columns, and the strides of both.
    deltas = b.dense((rows, columns), "float32")
    _product(
        b,
        (dgates, deltas),
        (b.argument(1, _transposed(b, columns, s.cin)), _transposed(b, columns, s.cin)),
        b.result(0, b.dense((rows, s.cin), "float32")),
    )
    before = _before(b, s, at)
    for left, width, result in ((b.argument(0, _transposed(b, s.cin, rows)), s.cin, 1), (before, s.hidden, 2)):
        out = b.result(result, b.dense((width, columns), "float32"))
        _product(b, (left, _transposed(b, width, rows)), (dgates, deltas), out)


def _product(b: _onednn.Builder, left: tuple[int, Any], right: tuple[int, Any], out: int) -> None:
    """A step: a product of two regions, each with how it is to be seen."""
    pd = b.describe("matmul", left[1], right[1], None, b.descriptor(out), b.attributes())
    b.run(pd, {d.SRC: left[0], d.WEIGHTS: right[0], d.DST: out})


def _transposed(b: _onednn.Builder, rows: int, columns: int) -> Any:
    """A matrix that lies in memory as `[columns, rows]`."""
    return b.strided((rows, columns), (1, rows), "float32")


def _argument(b: _onednn.Builder, s: Spec, index: int, name: str) -> int:
    return b.argument(index, _dense(b, s, name))


def _dense(b: _onednn.Builder, s: Spec, name: str) -> Any:
    return b.dense(s.struct(name).shape, "float32")


def _workspace(b: _onednn.Builder, s: Spec, region: Any, index: int) -> tuple[int, int, int]:
    """Gates, cell states and the outputs of the step before, in an argument or result."""
    rows = s.batch * s.time
    states = b.dense((rows, s.hidden), "float32")
    gates = region(index, b.dense((rows, 4 * s.hidden), "float32"))
    return gates, region(index, states, 16 * rows * s.hidden), region(index, states, 20 * rows * s.hidden)


def _before(b: _onednn.Builder, s: Spec, index: int) -> int:
    """The outputs of the step before, `[hidden, rows]` as they lie in memory."""
    rows = s.batch * s.time
    return b.argument(index, _transposed(b, s.hidden, rows), 20 * rows * s.hidden)


def _numbers(s: Spec) -> tuple[int, ...]:
    return s.batch, s.time, s.cin, s.hidden, int(s.reverse)
