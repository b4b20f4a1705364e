"""The rows' models as PyTorch's users write them, windows of stride 2 padded alike on both sides."""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from side_by_side.steps.architectures import (
    BASIC_BLOCKS,
    EPSILON,
    HIDDEN,
    LABELS,
    RESNET50,
    VGG11,
    VGG11_DENSE,
    Bottleneck,
)
from side_by_side.steps.rows import CLASSES


def cnn() -> nn.Module:
    """3x3 convolution, max-pool, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(13 * 13 * 32, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def mlp() -> nn.Module:
    """Two dense layers."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES))


class LSTM(nn.Module):
    """One LSTM over time, a dense layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[1][0][0])


class GRU(nn.Module):
    """One GRU over time, a dense layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(64, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[1][0])


class _Basic(nn.Module):
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


def basic_blocks(kind: str) -> nn.Module:
    """A ResNet of basic blocks, "resnet" or "resnet18"."""
    widths = BASIC_BLOCKS[kind]
    blocks = [_Basic(cin, cout) for cin, cout in pairwise((widths[0], *widths))]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)]
    return nn.Sequential(*_normalized(3, widths[0], 3, 1), nn.ReLU(), *blocks, *head)


def vgg11() -> nn.Module:
    """VGG-11."""
    stack, cin = [], 3
    for entry in VGG11:
        if isinstance(entry, int):
            stack += [nn.Conv2d(cin, entry, 3, padding=1), nn.ReLU()]
            cin = entry
        else:
            stack.append(nn.MaxPool2d(2))
    sizes = (7 * 7 * cin, *VGG11_DENSE)
    dense = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*stack, nn.Flatten(), *dense, nn.Linear(sizes[-1], LABELS["vgg11"]))


class _Bottleneck(nn.Module):
    def __init__(self, block: Bottleneck):
        super().__init__()
        self.body = nn.Sequential(
            *_normalized(block.cin, block.width, 1, 1),
            nn.ReLU(),
            *_normalized(block.width, block.width, 3, block.stride),
            nn.ReLU(),
            *_normalized(block.width, block.cout, 1, 1),
        )
        path = _normalized(block.cin, block.cout, 1, block.stride) if block.projects else [nn.Identity()]
        self.shortcut = nn.Sequential(*path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50."""
    stem = [*_normalized(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(RESNET50[-1].cout, LABELS["resnet50"])]
    return nn.Sequential(*stem, *map(_Bottleneck, RESNET50), *head)


def _normalized(cin: int, cout: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(cin, cout, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(cout, eps=EPSILON, momentum=0.01)]


MODELS = {
    "cnn": cnn,
    "mlp": mlp,
    "lstm": LSTM,
    "gru": GRU,
    "resnet": partial(basic_blocks, "resnet"),
    "resnet18": partial(basic_blocks, "resnet18"),
    "vgg11": vgg11,
    "resnet50": resnet50,
}


@torch.no_grad()
def take(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Gives the model the weights; both list their layers in the order in which data pass them, shortcuts last."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear | nn.LSTM)]
    arrays = {name: torch.from_numpy(a) for name, a in weights.items()}
    names = list(dict.fromkeys(name.rpartition("/")[0] for name in weights))
    flattened = None
    for layer in layers:
        name = names[0]
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(arrays[name + "/kernel"].permute(3, 2, 0, 1))
            flattened = layer.out_channels
            if layer.bias is None:
                continue  # its normalization has the same name
            layer.bias.copy_(arrays[name + "/bias"])
        elif isinstance(layer, nn.BatchNorm2d):
            for own, given in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
                getattr(layer, own).copy_(arrays[f"{name}/{given}"])
        elif isinstance(layer, nn.Linear):
            kernel = arrays[name + "/kernel"].T
            if flattened is not None:
                # Channels lie first in what a convolution leaves to be flattened here.
                kernel = kernel.unflatten(1, (-1, flattened)).transpose(1, 2).flatten(1)
                flattened = None
            layer.weight.copy_(kernel)
            layer.bias.copy_(arrays[name + "/bias"])
        else:
            layer.weight_ih_l0.copy_(arrays[name + "/kernel"].T)
            layer.weight_hh_l0.copy_(arrays[name + "/recurrent_kernel"].T)
            layer.bias_ih_l0.copy_(arrays[name + "/bias"])
            layer.bias_hh_l0.zero_()
        names.pop(0)
