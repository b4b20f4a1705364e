"""The kernels' own lists of shapes, `llmasos_xla/kernels/*/cases.py`, as problems that every framework reads."""

import importlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from llmasos_xla.kernels.conv.geometry import dilated, pad_pairs, per_axis, transposed_pads
from side_by_side.kernels.problem import FORWARD, Part, Problem

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def problems(
    ops: Collection[str], names: Collection[str], dtypes: Sequence[str], most: int | None = None
) -> Iterator[Problem]:
    """The problems of these ops (of `OPS`), all or those whose case is named, `most` of each op, in every dtype."""
    for op in ops:
        listed, read = OPS[op]
        for case in [case for case in listed() if not names or case.name in names][:most]:
            for dtype in dtypes:
                yield from read(case, dtype)


def _listed(folder: str, name: str = "BENCH") -> Callable[[], Sequence[Any]]:
    return lambda: getattr(importlib.import_module(f"llmasos_xla.kernels.{folder}.cases"), name)


def _recurrences(op: str) -> Callable[[], Sequence[Any]]:
    return lambda: [case for case in _listed("rnn")() if case.op == op]


def _fields(case: Any, *known: str) -> None:
    """Refuses a case that says more than is read here: its speed would be that of another problem."""
    defaults = case._field_defaults
    for name in case._fields:
        if name not in known and getattr(case, name) != defaults.get(name):
            raise ValueError(
                f"{case.name}: the case has {name}={getattr(case, name)!r}, which {__name__} does not read; "
                "teach it, and the contestants, what that is"
            )


