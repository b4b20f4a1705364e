"""PyTorch on the device: cuDNN's recurrences, time first, and its convolutions, channels last.

Arrays lie as PyTorch's users keep them before the clock starts. What is timed is a CUDA graph of so many calls, or the
calls themselves where they cannot be captured; the answer says which.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from side_by_side.gpu.contestants import whole
from side_by_side.gpu.sample import sample
from side_by_side.kernels.contestants import torch_eager
from side_by_side.kernels.problem import Problem

FORWARD, BOTH = "forward", "forward + backward"
Call = Callable[[], Sequence[torch.Tensor]]


class Side:
    """Answers requests.

    Args:
        mode: "gpu", or "interpreted": then all is on the CPU.
        tables: of no use here.
    """

    def __init__(self, mode: str, tables: str):
        self._device = torch.device("cpu" if mode == "interpreted" else "cuda")
        if self._device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.zeros(1, device=self._device)
        self._timers: dict[tuple[str, str], tuple[Callable[[], float], int]] = {}

    def alive(self) -> bool:
        """Whether the device still computes."""
        try:
            return float(torch.ones(1, device=self._device)) == 1
        except RuntimeError:
            return False

    def about(self) -> dict[str, Any]:
        """Versions that are not those of a package."""
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        return {"cuda": torch.version.cuda, "cudnn": cudnn}

    def judged(
        self, name: str, dtype: str, told_of: dict[str, Any], names: list[str], folder: str, results: int,
        counts: dict[str, int],
    ) -> dict[str, Any]:  # fmt: skip
        """The deviation of each part from what the other process left in the folder, or how it failed."""
        # What is called float32 here is float32, for everybody.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype in ("tf32", "float32-default")
        kind = getattr(torch, "float32" if dtype in ("tf32", "float32-default") else dtype)
        where = Path(folder)
        arrays = [np.load(where / f"array{i}.npy") for i in range(len(names))]
        cotangents = [np.load(where / f"cotangent{i}.npy") for i in range(results)]
        verdicts, how = {}, {}
        for part in (FORWARD, BOTH):
            try:
                made = _recurrence if told_of["kind"] == "rnn" else _convolution
                call, back = made(told_of, names, arrays, cotangents, part == BOTH, kind, self._device)
                found = back(call())
                deviations = [_deviation(found[i], np.load(where / f"wanted{i}.npy")) for i in range(len(found))]
                verdicts[part] = max(deviations)
                timer, how[part] = self._timer(call, counts[part])
                self._timers[name, part] = timer, counts[part]
            except Exception as error:
                verdicts[part] = whole(error)
        return {"verdicts": verdicts, "how": how}

    def timed(self, name: str, part: str, seconds: float) -> dict[str, Any]:
        """Seconds of one time: the median of what takes some `seconds` together."""
        (timer, count), found = self._timers[name, part], []
        timer()
        began = time.perf_counter()
        while not found or time.perf_counter() - began < seconds:
            found.append(timer())
        return {"seconds": statistics.median(found) / count}

    def forget(self) -> dict[str, Any]:
        """Drops all tensors."""
        self._timers.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _timer(self, call: Call, count: int) -> tuple[Callable[[], float], str]:
        """Seconds of `count` calls, and how they are made."""
        if self._device.type == "cpu":

            def on_cpu() -> float:
                started = time.perf_counter()
                for _ in range(count):
                    call()
                return time.perf_counter() - started

            return on_cpu, "eager"
        run, how = _graph(call, count)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def on_gpu() -> float:
            begin.record()
            run()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return on_gpu, how


def _graph(call: Call, count: int) -> tuple[Callable[[], None], str]:
    def eager() -> None:
        for _ in range(count):
            call()

    try:
        # Libraries choose and allocate in their first calls, which cannot be captured.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return eager, "eager"
    return graph.replay, "graph"


Made = tuple[Call, Callable[[Sequence[torch.Tensor]], list[np.ndarray]]]


def _recurrence(
    told_of: dict[str, Any], names: list[str], arrays: list[np.ndarray], cotangents: list[np.ndarray], both: bool,
    dtype: torch.dtype, device: torch.device,
) -> Made:  # fmt: skip
    a = dict(zip(names, arrays))
    kind = told_of["module"]
    module = getattr(nn, kind)(told_of["cin"], told_of["hidden"], bias=told_of["bias"]).to(dtype).to(device)
    with torch.no_grad():
        # Gates stand in this project's order in PyTorch too: i f g o, and r z n.
        wanted = {"weight_ih_l0": a["w_input"].T, "weight_hh_l0": a["w_recurrent"].T}
        if told_of["bias"]:
            second = a.get("recurrent_bias", np.zeros_like(a["bias"]))
            wanted |= {"bias_ih_l0": a["bias"], "bias_hh_l0": second}
        for name, values in wanted.items():
            getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(values)))
    module.flatten_parameters()

    def entered(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device).to(dtype)

    x = entered(a["x"].swapaxes(0, 1)).requires_grad_(both)
    states = [entered(a[n][None]).requires_grad_(both) for n in ("h0", "c0") if n in a]
    start = None if not states else tuple(states) if kind == "LSTM" else states[0]

    def forward() -> list[torch.Tensor]:
        y, last = module(x, start)
        return [y, *(last if kind == "LSTM" else [last])]

    def left(found: Sequence[torch.Tensor]) -> list[np.ndarray]:
        y, *rest = (t.detach().float().cpu().numpy() for t in found)
        return [y.swapaxes(0, 1), *(r[0] for r in rest)]

    if not both:

        def inference() -> Sequence[torch.Tensor]:
            with torch.no_grad():
                return forward()

        return inference, left
    of = {"x": x, "w_input": module.weight_ih_l0, "w_recurrent": module.weight_hh_l0, "h0": None, "c0": None}
    of |= dict(zip(("h0", "c0"), states))
    if told_of["bias"]:
        of |= {"bias": module.bias_ih_l0, "recurrent_bias": module.bias_hh_l0}
    dy, *dlast = cotangents
    given = [entered(dy.swapaxes(0, 1)), *(entered(d[None]) for d in dlast)]

    def gradients() -> Sequence[torch.Tensor]:
        out = forward()
        return [*out, *torch.autograd.grad(out, [of[n] for n in names], given)]

    def all_left(found: Sequence[torch.Tensor]) -> list[np.ndarray]:
        out = left(found[: len(cotangents)])
        for name, g in zip(names, found[len(cotangents) :]):
            array = g.float().cpu().numpy()
            out.append(array.swapaxes(0, 1) if name == "x" else array.T if name.startswith("w_") else
                       array[0] if name in ("h0", "c0") else array)  # fmt: skip
        return out

    return gradients, all_left


def _convolution(
    told_of: dict[str, Any], names: list[str], arrays: list[np.ndarray], cotangents: list[np.ndarray], both: bool,
    dtype: torch.dtype, device: torch.device,
) -> Made:  # fmt: skip
    problem = Problem.from_json(told_of["problem"])
    layouts = torch_eager.operations(problem)
    operation = layouts.get("channels last", layouts["contiguous"])

    def entered(array: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.from_numpy(array).permute(order).to(device).to(dtype)
        return tensor.contiguous(memory_format=operation.layout)

    def left(tensor: torch.Tensor, order: tuple[int, ...], flip: bool = False) -> np.ndarray:
        array = tensor.detach().float().cpu().permute([order.index(axis) for axis in range(len(order))]).numpy()
        return torch_eager.flip(array) if flip else array

    x, w = arrays
    given = [x, torch_eager.flip(w) if operation.flipped else w]
    tensors = [entered(g, order).requires_grad_(both) for g, order in zip(given, operation.orders)]
    if not both:

        def inference() -> Sequence[torch.Tensor]:
            with torch.no_grad():
                return [operation.apply(*tensors)]

        return inference, lambda found: [left(found[0], operation.result)]
    dy = entered(cotangents[0], operation.result)

    def gradients() -> Sequence[torch.Tensor]:
        y = operation.apply(*tensors)
        return [y, *torch.autograd.grad(y, tensors, dy)]

    def all_left(found: Sequence[torch.Tensor]) -> list[np.ndarray]:
        y, dx, dw = found
        return [
            left(y, operation.result), left(dx, operation.orders[0]),
            left(dw, operation.orders[1], operation.flipped),
        ]  # fmt: skip

    return gradients, all_left


def _deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    if not np.isfinite(found).all():
        return float("inf")
    found = sample(np.ascontiguousarray(found))
    return float(np.max(np.abs(found - wanted)) / max(float(np.max(np.abs(wanted))), 1e-30))
