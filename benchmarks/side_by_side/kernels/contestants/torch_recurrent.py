"""PyTorch's recurrent modules, eager, in both orders of batch and time.

Its users pack ragged batches, and turn sequences around that are to be read from their end; both are in the timed call.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from side_by_side.kernels.bench import Program
from side_by_side.kernels.problem import Part, Problem

MODULES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def programs(problem: Problem, arrays: list[np.ndarray], cotangent: np.ndarray) -> Iterator[Program]:
    """The problem's parts, batch first and time first."""
    for name, batch_first in (("batch first", True), ("time first", False)):
        for part in problem.parts:
            yield Program(part.name, name, partial(_made, problem, part, arrays, cotangent, batch_first))


def _made(
    problem: Problem, part: Part, arrays: list[np.ndarray], cotangent: np.ndarray, batch_first: bool
) -> tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]:
    o, dtype = problem.options, getattr(torch, problem.dtype)
    if o["reverse"] and o["lengths"] is not None:
        raise NotImplementedError("PyTorch: reverse with lengths is not written here; no case has had it")
    module = MODULES[problem.op](arrays[1].shape[0], arrays[2].shape[0], bias=o["bias"], batch_first=batch_first).to(
        dtype
    )
    _take(module, arrays, o["bias"])

    def entered(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array if batch_first else np.ascontiguousarray(array.swapaxes(0, 1))).to(dtype)

    def left(tensor: torch.Tensor) -> np.ndarray:
        array = tensor.detach().float().numpy()
        return array if batch_first else array.swapaxes(0, 1)

    x, dy = entered(arrays[0]).requires_grad_(bool(part.of)), entered(cotangent)
    run = partial(_run, module, batch_first, problem.shapes[0][1], o["lengths"], o["reverse"])
    if not part.of:

        @torch.no_grad()
        def forward() -> torch.Tensor:
            return run(x)

        return forward, lambda y: [left(y)]
    parameters = [module.weight_ih_l0, module.weight_hh_l0]
    if o["bias"]:
        parameters += [module.bias_ih_l0, module.bias_hh_l0][: 2 if problem.op == "gru" else 1]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(run(x), [x, *parameters], dy)

    return gradients, lambda found: [left(found[0]), *(g.float().numpy().T for g in found[1:])]


def _run(
    module: nn.Module, batch_first: bool, time: int, lengths: tuple[int, ...] | None, reverse: bool, x: torch.Tensor
) -> torch.Tensor:
    if reverse:
        axis = 1 if batch_first else 0
        return module(x.flip(axis))[0].flip(axis)
    if lengths is None:
        return module(x)[0]
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=False)
    return pad_packed_sequence(module(packed)[0], batch_first=batch_first, total_length=time)[0]


@torch.no_grad()
def _take(module: Any, arrays: list[np.ndarray], bias: bool) -> None:
    """Gates stand in this project's order in PyTorch too: i f g o, and r z n."""
    module.weight_ih_l0.copy_(torch.from_numpy(arrays[1].T.copy()))
    module.weight_hh_l0.copy_(torch.from_numpy(arrays[2].T.copy()))
    if bias:
        module.bias_ih_l0.copy_(torch.from_numpy(arrays[3]))
        module.bias_hh_l0.zero_()
        if isinstance(module, nn.GRU):
            module.bias_hh_l0.copy_(torch.from_numpy(arrays[4]))
