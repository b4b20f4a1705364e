"""The large models, said once: their blocks, and weights that every framework predicts with.

A weight's name is its layer's and its own, "block3/a/kernel"; kernels are `[height, width, cin, cout]` and
`[cin, cout]`, LSTM gates stand in the order i f g o, a normalization has scale, bias, mean and var.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from side_by_side.steps.rows import CLASSES

VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
"""3x3 convolutions by their channels, each with ReLU, and 2x2 max-pools (Simonyan and Zisserman 2015, A)."""
VGG11_DENSE = (4096, 4096)
HIDDEN = 256
LABELS = {"vgg11": 1000, "resnet50": 1000, "lstm": CLASSES}
EPSILON = 1e-3


BASIC_BLOCKS = {"resnet": (16, 16, 32, 32, 64, 64), "resnet18": (64, 64, 128, 128, 256, 256, 512, 512)}
"""Channels of the residual blocks of two 3x3 convolutions, after a stem of the first one's; more channels, stride 2."""


class Bottleneck(NamedTuple):
    """A residual block: 1x1 to `width` channels, 3x3 with the stride, 1x1 to four times the width."""

    name: str
    cin: int
    width: int
    stride: int

    @property
    def cout(self) -> int:
        """Channels of its result."""
        return 4 * self.width

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1x1 convolution with the stride, and not the input itself."""
        return self.cin != self.cout


def _bottlenecks() -> tuple[Bottleneck, ...]:
    blocks, cin = [], 64
    for stage, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(Bottleneck(f"block{len(blocks)}", cin, width, stride))
            cin = 4 * width
    return tuple(blocks)


RESNET50 = _bottlenecks()
"""The blocks after a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2 (He et al. 2016, stride in the 3x3)."""


@functools.lru_cache(maxsize=1)
def weights(kind: str) -> dict[str, np.ndarray]:
    """Weights of "vgg11", "resnet50" or "lstm" that keep activations near one, float32, the same in every process."""
    return _WEIGHTS[kind](np.random.default_rng(0))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], gain: float = 2.0) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(gain / math.prod(shape[:-1])))


def _dense(rng: np.random.Generator, name: str, cin: int, cout: int) -> dict[str, np.ndarray]:
    return {f"{name}/kernel": _normal(rng, (cin, cout)), f"{name}/bias": 0.1 * rng.standard_normal(cout, np.float32)}


def _vgg11(rng: np.random.Generator) -> dict[str, np.ndarray]:
    found, cin, number = {}, 3, 0
    for cout in VGG11:
        if isinstance(cout, int):
            found[f"conv{number}/kernel"] = _normal(rng, (3, 3, cin, cout))
            found[f"conv{number}/bias"] = 0.1 * rng.standard_normal(cout, np.float32)
            cin, number = cout, number + 1
    sizes = (7 * 7 * cin, *VGG11_DENSE, LABELS["vgg11"])
    for name, cin, cout in zip(("dense0", "dense1", "head"), sizes, sizes[1:]):
        found |= _dense(rng, name, cin, cout)
    return found


def _resnet50(rng: np.random.Generator) -> dict[str, np.ndarray]:
    found = {}

    def add(name: str, size: int, cin: int, cout: int, scale: float = 1.0) -> None:
        found[f"{name}/kernel"] = _normal(rng, (size, size, cin, cout))
        found[f"{name}/scale"] = scale * rng.uniform(0.5, 1.0, cout).astype(np.float32)
        found[f"{name}/bias"] = 0.1 * rng.standard_normal(cout, np.float32)
        found[f"{name}/mean"] = 0.1 * rng.standard_normal(cout, np.float32)
        found[f"{name}/var"] = rng.uniform(0.5, 1.5, cout).astype(np.float32)

    add("stem", 7, 3, 64)
    for block in RESNET50:
        add(f"{block.name}/a", 1, block.cin, block.width)
        add(f"{block.name}/b", 3, block.width, block.width)
        # Small branches: sixteen sums must not blow the activations up.
        add(f"{block.name}/c", 1, block.width, block.cout, 0.3)
        if block.projects:
            add(f"{block.name}/shortcut", 1, block.cin, block.cout)
    return found | _dense(rng, "head", RESNET50[-1].cout, LABELS["resnet50"])


def _lstm(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "lstm/kernel": _normal(rng, (64, 4 * HIDDEN), 1.0),
        "lstm/recurrent_kernel": _normal(rng, (HIDDEN, 4 * HIDDEN), 1.0),
        "lstm/bias": 0.1 * rng.standard_normal(4 * HIDDEN, np.float32),
        **_dense(rng, "head", HIDDEN, CLASSES),
    }


_WEIGHTS = {"vgg11": _vgg11, "resnet50": _resnet50, "lstm": _lstm}
