"""PyTorch's functions, eager: the forward pass without autograd, gradients by `torch.autograd.grad`.

A gradient without the forward pass is taken again and again on one retained graph. Images are tried contiguous and
channels last, dense layers with their kernel in either order. Convolutions whose padding differs at the two ends are
padded ahead by `pad`, as their users have to.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from side_by_side.kernels.bench import Program
from side_by_side.kernels.contestants import torch_recurrent
from side_by_side.kernels.problem import Part, Problem

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

Order = tuple[int, ...]
"""Which of the array's axes each of the tensor's is."""


class Operation(NamedTuple):
    """A function of tensors, and how they lie."""

    apply: Callable[..., torch.Tensor]
    orders: tuple[Order, ...]
    """Of the arrays."""
    result: Order
    flipped: bool = False
    """Whether the second tensor holds the second array with its kernel axes flipped."""
    layout: torch.memory_format = torch.contiguous_format


def programs(problem: Problem, arrays: list[np.ndarray], cotangent: np.ndarray) -> Iterator[Program]:
    """The problem's parts, by each way to compute them."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if problem.op in torch_recurrent.MODULES:
        yield from torch_recurrent.programs(problem, arrays, cotangent)
        return
    if problem.op not in _OPS:
        raise NotImplementedError(f"PyTorch: has no {problem.op}; its users compile their own")
    for name, operation in _OPS[problem.op](problem).items():
        for part in problem.parts:
            make = partial(_made, operation, part, getattr(torch, problem.dtype), arrays, cotangent)
            yield Program(part.name, name, make)


def operations(problem: Problem) -> dict[str, Operation]:
    """The ways to compute an operation that is no recurrence."""
    return _OPS[problem.op](problem)


def _made(
    operation: Operation, part: Part, dtype: torch.dtype, arrays: list[np.ndarray], cotangent: np.ndarray
) -> tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]:
    def entered(array: np.ndarray, order: Order) -> torch.Tensor:
        layout = operation.layout if len(order) == len(operation.result) else torch.contiguous_format
        return torch.from_numpy(array).permute(order).to(dtype).contiguous(memory_format=layout)

    def left(tensor: torch.Tensor, order: Order) -> np.ndarray:
        return tensor.float().permute([order.index(axis) for axis in range(len(order))]).numpy()

    def gradient(i: int, tensor: torch.Tensor) -> np.ndarray:
        array = left(tensor, operation.orders[i])
        return flip(array) if i == 1 and operation.flipped else array

    given = [flip(a) if i == 1 and operation.flipped else a for i, a in enumerate(arrays)]
    tensors = [entered(a, order) for a, order in zip(given, operation.orders)]
    if not part.of:

        @torch.no_grad()
        def forward() -> torch.Tensor:
            return operation.apply(*tensors)

        return forward, lambda y: [left(y, operation.result)]
    wanted = [tensors[i].requires_grad_() for i in part.of]
    y, dy = operation.apply(*tensors), entered(cotangent, operation.result)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    return gradients, lambda found: [gradient(i, g) for i, g in zip(part.of, found)]


def flip(kernel: np.ndarray) -> np.ndarray:
    """The kernel with its spatial axes turned around."""
    return np.ascontiguousarray(np.flip(kernel, tuple(range(kernel.ndim - 2))))


def _in_layouts(operation: Operation) -> dict[str, Operation]:
    """An operation of images, contiguous and, from two spatial axes on, channels last."""
    last = _CHANNELS_LAST.get(len(operation.result) - 2)
    found = {"contiguous": operation}
    return found if last is None else {**found, "channels last": operation._replace(layout=last)}


def _channels_first(rank: int) -> Order:
    return (0, rank + 1, *range(1, rank + 1))


def _padded_ahead(pads: tuple[tuple[int, int], ...], value: float = 0.0) -> Callable[[torch.Tensor], torch.Tensor]:
    # From the last axis on.
    flat = [n for pair in reversed(pads) for n in pair]
    return lambda x: functional.pad(x, flat, value=value)


