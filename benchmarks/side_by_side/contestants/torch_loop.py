"""PyTorch with a loop by hand over tensors in memory, eager or with the loss compiled by `torch.compile`."""

import os

import torch
from torch import nn

from side_by_side.gate import Gate
from side_by_side.rows import CLASSES, Row


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains step by step; the losses' sum is read when the epoch ends. Images are channels last, Adam is fused."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    x, y = (torch.from_numpy(a) for a in row.data())
    y = y.long()
    model = _MODELS[row.kind]()
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2)
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x.float() * (1 / 255) if x.dtype == torch.uint8 else x), y)

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


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(13 * 13 * 32, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES))


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 256, batch_first=True)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[1][0][0])


class _Block(nn.Module):
    def __init__(self, cin: int, cout: int):
        super().__init__()
        stride = 1 if cin == cout else 2
        self.body = nn.Sequential(
            *_normalized(cin, cout, 3, stride),
            nn.ReLU(),
            *_normalized(cout, cout, 3, 1),
        )
        self.shortcut = nn.Identity() if cin == cout else nn.Sequential(*_normalized(cin, cout, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _resnet() -> nn.Module:
    widths = [(16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]
    blocks = [_Block(cin, cout) for cin, cout in widths]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*_normalized(3, 16, 3, 1), nn.ReLU(), *blocks, *head)


def _normalized(cin: int, cout: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(cin, cout, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(cout, eps=1e-3, momentum=0.01)]


_MODELS = {"cnn": _cnn, "mlp": _mlp, "lstm": _LSTM, "resnet": _resnet}
