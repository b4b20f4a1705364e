"""oneDNN's plans for a recurrence: forward for inference, forward for training with its workspace, and backward.

Weights and states get axes of length one for oneDNN's layers and directions, and each gate its own axis. Sequences are
`[batch, time, features]` in the program; where oneDNN is faster with time first, the plan reorders them.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels.rnn import own_lstm
from llmasos_xla.kernels.rnn.onednn_spec import GATES, INITIAL, Spec, check_workspace

LIBRARY_NAMES = {"lstm": "lstm", "gru": "lbr_gru", "rnn": "vanilla_rnn"}

# oneDNN's number of each array. That of an array's gradient is 128 more.
NUMBERS = {
    "x": 1, "h0": 2, "c0": 3, "y": 17, "h": 18, "c": 19, "w_input": 33, "w_recurrent": 34, "bias": 41, "workspace": 64,
}  # fmt: skip
_GRADIENT = 128
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT = 1, 2
_TANH = 33
_OVERWRITE_WEIGHT_GRADIENTS = 1


def build_inference(b: _onednn.Builder, s: Spec) -> None:
    """Arguments to outputs."""
    if own_lstm.takes(s):
        own_lstm.build_forward(b, s)
        return
    pd = _describe(b, s, d.FORWARD_INFERENCE, _memories(b, s, time_first=False))
    _step(b, s, pd, s.arguments, s.outputs)


def build_training(b: _onednn.Builder, s: Spec) -> None:
    """Arguments to outputs and workspace."""
    if own_lstm.takes(s):
        own_lstm.build_forward(b, s)
        return
    pd = _describe(b, s, d.FORWARD_TRAINING, _memories(b, s, time_first=False))
    _step(b, s, pd, s.arguments, (*s.outputs, "workspace"))


def build_backward(b: _onednn.Builder, s: Spec) -> None:
    """Arguments, outputs, workspace and gradients of the outputs to gradients of the arguments."""
    if own_lstm.takes(s):
        own_lstm.build_backward(b, s)
        return
    time_first = s.dtype == "float32"
    memories = _memories(b, s, time_first=time_first)
    hint = _describe(b, s, d.FORWARD_TRAINING, memories)
    pd = _describe(b, s, d.BACKWARD, memories, _memories(b, s, time_first=time_first, gradient=True), hint)
    _step(b, s, pd, (*s.arguments, *s.outputs, "workspace", *map(_d, s.outputs)), tuple(map(_d, s.arguments)))


@functools.lru_cache(maxsize=4096)
def workspace_bytes(s: Spec) -> int:
    """The size of the workspace.

    Raises:
        Refused: if oneDNN does not do this recurrence.
    """
    if own_lstm.takes(s):
        return own_lstm.workspace_bytes(s)
    b = _onednn.Builder()
    try:
        pd = _describe(b, s, d.FORWARD_TRAINING, _memories(b, s, time_first=False))
        return b.size(b.layout(pd, NUMBERS["workspace"]))
    finally:
        b.close()


def _d(name: str) -> str:
    return f"d{name}"


def _number(name: str) -> int:
    return NUMBERS[name] if name in NUMBERS else NUMBERS[name[1:]] + _GRADIENT


def _step(b: _onednn.Builder, s: Spec, pd: Any, taken: Sequence[str], given: Sequence[str]) -> None:
    """The primitive, with whatever must be reordered before and after it."""
    operands, written = {}, []
    for name in () if s.initial else INITIAL[s.op]:
        # oneDNN 3.2 without an initial state pairs each step's gates with the wrong h in the gradient of w_recurrent.
        operands[NUMBERS[name]] = b.scratch(b.layout(pd, NUMBERS[name]))
        b.zero(operands[NUMBERS[name]])
        if _d(s.outputs[0]) in taken:
            operands[_number(_d(name))] = b.scratch(b.layout(pd, _number(_d(name))))
    if "workspace" in (*taken, *given):
        check_workspace(s, b.size(b.layout(pd, NUMBERS["workspace"])))
    for i, name in enumerate(taken):
        layout = b.layout(pd, _number(name))
        region = b.argument(i, layout if name == "workspace" else _public(b, s, name))
        operands[_number(name)] = b.as_layout(region, layout)
    for i, name in enumerate(given):
        layout = b.layout(pd, _number(name))
        region = b.result(i, layout if name == "workspace" else _public(b, s, name))
        target = operands[_number(name)] = b.into(region, layout)
        written.append((target, region))
        if name in ("dw_input", "dw_recurrent", "dbias") and not _overwrites(s):
            b.zero(target)
    b.run(pd, operands)
    for target, region in written:
        b.finish(target, region)


def _overwrites(s: Spec) -> bool:
    """Whether the backward pass writes the weights' gradients; else it adds to what is there.

    oneDNN has its kernels for AMX add only: 27 ms for a backward pass of an LSTM(256) over [32, 128, 256] against 64 on
    one thread.
    """
    return s.dtype == "float32"


def _describe(
    b: _onednn.Builder,
    s: Spec,
    prop: int,
    memories: dict[str, Any],
    gradients: dict[str, Any] | None = None,
    hint: Any = None,
) -> Any:
    backward = gradients is not None
    elman = s.op == "rnn"
    head = [prop, _TANH] if elman else [prop]
    flags = ctypes.c_uint(_OVERWRITE_WEIGHT_GRADIENTS if backward and _overwrites(s) else 0)
    tail = [flags, ctypes.c_float(0.0), ctypes.c_float(0.0)] if elman else [flags]
    return b.describe(
        f"{LIBRARY_NAMES[s.op]}_{'backward' if backward else 'forward'}",
        *head,
        _RIGHT_TO_LEFT if s.reverse else _LEFT_TO_RIGHT,
        *_in_order(s, memories),
        *(_in_order(s, gradients) if backward else ()),
        *tail,
        *([hint] if backward else ()),
        b.attributes(),
    )


def _in_order(s: Spec, memories: dict[str, Any]) -> list[Any]:
    """The memory descriptors in the order of oneDNN's parameters; an LSTM's peepholes and projection are none."""
    m = memories
    weights = m["w_input"], m["w_recurrent"], *((None, None) if s.op == "lstm" else ()), m["bias"]
    return [m["x"], *map(m.get, INITIAL[s.op]), *weights, *map(m.get, s.outputs)]


def _memories(b: _onednn.Builder, s: Spec, *, time_first: bool, gradient: bool = False) -> dict[str, Any]:
    """What the primitive is to work on, by name. Gradients are float32 whatever the arrays are."""
    made = {}
    for name in ("x", "w_input", "w_recurrent", "bias", *INITIAL[s.op], *s.outputs):
        array = s.struct(name)
        dtype = "float32" if gradient else str(array.dtype)
        shape = _axes(s, name)
        if name in ("w_input", "w_recurrent"):
            made[name] = b.free(shape, dtype)
        elif name in ("x", "y") and not time_first:
            made[name] = _batch_first(b, shape, dtype)
        else:
            made[name] = b.dense(shape, dtype)
    return made


def _public(b: _onednn.Builder, s: Spec, name: str) -> Any:
    """An array as it stands in the program."""
    array = s.struct(name if name in NUMBERS else name[1:])
    shape = _axes(s, name if name in NUMBERS else name[1:])
    make = _batch_first if name in ("x", "y", "dx", "dy") else _onednn.Builder.dense
    return make(b, shape, str(array.dtype))


def _axes(s: Spec, name: str) -> tuple[int, ...]:
    """An array's shape as oneDNN numbers its axes."""
    shape = s.struct(name).shape
    if name in ("x", "y"):
        return s.time, s.batch, shape[2]
    if name == "bias":
        return 1, 1, shape[0] // s.hidden, s.hidden
    if name in ("w_input", "w_recurrent"):
        return 1, 1, shape[0], GATES[s.op], s.hidden
    return 1, 1, *shape


def _batch_first(b: _onednn.Builder, shape: Sequence[int], dtype: str) -> Any:
    """`[time, batch, features]` that stands in memory as `[batch, time, features]`."""
    time, batch, features = shape
    if time == 1 or batch == 1:
        return b.dense(shape, dtype)
    return b.strided(shape, (features, time * features, 1), dtype)
