"""PyTorch with a loop by hand over tensors in memory, eager or with what is differentiated or predicted compiled."""

import contextlib
import os
import time

import torch
from torch import nn

from side_by_side.steps.architectures import weights
from side_by_side.steps.contestants.torch_models import MODELS, take
from side_by_side.steps.gate import Gate
from side_by_side.steps.rows import Row

_LAYOUTS = (torch.contiguous_format, torch.channels_last)
_TRIES = 3


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains or predicts batch by batch, in bfloat16 under autocast."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = MODELS[row.kind]()
    if row.trains:
        _train(model, row, gate, variant)
    else:
        take(model, weights(row.kind))
        _predict(model.eval(), row, gate, variant)


def _train(model: nn.Module, row: Row, gate: Gate, variant: str) -> None:
    """The losses' sum is read when the epoch ends. Images are channels last, Adam is fused."""
    x, y = _data(row)
    if x.ndim == 4:
        x, model = x.permute(0, 3, 1, 2), model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with _precision(row):
            logits = model(_scaled(x))
        return nn.functional.cross_entropy(logits.float(), y)

    if variant == "compiled":
        loss_of = torch.compile(loss_of)
    gate.start()
    while True:
        total = torch.zeros(())
        for first in range(0, len(x), row.batch):
            loss = loss_of(x[first : first + row.batch], y[first : first + row.batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        if not gate.epoch(float(total) / row.steps):
            return


@torch.inference_mode()
def _predict(model: nn.Module, row: Row, gate: Gate, variant: str) -> None:
    """Images have the layout in which the eager model is faster, contiguous or channels last."""
    x, _ = _data(row)

    def predict(x: torch.Tensor) -> torch.Tensor:
        with _precision(row):
            return model(_scaled(x)).float()

    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2)
        seconds = {}
        for layout in _LAYOUTS:
            model.to(memory_format=layout)
            seconds[layout] = _fastest(predict, x[: row.batch].contiguous(memory_format=layout))
        layout = min(seconds, key=lambda layout: seconds[layout])
        model.to(memory_format=layout)
        x = x.contiguous(memory_format=layout)
    if variant == "compiled":
        predict = torch.compile(predict)
    gate.start()
    while True:
        found = [predict(x[first : first + row.batch]).numpy() for first in range(0, len(x), row.batch)]
        if not gate.epoch(found[0][0]):
            return


def _fastest(predict, x: torch.Tensor) -> float:
    predict(x)
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        predict(x)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _data(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.from_numpy(a) for a in row.data())
    return x, y.long()


def _scaled(x: torch.Tensor) -> torch.Tensor:
    return x.float() * (1 / 255) if x.dtype == torch.uint8 else x


def _precision(row: Row) -> contextlib.AbstractContextManager:
    if row.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", getattr(torch, row.precision))