def _conv(problem: Problem) -> dict[str, Operation]:
    o = problem.options
    rank = len(o["stride"])
    if any(b > 1 for b in o["lhs_dilation"]):
        raise NotImplementedError("PyTorch: a dilated input is written as conv_transpose")
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    function = partial(function, stride=o["stride"], dilation=o["rhs_dilation"], groups=o["groups"])
    if all(low == high >= 0 for low, high in o["pads"]):
        apply = partial(function, padding=tuple(low for low, _ in o["pads"]))
    else:
        pad = _padded_ahead(o["pads"])

        def apply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return function(pad(x), w)

    image = _channels_first(rank)
    return _in_layouts(Operation(apply, (image, (rank + 1, rank, *range(rank))), image))


def _conv_transpose(problem: Problem) -> dict[str, Operation]:
    o = problem.options
    rank = len(o["strides"])
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    *kernel, _, _ = problem.shapes[1]
    # PyTorch's padding is what is cut from the whole result, at both ends alike; output_padding gives some back.
    reach = [(k - 1) * d for k, d in zip(kernel, o["rhs_dilation"])]
    cut = tuple(r - low for r, (low, _) in zip(reach, o["pads"]))
    extra = tuple(high - low for low, high in o["pads"])
    if min(cut) < 0 or min(extra) < 0:
        raise NotImplementedError(f"PyTorch: no conv_transpose has the padding {o['pads']}")
    apply = partial(function, stride=o["strides"], padding=cut, output_padding=extra, dilation=o["rhs_dilation"])
    # The kernel is that of the convolution which this transposes: [cin, cout, *kernel].
    channels = (rank + 1, rank) if o["transpose_kernel"] else (rank, rank + 1)
    image = _channels_first(rank)
    orders = (image, (*channels, *range(rank)))
    return _in_layouts(Operation(apply, orders, image, flipped=not o["transpose_kernel"]))


_POOLS = {
    "max_pool": (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d),
    "avg_pool": (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
}


def _pool(problem: Problem) -> dict[str, Operation]:
    o, rank = problem.options, len(problem.shapes[0]) - 2
    function = partial(_POOLS[problem.op][rank - 1], kernel_size=o["window"], stride=o["strides"])
    if problem.op == "avg_pool":
        function = partial(function, count_include_pad=False)
    image = _channels_first(rank)
    low = tuple(low for low, _ in o["pads"])
    if all(n <= k // 2 for n, k in zip(low, o["window"])):
        # ceil_mode lets the last window hang over: padding at the high end alone needs no copy.
        for ceil in (False, True):
            if _out_size(problem, [(n, n) for n in low], ceil) == _out_size(problem, o["pads"], False):
                return _in_layouts(Operation(partial(function, padding=low, ceil_mode=ceil), (image,), image))
    if problem.op == "avg_pool":
        raise NotImplementedError(f"PyTorch: no avg_pool leaves out the padding {o['pads']}")
    pad = _padded_ahead(o["pads"], -torch.inf)
    return _in_layouts(Operation(lambda x: function(pad(x)), (image,), image))


def _out_size(problem: Problem, pads: Any, ceil: bool) -> list[int]:
    o = problem.options
    sizes = zip(problem.shapes[0][1:-1], pads, o["window"], o["strides"])
    return [(n + low + high - k + (s - 1 if ceil else 0)) // s + 1 for n, (low, high), k, s in sizes]


def _dense(problem: Problem) -> dict[str, Operation]:
    """With the kernel as nn.Linear holds it, [cout, cin], and as [cin, cout]."""
    rows, as_given, swapped = tuple(range(len(problem.shapes[0]))), (0, 1), (1, 0)
    linear, matmul = (as_given, swapped) if problem.options["transpose_kernel"] else (swapped, as_given)
    return {
        "linear": Operation(functional.linear, (rows, linear, (0,)), rows),
        "matmul": Operation(lambda x, w, b: x @ w + b, (rows, matmul, (0,)), rows),
    }


def _batch_norm(problem: Problem) -> dict[str, Operation]:
    def apply(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        epsilon = problem.options["epsilon"]
        return functional.relu(functional.batch_norm(x, None, None, scale, offset, training=True, eps=epsilon))

    image = _channels_first(len(problem.shapes[0]) - 2)
    return _in_layouts(Operation(apply, (image, (0,), (0,)), image))


_OPS = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
    "dense": _dense,
    "batch_norm": _batch_norm,
}