def _conv(case: Any, dtype: str) -> Iterator[Problem]:
    _fields(case, "name", "lhs", "rhs", "stride", "padding", "rhs_dilation", "lhs_dilation", "groups")
    batch, *size, _ = case.lhs
    *kernel, cin, cout = case.rhs
    rank = len(size)
    stride = per_axis(case.name, "stride", case.stride, rank)
    options = {name: per_axis(case.name, name, getattr(case, name), rank) for name in ("lhs_dilation", "rhs_dilation")}
    sizes = tuple(map(dilated, size, options["lhs_dilation"]))
    windows = tuple(map(dilated, kernel, options["rhs_dilation"]))
    pads = pad_pairs(case.name, case.padding, sizes, windows, stride)
    outs = [(n + low + high - k) // s + 1 for n, (low, high), k, s in zip(sizes, pads, windows, stride)]
    flops = 2.0 * batch * math.prod(outs) * math.prod(kernel) * cin * cout
    options |= {"stride": stride, "pads": pads, "groups": case.groups}
    yield Problem("conv", case.name, dtype, (case.lhs, case.rhs), options, _bilinear(flops))


def _conv_transpose(case: Any, dtype: str) -> Iterator[Problem]:
    _fields(case, "name", "lhs", "rhs", "strides", "padding", "rhs_dilation", "transpose_kernel")
    *kernel, _, _ = case.rhs
    rank = len(kernel)
    strides = per_axis(case.name, "strides", case.strides, rank)
    dilation = per_axis(case.name, "rhs_dilation", case.rhs_dilation, rank)
    options = {
        "strides": strides,
        "pads": transposed_pads(case.name, case.padding, tuple(kernel), strides, dilation),
        "rhs_dilation": dilation,
        "transpose_kernel": case.transpose_kernel,
    }
    flops = 2.0 * math.prod(case.lhs[:-1]) * math.prod(case.rhs)
    yield Problem("conv_transpose", case.name, dtype, (case.lhs, case.rhs), options, _bilinear(flops))


def _bilinear(flops: float) -> tuple[Part, ...]:
    return (
        Part(FORWARD, flops=flops),
        Part("input gradient", (0,), flops=flops),
        Part("weight gradient", (1,), flops=flops),
    )


def _pool(case: Any, dtype: str) -> Iterator[Problem]:
    """Both kinds of pooling; means leave padding out."""
    _fields(case, "name", "x", "window", "strides", "padding")
    size = tuple(case.x[1:-1])
    window = per_axis(case.name, "window", case.window, len(size))
    strides = window if case.strides is None else per_axis(case.name, "strides", case.strides, len(size))
    options = {"window": window, "strides": strides, "pads": pad_pairs(case.name, case.padding, size, window, strides)}
    for op in ("max_pool", "avg_pool"):
        yield Problem(op, case.name, dtype, (case.x,), options, (Part(FORWARD), Part("gradient", (0,))))


def _dense(case: Any, dtype: str) -> Iterator[Problem]:
    """Arrays are x, W and a bias; there is no activation."""
    _fields(case, "name", "rows", "cin", "cout", "transpose_kernel")
    flops = 2.0 * math.prod(case.rows) * case.cin * case.cout
    options = {"transpose_kernel": case.transpose_kernel}
    yield Problem("dense", case.name, dtype, (case.x, case.w, (case.cout,)), options, _bilinear(flops))


def _batch_norm(case: Any, dtype: str) -> Iterator[Problem]:
    """Arrays are x, scale and offset; statistics are the batch's, and a ReLU follows."""
    _fields(case, "name", "x")
    parts = (Part(FORWARD), Part("gradients", (0, 1, 2)))
    yield Problem("batch_norm", case.name, dtype, (case.x, case.x[-1:], case.x[-1:]), {"epsilon": 1e-3}, parts)


def _rnn(case: Any, dtype: str) -> Iterator[Problem]:
    """Arrays are x, W, U, with `bias` b, in a GRU the recurrent product's as well, and with `lengths` these."""
    _fields(case, "name", "op", "batch", "time", "cin", "hidden", "lengths", "reverse", "bias")
    width = {"lstm": 4, "gru": 3, "rnn": 1}[case.op] * case.hidden
    shapes: list[Ints] = [(case.batch, case.time, case.cin), (case.cin, width), (case.hidden, width)]
    if case.bias:
        shapes += [(width,)] * (2 if case.op == "gru" else 1)
    differentiated = tuple(range(len(shapes)))
    options = {"reverse": case.reverse, "bias": case.bias, "lengths": case.lengths}
    if case.lengths is not None:
        shapes.append((case.batch,))
    rows = case.batch * case.time if case.lengths is None else sum(case.lengths)
    flops = 2.0 * rows * (case.cin + case.hidden) * width
    parts = (Part(FORWARD, flops=flops), Part("forward + backward", differentiated, whole=True, flops=3 * flops))
    yield Problem(case.op, case.name, dtype, tuple(shapes), options, parts)


def _linear_scan(case: Any, dtype: str) -> Iterator[Problem]:
    """Arrays are a, b and h0."""
    _fields(case, "name", "batch", "time", "channels", "gate", "reverse")
    flops = 2.0 * math.prod(case.shape)
    shapes = case.a, case.shape, (case.batch, case.channels)
    parts = (Part(FORWARD, flops=flops), Part("forward + backward", (0, 1, 2), whole=True, flops=2.5 * flops))
    yield Problem("linear_scan", case.name, dtype, shapes, {"reverse": case.reverse}, parts)


OPS: dict[str, tuple[Callable[[], Sequence[Any]], Callable[[Any, str], Iterator[Problem]]]] = {
    "conv": (_listed("conv"), _conv),
    "conv_transpose": (_listed("conv", "TRANSPOSE_BENCH"), _conv_transpose),
    "pool": (_listed("pool"), _pool),
    "dense": (_listed("dense"), _dense),
    "batch_norm": (_listed("norm"), _batch_norm),
    "lstm": (_recurrences("lstm"), _rnn),
    "gru": (_recurrences("gru"), _rnn),
    "rnn": (_recurrences("rnn"), _rnn),
    "linear_scan": (_listed("scan"), _linear_scan),
}
"""Name on the command line -> its list of cases, and how one is read."""


def case_names(ops: Collection[str]) -> set[str]:
    """The names of all cases of these ops."""
    return {case.name for op in ops for case in OPS[op][0]()}
